from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import Cli


@pytest.fixture
def cli(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cli]:
    """Afterwards no process and no private home is left; what a failed test leaves is killed."""
    cli = Cli(tmp_path, daemon=getattr(request, "param", "daemon") == "daemon")
    try:
        yield cli
        cli.nothing_left()
    finally:
        for pid in cli.everything():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
