"""Who ends a job looks whether another program does its work: an abort, a time limit, whoever notices it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from jobvisor_workers.control import Control
from jobvisor_workers.protocol import Delegated, encode

#: A worker that hears TERM and does not end, with a program that would end of it.
WORKER = """
trap 'echo term' TERM
sleep 60 &
echo $!
while :; do wait; done
"""


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(["bash", "-c", WORKER], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("why", ["abort", "time-limit"])
def test_delegated_work_is_waited_for_and_keeps_what_carries_its_connection(
    worker: subprocess.Popen[str], tmp_path: Path, why: Literal["abort", "time-limit"]
) -> None:
    assert worker.stdout
    child = int(worker.stdout.readline())
    life = tmp_path / "life"
    life.write_bytes(encode(Delegated(True)) + b"\n")
    control = Control(1, worker.pid, str(tmp_path), lambda _what, _outsider: None)
    control.abort(5, why=why)
    assert worker.stdout.readline() == "term\n"
    now = time.monotonic()
    for later in (4, 6, 100, 1000):
        control.tick(now + later)
        assert not control.killed
    assert lives(child)
    # It is done: now the grace period begins.
    with open(life, "ab") as file:
        file.write(encode(Delegated(False)) + b"\n")
    control.tick(now + 2000)
    control.tick(now + 2004)
    assert not control.killed
    control.tick(now + 2006)
    assert control.killed
    assert worker.wait(10) == -signal.SIGKILL


def test_force_does_not_wait(worker: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / "life").write_bytes(encode(Delegated(True)) + b"\n")
    control = Control(1, worker.pid, str(tmp_path), lambda _what, _outsider: None)
    control.abort(5, force=True)
    assert worker.wait(10) == -signal.SIGKILL
