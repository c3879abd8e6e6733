"""A pytest plugin: real supervisors and real worker processes in tests, and the proof that nothing is left of them.

Installing jobvisor is enough. Fixtures: `supervisor`, `job_type`. To be imported from here: `job_type` (the same, for
the top level of a test module), `kill_at`, `halt_at`, `wait_until`, `processes_of`, `locks_below`.

    from jobvisor.testing import job_type, kill_at

    @job_type
    class Shout(JobType, tag="shout"):
        source: Annotated[str, volume("what to read", READ)]

        def run(self, worker): ...

    def test_nothing_is_left_of_a_killed_worker(supervisor, tmp_path):
        with kill_at(supervisor, "copy") as death:
            supervisor.start(Shout(str(tmp_path / "a")))
        assert death.info.cause == "killed"
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from jobvisor.testing.halting import MODULE, Death, Halt, halt_at, kill_at, wait_until
from jobvisor.testing.scratch import Scratch, importable, job_type, modules_of

if TYPE_CHECKING:
    from jobvisor.supervisor import Supervisor
    from jobvisor.testing.leftovers import Lock, Process, kill_processes_of, locks_below, processes_of

__all__ = [
    "Death",
    "Halt",
    "Lock",
    "Process",
    "Scratch",
    "halt_at",
    "job_type",
    "kill_at",
    "kill_processes_of",
    "locks_below",
    "nothing_left",
    "processes_of",
    "wait_until",
]

#: Seconds from TERM to KILL in tests.
GRACE = 5.0
#: What was killed may need a moment until the kernel has taken it apart, seconds.
SETTLES = 2.0


def __getattr__(name: str) -> object:
    """What inspects processes is loaded when it is asked for: this module is imported in every run of pytest."""
    if name in ("Lock", "Process", "kill_processes_of", "locks_below", "processes_of"):
        from jobvisor.testing import leftovers

        return getattr(leftovers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@pytest.fixture
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Supervisor]:
    """A supervisor with a home of its own, which knows the job types that the test's module declares or imports.

    After the test all its jobs are aborted, and it is proved that no process, no lock, no descriptor of the test's
    process and no temporary file is left of it; the test's own are found out too. Otherwise the test fails with
    the names of what is left.
    """
    from jobvisor.supervisor import Supervisor

    types = [MODULE, *modules_of(_module(request))]
    scratch: Scratch | None = None
    if "job_type" in request.fixturenames:
        scratch = request.getfixturevalue("job_type")
        types = list(dict.fromkeys([*types, importable(_module(request)), str(scratch.path)]))
    with nothing_left(tmp_path / "home", tmp_path):
        supervisor = Supervisor(tmp_path / "home", types=types, grace=GRACE)
        if scratch:
            scratch.is_late = lambda: bool(supervisor._core.zygotes().result())
        yield supervisor
        _end(supervisor)


@pytest.fixture(name="job_type")
def _scratch(request: pytest.FixtureRequest, tmp_path: Path) -> Scratch:
    """Declare a scratch job type in the body of a test, before its first job is started.

    def test_it(supervisor, job_type):
        @job_type
        class Nap(JobType, tag="nap"): ...
    """
    return Scratch(tmp_path / "scratch_types.py", _module(request))


def _module(request: pytest.FixtureRequest) -> ModuleType:
    found = request.node.getparent(pytest.Module)
    if not isinstance(found, pytest.Module):
        raise pytest.UsageError(f"{request.fixturename}: {request.node.nodeid} is in no Python module")
    module = found.obj
    assert isinstance(module, ModuleType)
    return module


@contextmanager
def nothing_left(home: Path, directory: Path) -> Iterator[None]:
    """For tests that make their own supervisors: at the end of the block nothing is left of a home, or the test fails.

    `directory`: below it there is to be no lock, temporary file or open descriptor that was not there before.
    """
    from jobvisor.testing.leftovers import Before, kill_processes_of

    before = Before(home, directory)
    try:
        yield
        gc.collect()
        try:
            wait_until(lambda: not before.transient(), SETTLES)
            left = before.lasting()
        except AssertionError:
            left = before.transient() + before.lasting()
    finally:
        kill_processes_of(home)
    if left:
        pytest.fail(f"the test left behind, of the supervisor in {home}: {'; '.join(left)}", pytrace=False)


def _end(supervisor: Supervisor) -> None:
    """Abort everything, also when the test has closed the supervisor and its jobs ran on."""
    from jobvisor.errors import HomeInUse
    from jobvisor.supervisor import Supervisor
    from jobvisor.testing.leftovers import processes_of

    if not supervisor.closed:
        supervisor.close(abort=True)
    elif processes_of(supervisor.home):
        try:
            Supervisor(supervisor.home, types=supervisor._core.types, grace=GRACE).close(abort=True)
        except HomeInUse:  # by one that the test made and did not close: its processes and locks will be named
            pass
