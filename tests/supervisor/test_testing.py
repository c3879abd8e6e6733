import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Client, Supervisor
from jobvisor.testing import (
    Scratch,
    halt_at,
    job_type,
    kill_at,
    kill_processes_of,
    locks_below,
    nothing_left,
    processes_of,
    wait_until,
)
from jobvisor_workers import JobType, Worker

pytest_plugins = "pytester"

SUITE = '''
import os
import signal
import time
from typing import Annotated, Any

import pytest

from jobvisor.testing import job_type, kill_at, processes_of
from jobvisor_workers import READ, JobType, new_volume, volume

SHIFT = 1


@job_type
class Shift(JobType, tag="shift"):
    """Add one to each byte."""

    source: Annotated[str, volume("what to read", READ)]
    target: Annotated[str, new_volume("what to write")]

    def run(self, worker):
        with worker.open(self.source) as source, worker.create(self.target, size=source.size) as out:
            worker.phase("shift", total=source.size)
            for offset, length in worker.extents(source):
                piece = os.pread(source.fd, length, offset)
                os.pwrite(out.fd, bytes((byte + SHIFT) % 256 for byte in piece), offset)
                worker.advance(length)
            worker.phase("rest")
            worker.child(["sleep", "0.01"])
        return {"by": SHIFT}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"HAL" * 1000)
    return path
'''


@job_type
class Steps(JobType, tag="steps"):
    """Three phases, the last with a child."""

    child: str = "true"
    last: str = ""

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("one", total=300)
        for _ in range(100):
            worker.advance(1)
        worker.phase("two")
        for _ in range(100):
            worker.skip(1)
        worker.phase("three")
        worker.child(self.child.split())
        worker.reached(300)
        return {"pid": os.getpid()}


@pytest.fixture
def foreign(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Somebody else's suite, run by a pytest of its own that gets nothing from here."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


def outcome(foreign: pytest.Pytester, *options: str) -> pytest.RunResult:
    return foreign.runpytest_subprocess("-p", "no:hypothesispytest", "-p", "no:timeout", "-v", *options)


# --- somebody else's suite -------------------------------------------------------------------------------------

PASSING = """
def test_a_job(supervisor, source, tmp_path):
    assert supervisor.start(Shift(str(source), str(tmp_path / "target"))).wait(30, check=True).result == {"by": 1}
    assert (tmp_path / "target").read_bytes() == b"IBM" * 1000


@pytest.mark.parametrize("who", ["worker", "child", "zygote"])
def test_a_death(supervisor, source, tmp_path, who):
    with kill_at(supervisor, "rest", who=who) as death:
        supervisor.start("shift", source=source, target=tmp_path / "target")
    assert death.info.phase == "rest"
    info = supervisor.job(death.info.id).wait(30)
    assert info.ok == (who == "zygote") == (tmp_path / "target").exists()


class TestInAClass:
    def test_a_type_of_its_own(self, supervisor, job_type):
        @job_type
        class Square(JobType, tag="square"):
            number: int = 3

            def run(self, worker) -> dict[str, Any]:
                return {"square": self.number**2, "shift": SHIFT}

        assert supervisor.start(Square(number=5)).wait(30, check=True).result == {"square": 25, "shift": 1}


def test_what_is_left_by_closing_is_aborted(supervisor, job_type):
    @job_type
    class Forever(JobType, tag="forever"):
        def run(self, worker):
            time.sleep(3600)

    supervisor.start(Forever()).wait(30, until="running")
    supervisor.close()
    assert [process.kind for process in processes_of(supervisor.home)].count("worker") == 1
"""


@pytest.mark.parametrize("mode", ["prepend", "importlib", "package"])
def test_a_foreign_suite_passes(foreign: pytest.Pytester, mode: str) -> None:
    directory = foreign.mkpydir("suite") if mode == "package" else foreign.mkdir("suite")
    (directory / "test_shift.py").write_text(SUITE + PASSING)
    result = outcome(foreign, "--import-mode", "prepend" if mode == "package" else mode)
    result.assert_outcomes(passed=6)


LEAVING = '''
from jobvisor import Client, Supervisor
from jobvisor.testing import locks_below, wait_until

forgotten = []


def left_by_a_child(home):
    """What a child looks like that escaped its job."""
    directory = os.path.join(home, "jobs", "1")
    return os.spawnvpe(os.P_NOWAIT, "sleep", ["sleep", "600"], {**os.environ, "JOBVISOR_JOB_DIRECTORY": directory})


def test_process(supervisor, tmp_path):
    with open("started", "a") as file:
        print(left_by_a_child(supervisor.home), file=file)


def test_lock(supervisor, source):
    process = os.posix_spawnp("flock", ["flock", source, "sleep", "600"], os.environ, setsid=True)
    with open("started", "a") as file:
        print(process, file=file)
    wait_until(lambda: locks_below(source.parent))


def test_descriptor(supervisor):
    os.open("/dev/full", os.O_RDONLY)


def test_file(supervisor, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".jobvisor-7-abcd").touch()


def test_supervisor(supervisor, source, tmp_path, job_type):
    @job_type
    class Forever(JobType, tag="forever"):
        source: Annotated[str, volume("what to lock", READ)]

        def run(self, worker):
            time.sleep(3600)

    supervisor.close()
    forgotten.append(Supervisor(supervisor.home, types=[__name__, str(tmp_path / "scratch_types.py")]))
    forgotten[0].start(Forever(str(source))).wait(30, until="running")


def test_clean(supervisor, source, tmp_path):
    supervisor.start(Shift(str(source), str(tmp_path / "target"))).wait(30, check=True)
'''


def test_a_suite_that_leaves_something_fails_and_it_is_named(foreign: pytest.Pytester) -> None:
    foreign.makepyfile(test_leaving=SUITE + LEAVING)
    try:
        result = outcome(foreign)
    finally:
        for pid in map(int, (foreign.path / "started").read_text().split()):
            for victim in [pid, *_members(pid)]:
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    pass
    result.assert_outcomes(passed=6, errors=5)
    result.stdout.fnmatch_lines_random(
        [
            "*test_process0/home: child pid * (sleep 600), state S*",
            "*test_lock0/home: FLOCK WRITE lock of pid * (flock) on *test_lock0/source*",
            "*test_descriptor0/home: descriptor * (/dev/full)*",
            "*test_file0/home: temporary file *test_file0/deep/.jobvisor-7-abcd*",
            "*test_supervisor0/home: *zygote pid * (jobvisor-zygote)*worker pid * (job:1)*FLOCK READ lock*source*"
            "descriptor*journal.sqlite*",
        ]
    )
    assert "test_clean PASSED" in result.stdout.str()
    assert "test_clean ERROR" not in result.stdout.str()


def _members(session: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _session(int(name)) == session]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


# --- halting and killing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "after"), [("one", 0), ("one", 1), ("one", 50), ("two", 100), ("two", 177), ("three", 0)]
)
def test_a_worker_dies_exactly_there(supervisor: Supervisor, phase: str, after: int) -> None:
    with kill_at(supervisor, phase, after=after) as death:
        supervisor.start(Steps())
    assert (death.info.state, death.info.cause, death.info.phase) == ("failed", "killed", phase)
    assert death.info.data_processed == max(after, {"one": 0, "two": 100, "three": 200}[phase])


def test_a_polite_signal_and_who_sent_it(supervisor: Supervisor) -> None:
    with kill_at(supervisor, "two", signal=signal.SIGTERM) as death:
        supervisor.start(Steps())
    assert (death.info.state, death.info.cause) == ("aborted", "outsider-signal")
    assert death.info.ended_by is not None
    assert death.info.ended_by.pid == os.getpid()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_in_its_phase(supervisor: Supervisor, number: int) -> None:
    with kill_at(supervisor, "three", who="child", signal=number) as death:
        supervisor.start(Steps(child="sleep 3600"))
    assert (death.info.state, death.info.cause) == ("failed", "outsider-signal")
    assert signal.Signals(number).name in (death.info.errmsg or "")


def test_a_zygote_dies_and_the_job_goes_on(supervisor: Supervisor) -> None:
    with kill_at(supervisor, "two", who="zygote") as death:
        job = supervisor.start(Steps())
    assert job.wait(30).ok
    assert death.info.pid is not None
    assert supervisor.start(Steps()).wait(30).ok


def test_a_halted_job_can_be_worked_on(supervisor: Supervisor) -> None:
    with halt_at(supervisor, "two") as halt:
        bystander = supervisor.start(Steps())
        job = halt.wait()
        assert job == bystander
        assert supervisor.start(Steps()).wait(30).ok
        assert job.suspend().state == "suspended"
        assert job.resume().state == "running"
        kinds = {process.pid: process.kind for process in processes_of(supervisor.home)}
        assert kinds[supervisor.pids()[job.id]] == "worker"
        assert sorted(kinds.values()) == ["worker", "zygote"]
        life = f"{supervisor.home}/jobs/{job.id}/life"
        assert life in locks_below(supervisor.home).values()
        assert job.abort().state == "aborted"


def test_a_halted_job_goes_on_when_it_is_let_go(supervisor: Supervisor) -> None:
    with halt_at(supervisor, "three", child=True) as halt:
        job = supervisor.start(Steps())
        halt.wait()
        assert halt.child is not None
        assert halt.worker == job.info().pid
        halt.release()
        assert job.wait(30).ok


def test_a_job_that_does_not_come_there_fails_the_test_clearly(supervisor: Supervisor) -> None:
    with (
        pytest.raises(
            AssertionError, match=r"no job came to the place in phase 'four': job 1 completed in phase 'three'"
        ),
        kill_at(supervisor, "four"),
    ):
        supervisor.start(Steps())
    with pytest.raises(AssertionError, match=r"in phase 'one': job 2 completed"), kill_at(supervisor, "one", after=101):
        supervisor.start(Steps())
    survived = pytest.raises(AssertionError, match="signal 18 did not end the worker")
    with survived, kill_at(supervisor, "one", signal=signal.SIGCONT, timeout=0.2):
        supervisor.start(Steps(child="sleep 3600"))


def test_a_supervisor_without_the_module_is_refused(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "home", tmp_path), Supervisor(tmp_path / "home") as supervisor:
        refused = pytest.raises(ValueError, match=r"types=\['jobvisor_workers.testing'")
        with refused, kill_at(supervisor, "one"):
            pass


# --- declaring -------------------------------------------------------------------------------------------------


def test_what_cannot_be_declared(supervisor: Supervisor, job_type: Scratch) -> None:
    from jobvisor.testing import job_type as at_top_level

    local = 3

    class Local(JobType, tag="local"):
        def run(self, worker: Worker) -> dict[str, Any]:
            return {"local": local}

    class Idle(JobType, tag="idle"):
        pass

    class Nameless(Steps):
        def run(self, worker: Worker) -> dict[str, Any]:
            return {}

    for declare, declared, text in [
        (job_type, Local, "uses local of the test: hand it over as a field"),
        (job_type, Idle, "has no run"),
        (job_type, dict, "is no job type"),
        (at_top_level, Local, "use the fixture job_type"),
    ]:
        with pytest.raises(TypeError, match=text):
            declare(declared)  # type: ignore[operator]
    assert supervisor.start(Steps()).wait(30).ok

    class Late(JobType, tag="late"):
        def run(self, worker: Worker) -> dict[str, Any]:
            return {}

    with pytest.raises(RuntimeError, match="before the test starts its first job"):
        job_type(Late)


# --- what is left ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ours"), [("job:1", True), ("sleeper", False)])
def test_a_zombie_is_told_by_its_session_if_that_is_a_workers(tmp_path: Path, name: str, ours: bool) -> None:
    home = tmp_path / "home"
    (home / "jobs" / "1").mkdir(parents=True)
    program = (
        "import os, sys, time\nos.setsid()\nopen('/proc/self/comm', 'w').write(sys.argv[1])\n"
        "if os.fork() == 0: os._exit(0)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, name]) as leader:
        try:
            wait_until(lambda: any(_is_zombie(pid) for pid in _members(leader.pid)))
            (zombie,) = [pid for pid in _members(leader.pid) if _is_zombie(pid)]
            (home / "jobs" / "1" / "life").write_text(f'{{"is":"claim","pid":{leader.pid},"pipe":5,"at":1.0}}\n')
            found = {(process.pid, process.state) for process in processes_of(home)}
        finally:
            leader.kill()
    assert found == ({(leader.pid, "S"), (zombie, "Z")} if ours else set())
    wait_until(lambda: not processes_of(home), what="init's zombies do not count")


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"Z"
    except OSError:
        return False


def test_what_was_there_before_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with open(tmp_path / "mine") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with nothing_left(tmp_path / "home", tmp_path):
            pass
        held = locks_below(tmp_path)
        assert list(held.values()) == [str(tmp_path / "mine")]
        assert [lock.pid for lock in held] == [os.getpid()]


def test_a_failing_test_is_not_blamed_for_more_than_its_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), nothing_left(tmp_path / "home", tmp_path):
        raise ZeroDivisionError


def test_wait_until_says_what_did_not_come() -> None:
    begin = time.monotonic()
    with pytest.raises(AssertionError, match=r"a miracle: not within 0.05 s"):
        wait_until(lambda: False, 0.05, "a miracle")
    assert time.monotonic() - begin >= 0.05
    assert wait_until(lambda: "something") == "something"


def test_a_daemon_is_a_process_of_its_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Client(home=home) as client:
        pid = client.daemon().pid
        assert [(process.pid, process.kind) for process in processes_of(home)] == [(pid, "daemon")]
        assert processes_of(tmp_path / "other") == []
    kill_processes_of(home)
    wait_until(lambda: not processes_of(home))
