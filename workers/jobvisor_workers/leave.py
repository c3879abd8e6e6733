"""How a worker ends: the one atexit handler that was registered before all others, and therefore runs last.

It writes the result and ends the process at once: module teardown costs five times the fork. Imports nothing of ours,
so that `program` can register it before any other module registers a handler of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

#: Set in a worker: writes the result file and returns the exit status.
last_word: Callable[[], int] | None = None


def leave() -> None:
    if last_word is None:
        return
    status = 1
    try:
        status = last_word()
    except OSError as error:  # a full state disk; the exit record and the exit status still tell the outcome
        sys.stderr.write(f"jobvisor: cannot write the result: {error}\n")
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
