"""Halt or kill a job at a named place of its work, exactly: the worker waits there until the test has done its deed."""

from __future__ import annotations

import os
import select
import signal as signals
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from jobvisor.info import JobInfo
    from jobvisor.job import Job
    from jobvisor.supervisor import Supervisor

T = TypeVar("T")
#: What a supervisor's `types` must have for halt_at and kill_at; the fixture's has it.
MODULE = "jobvisor_workers.testing"
LOOK = 0.001


def wait_until(condition: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Call `condition` until what it returns is true, and return that. AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or getattr(condition, '__name__', 'the condition')}: not within {timeout:g} s")
        time.sleep(LOOK)
    return found


class Halt:
    """A place at which one job is to halt, or has."""

    def __init__(self, supervisor: Supervisor, phase: str, after: int, child: bool) -> None:
        import msgspec

        from jobvisor_workers.testing import HALTED, PLACE, Place

        if MODULE not in supervisor._core.types:
            raise ValueError(f"halting a job needs the fixture's supervisor, or one with types=[{MODULE!r}, …]")
        self.phase, self._after = phase, after
        self.worker: int | None = None
        self.child: int | None = None
        self._supervisor = supervisor
        self._run = os.path.join(supervisor.home, "run")
        self._place, self._prefix = os.path.join(self._run, PLACE), HALTED
        self._known = max((info.id for info in supervisor.jobs(limit=1)), default=0)
        with open(self._place + ".new", "wb") as file:
            file.write(msgspec.json.encode(Place(phase, after, child)))
        os.rename(self._place + ".new", self._place)

    def wait(self, timeout: float = 30.0) -> Job:
        """Wait until a job has come there, and return it; seconds. AssertionError when all jobs end before."""
        import msgspec

        from jobvisor_workers.testing import Halted

        path = wait_until(lambda: self._halted() or self._missed(), timeout, f"a job in phase {self.phase!r}")
        with open(path, "rb") as file:
            halted = msgspec.json.decode(file.read(), type=Halted)
        self.worker, self.child = halted.worker, halted.child
        job = self._supervisor.job(int(path.rpartition("-")[2]))
        wait_until(lambda: self._is_known(job.info()), timeout, f"the report of phase {self.phase!r}")
        return job

    def release(self) -> None:
        """Let the job go on."""
        for path in (self._place, self._halted()):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def _halted(self) -> str:
        names = [name for name in os.listdir(self._run) if name.startswith(self._prefix)]
        return os.path.join(self._run, names[0]) if names else ""

    def _is_known(self, info: JobInfo) -> bool:
        return info.final or (info.phase == self.phase and info.data_processed >= self._after)

    def _missed(self) -> str:
        started = [info for info in self._supervisor.jobs() if info.id > self._known]
        if started and all(info.final for info in started) and not self._halted():
            ends = ", ".join(f"job {info.id} {info.state} in phase {info.phase!r}" for info in started)
            raise AssertionError(f"no job came to the place in phase {self.phase!r}: {ends}")
        return ""


@contextmanager
def halt_at(supervisor: Supervisor, phase: str, *, after: int = 0, child: bool = False) -> Iterator[Halt]:
    """The first job that comes to a place waits there until the with block is left.

    The place: the beginning of `phase`, or where `after` bytes of the job are done in it, or (`child`) where it has
    just started a program, which is then in SIGSTOP.

        with halt_at(supervisor, "copy") as halt:
            supervisor.start(XorCopy(source, target))
            job = halt.wait()
            assert job.suspend().state == "suspended"
    """
    halt = Halt(supervisor, phase, after, child)
    try:
        yield halt
    finally:
        halt.release()


class Death:
    """What came of kill_at; `info` is set when its with block was left."""

    info: JobInfo


@contextmanager
def kill_at(
    supervisor: Supervisor,
    phase: str,
    *,
    after: int = 0,
    signal: int = signals.SIGKILL,
    who: Literal["worker", "child", "zygote"] = "worker",
    timeout: float = 30.0,
) -> Iterator[Death]:
    """Send a signal to a job's worker, its child, or the zygote, while the job is in `phase`; start it in the block.

    At the end of the block the job is waited for, which is final then; after a zygote's death it goes on, and is not.
    AssertionError when no job comes to the phase (`after` so many bytes), or when the phase at its death was another.

        with kill_at(supervisor, "copy") as death:
            supervisor.start(XorCopy(source, target))
        assert death.info.cause == "killed"
    """
    death = Death()
    with halt_at(supervisor, phase, after=after, child=who == "child") as halt:
        yield death
        job = halt.wait(timeout)
        pidfd = os.pidfd_open(_victim(halt, who))
        try:
            signals.pidfd_send_signal(pidfd, signal)
            if who == "child":  # it is stopped, and hears of most signals only when it goes on, but then first of all
                halt.release()
            assert select.select([pidfd], [], [], timeout)[0], f"signal {signal} did not end the {who} of {job!r}"
        finally:
            os.close(pidfd)
        death.info = job.info()
    if who != "zygote":
        death.info = job.wait(timeout)
    assert death.info.phase == phase, f"{job!r} ended in phase {death.info.phase!r}, not in {phase!r}"


def _victim(halt: Halt, who: str) -> int:
    from jobvisor.testing.leftovers import parent_of

    assert halt.worker is not None
    if who == "child":
        assert halt.child is not None
        return halt.child
    return halt.worker if who == "worker" else parent_of(halt.worker)
