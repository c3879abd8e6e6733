"""The worker's side of `jobvisor.testing`: a worker halts at a named place of its work until the test lets it go on.

It is imported by the zygotes of supervisors that list it in their `types`, and changes nothing anywhere else. The test
writes a Place to run/halt; the first worker that comes there makes it run/halted-<job>, and goes on when the test has
removed that. So what a test does to the job is done at that very place, however fast the job is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

import msgspec

from jobvisor_workers import children
from jobvisor_workers.control import MARK
from jobvisor_workers.progress import Reporter
from jobvisor_workers.worker import Worker

PLACE = "halt"
HALTED = "halted-"
#: Seconds between two looks whether the test lets the worker go on.
LOOK = 0.001


class Place(msgspec.Struct, frozen=True):
    """A phase, once `after` bytes of the job are done; `child`: when a program was just started in that phase."""

    phase: str
    after: int = 0
    child: bool = False


class Halted(msgspec.Struct, frozen=True):
    """Content of run/halted-<job>: the worker, and the child that was stopped with SIGSTOP."""

    worker: int
    child: int | None = None


_phase: str | None = None
_awaited: Place | None = None
_begin_phase, _advance, _relay = Worker.phase, Reporter._advance, children._relay


def _phase_and_halt(worker: Worker, name: str, total: int | None = None, *, done: int = 0) -> None:
    global _phase, _awaited
    _begin_phase(worker, name, total, done=done)
    place = _place()
    _phase, _awaited = name, place if place and place.phase == name and not place.child else None
    worker._reporter.advance_nothing()


def _advance_and_halt(reporter: Reporter, count: int) -> None:
    """All that tells of bytes comes here."""
    global _awaited
    _advance(reporter, count)
    if _awaited and reporter.report.processed >= _awaited.after:
        _awaited = None
        reporter.send()
        _halt()


def _relay_and_halt(process: subprocess.Popen[bytes], *how: Any) -> tuple[bytes, bytes]:
    place = _place()
    if place and place.child and place.phase == _phase:
        process.send_signal(signal.SIGSTOP)
        _halt(process.pid)
        process.send_signal(signal.SIGCONT)
    return _relay(process, *how)


def _place() -> Place | None:
    if MARK not in os.environ:  # in the test's own process, not in a worker
        return None
    try:
        with open(os.path.join(_run(), PLACE), "rb") as file:
            return msgspec.json.decode(file.read(), type=Place)
    except (FileNotFoundError, PermissionError):  # a worker of another user cannot look there, and halts nowhere
        return None


def _run() -> str:
    """The run directory of the home whose job this is."""
    return os.path.join(os.path.dirname(os.path.dirname(os.environ[MARK])), "run")


def _halt(child: int | None = None) -> None:
    run, job = _run(), os.path.basename(os.environ[MARK])
    mine, halted = os.path.join(run, f"halting-{job}"), os.path.join(run, HALTED + job)
    try:
        os.rename(os.path.join(run, PLACE), mine)
    except FileNotFoundError:  # another worker came first
        return
    with open(mine, "wb") as file:
        file.write(msgspec.json.encode(Halted(os.getpid(), child)))
    os.rename(mine, halted)
    while os.path.exists(halted):
        time.sleep(LOOK)


Worker.phase = _phase_and_halt  # type: ignore[method-assign, assignment]
Reporter._advance = _advance_and_halt  # type: ignore[method-assign, assignment]
children._relay = _relay_and_halt  # type: ignore[assignment]
