"""Suspend, resume and abort are true when they return, whoever sends the signals and whatever has died meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import pytest

from jobvisor import Cause, Job, State, Supervisor, WrongState
from jobvisor.testing import halt_at, job_type, wait_until
from jobvisor_workers import WRITE, JobType, Worker, new_volume, volume
from jobvisor_workers.control import children_of, descendants, is_stopped
from support.deaf_types import be_deaf

ENDLESS = 'while :; do echo x >> "$0"; done'


@job_type
class Write(JobType, tag="test-write"):
    """Write to a file without end, from several threads or from a child."""

    marks: str
    threads: int = 1
    child: bool = False

    def run(self, worker: Worker) -> None:
        worker.phase("write")
        if self.child:
            worker.child(["sh", "-c", ENDLESS, self.marks])
            return
        for number in range(self.threads - 1):
            threading.Thread(target=self._write, args=(number,), daemon=True).start()
        self._write(self.threads, worker)

    def _write(self, number: int, worker: Worker | None = None) -> None:
        with open(f"{self.marks}.{number}", "ab", buffering=0) as file:
            while True:
                file.write(b"x")
                if worker:
                    worker.advance(1)


@job_type
class Hold(JobType, tag="test-hold"):
    """Lock a volume and wait."""

    volume: Annotated[str, volume("volume to lock", WRITE)]

    def run(self, worker: Worker) -> None:
        worker.phase("hold")
        time.sleep(3600)


@job_type
class Children(JobType, tag="test-children"):
    """Start one short child after the other."""

    def run(self, worker: Worker) -> None:
        worker.phase("children")
        while True:
            worker.child(["true"])


@job_type
class Deaf(JobType, tag="test-deaf"):
    """Ignore every request to end, as a worker in a long system call does."""

    def run(self, worker: Worker) -> None:
        be_deaf()
        worker.phase("deaf")
        time.sleep(3600)


@job_type
class Finalizers(JobType, tag="test-finalizers"):
    """Spend half the time in __del__, where Python swallows every exception."""

    def run(self, worker: Worker) -> None:
        class Slow:
            def __del__(self) -> None:
                time.sleep(0.005)

        worker.phase("finalizers")
        while True:
            Slow()
            time.sleep(0.005)


@job_type
class Sync(JobType, tag="test-sync"):
    """Dirty much, then make it durable in the closing fsync."""

    target: Annotated[str, new_volume("where it goes")]
    size: int = 64 << 20

    def run(self, worker: Worker) -> dict[str, Any]:
        with worker.create(self.target, size=self.size) as output:
            for offset in range(0, self.size, 1 << 20):
                os.pwrite(output.fd, os.urandom(1 << 10) * 1024, offset)
            worker.phase("sync")
        worker.phase("after")
        time.sleep(3600)
        return {}


@job_type
class Escape(JobType, tag="test-escape"):
    """Leave processes behind: one in the group, one in a session of its own."""

    marks: str
    how: str = "group"

    def run(self, worker: Worker) -> None:
        marked = f"echo $$ >> {self.marks}; exec sleep 3600"
        prefix = ["setsid"] if self.how == "session" else []
        subprocess.Popen([*prefix, "sh", "-c", marked])
        while not os.path.exists(self.marks) or not os.path.getsize(self.marks):
            time.sleep(0.001)
        worker.phase("escaped")
        if self.how == "ignore":
            time.sleep(3600)


def started(supervisor: Supervisor, name: str, phase: str, **args: Any) -> Job:
    """A job that is known to be in a phase."""
    with supervisor.events() as events:
        job = supervisor.start(name, **args)
        for event in events:
            if event.job.id == job.id and event.job.phase == phase:
                return job
            assert not (event.job.id == job.id and event.job.final), event.job.errmsg
    raise AssertionError


def sizes(directory: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(directory.glob("marks*"))]


def assert_still(directory: Path) -> None:
    """No byte is written: two looks differ only if some thread still runs."""
    before = sizes(directory)
    assert before
    for _ in range(20):
        time.sleep(0.005)
        assert sizes(directory) == before


def grow(directory: Path) -> None:
    before = sum(sizes(directory))
    wait_until(lambda: sum(sizes(directory)) > before)


@pytest.mark.parametrize("how", [{"threads": 1}, {"threads": 4}, {"child": True}], ids=["alone", "threads", "child"])
def test_suspended_means_that_nothing_moves(supervisor: Supervisor, tmp_path: Path, how: dict[str, Any]) -> None:
    """Each thread of each process is in T when suspend() returns, and goes on after resume()."""
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"), **how)
    wait_until(lambda: sizes(tmp_path))
    grow(tmp_path)
    for _ in range(5):
        info = job.suspend()

        assert info.state is State.SUSPENDED
        assert info.suspended_by == "request"
        assert all(is_stopped(pid) for pid in descendants(info.pid or 0))
        assert_still(tmp_path)

        assert job.resume().state is State.RUNNING
        grow(tmp_path)


def test_a_stop_between_fork_and_exec_of_a_child_is_a_stop(supervisor: Supervisor) -> None:
    """vfork would leave the worker in D and the child in T for as long as the stop lasts."""
    job = started(supervisor, "test-children", "children")
    for _ in range(60):
        assert job.suspend().state is State.SUSPENDED
        job.resume()


@pytest.mark.parametrize("who", ["worker", "child"])
def test_an_outsiders_stop_of_one_process_stops_the_whole_job(supervisor: Supervisor, tmp_path: Path, who: str) -> None:
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"), child=True)
    wait_until(lambda: sizes(tmp_path))
    worker = supervisor.pids()[job.id]
    child = children_of(worker)[0]
    os.kill(worker if who == "worker" else child, signal.SIGSTOP)

    info = job.wait(10, until=State.SUSPENDED)

    assert info.state is State.SUSPENDED
    assert info.suspended_by == "outsider"
    assert_still(tmp_path)
    os.kill(worker, signal.SIGCONT)
    assert job.wait(10, until=State.RUNNING).state is State.RUNNING
    grow(tmp_path)


def test_an_outsiders_continuation_of_the_child_alone_resumes_the_whole_job(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"), child=True)
    wait_until(lambda: sizes(tmp_path))
    job.suspend()
    os.kill(children_of(supervisor.pids()[job.id])[0], signal.SIGCONT)

    assert job.wait(10, until=State.RUNNING).state is State.RUNNING
    assert not is_stopped(supervisor.pids()[job.id])


def test_a_suspended_job_outlives_its_zygote(supervisor: Supervisor, tmp_path: Path) -> None:
    """In one session with the zygote its group would be orphaned, and get SIGHUP and SIGCONT from the kernel."""
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"), child=True)
    wait_until(lambda: sizes(tmp_path))
    job.suspend()
    kill_zygotes(supervisor)

    assert_still(tmp_path)
    assert job.info().state is State.SUSPENDED
    job.resume()
    grow(tmp_path)
    assert job.suspend().state is State.SUSPENDED
    assert_still(tmp_path)
    assert job.abort().state is State.ABORTED


def test_an_outsiders_stop_without_a_zygote_is_seen_too(supervisor: Supervisor, tmp_path: Path) -> None:
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"))
    kill_zygotes(supervisor)
    os.kill(supervisor.pids()[job.id], signal.SIGSTOP)

    assert job.wait(10, until=State.SUSPENDED).suspended_by == "outsider"
    os.kill(supervisor.pids()[job.id], signal.SIGCONT)
    assert job.wait(10, until=State.RUNNING).state is State.RUNNING


@pytest.mark.parametrize("zygote", ["alive", "dead"])
@pytest.mark.parametrize("suspended", [False, True], ids=["running", "suspended"])
@pytest.mark.parametrize("child", [False, True], ids=["alone", "child"])
def test_abort_ends_the_whole_tree(
    supervisor: Supervisor, tmp_path: Path, child: bool, suspended: bool, zygote: str
) -> None:
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"), child=child)
    wait_until(lambda: sizes(tmp_path))
    tree = descendants(supervisor.pids()[job.id])
    if suspended:
        job.suspend()
    if zygote == "dead":
        kill_zygotes(supervisor)

    info = job.abort()

    assert (info.state, info.cause) == (State.ABORTED, None)
    assert not [pid for pid in tree if not is_stopped(pid)]
    assert_still(tmp_path)


def test_abort_while_waiting_for_a_lock(supervisor: Supervisor, tmp_path: Path) -> None:
    """flock(1) in a shell holds a job in waiting, and is named."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 4096)
    with flocked(image) as holder:
        job = supervisor.start("test-hold", volume=str(image))

        info = job.wait(10, until=State.WAITING)

        assert info.holder is not None
        assert info.holder.pid in descendants(holder.pid)
        assert "flock" in info.holder.command
        assert job.abort().state is State.ABORTED
    assert supervisor.start("test-hold", volume=str(image)).wait(10, until=State.RUNNING).state is State.RUNNING


def test_suspended_while_waiting_for_a_lock(supervisor: Supervisor, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x")
    with flocked(image):
        job = supervisor.start("test-hold", volume=str(image))
        job.wait(10, until=State.WAITING)
        assert job.suspend().state is State.SUSPENDED
    assert job.info().state is State.SUSPENDED
    assert job.resume().state in (State.WAITING, State.RUNNING)
    assert job.wait(10, until=State.RUNNING).state is State.RUNNING


def test_a_lock_is_not_granted_before_the_last_writer_is_dead(supervisor: Supervisor, tmp_path: Path) -> None:
    """The child holds the lock of its killed worker until it is dead too."""
    image = tmp_path / "image"
    image.write_bytes(b"x" * 4096)

    first = started(supervisor, "test-lock-child", "write", volume=str(image), marks=str(tmp_path / "marks"))
    wait_until(lambda: sizes(tmp_path))
    second = subprocess.Popen(["flock", str(image), "stat", "-c", "%s", str(tmp_path / "marks")], stdout=-1)
    os.kill(supervisor.pids()[first.id], signal.SIGKILL)
    seen, _ = second.communicate(timeout=20)

    assert first.wait(10).cause == Cause.KILLED
    assert int(seen) == (tmp_path / "marks").stat().st_size


@job_type
class LockChild(JobType, tag="test-lock-child"):
    """A child writes as long as it lives, under the worker's lock."""

    volume: Annotated[str, volume("volume to lock", WRITE)]
    marks: str

    def run(self, worker: Worker) -> None:
        worker.phase("write")
        worker.child(["sh", "-c", ENDLESS, self.marks])


def test_abort_in_the_closing_fsync_and_after_it_leaves_nothing(supervisor: Supervisor, tmp_path: Path) -> None:
    for phase in ("sync", "after"):
        job = started(supervisor, "test-sync", phase, target=str(tmp_path / "target"))

        assert job.abort().state is State.ABORTED
        assert not (tmp_path / "target").exists()


def test_a_deaf_worker_is_killed_after_the_grace_period(supervisor: Supervisor) -> None:
    job = started(supervisor, "test-deaf", "deaf")
    assert job.abort(wait=False).state is State.ABORTING
    job.abort(force=True)

    info = job.wait(10)

    assert (info.state, info.cause, info.signal) == (State.ABORTED, None, signal.SIGKILL)


def test_the_grace_period_ends_by_itself(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "home", types=[__name__], grace=0.2) as supervisor:
        job = started(supervisor, "test-deaf", "deaf")

        info = job.abort()

        assert (info.state, info.signal) == (State.ABORTED, signal.SIGKILL)


def test_a_request_to_end_is_heard_inside_finalizers(supervisor: Supervisor) -> None:
    for _ in range(5):
        job = started(supervisor, "test-finalizers", "finalizers")
        info = job.abort()

        assert info.state is State.ABORTED
        assert info.signal is None, "it had to be killed"


def test_an_outsiders_term_is_named(supervisor: Supervisor, tmp_path: Path) -> None:
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"))
    killer = subprocess.Popen([sys.executable, "-c", KILL_AND_STAY, str(supervisor.pids()[job.id])])

    info = job.wait(10)
    killer.kill()
    killer.wait()

    assert (info.state, info.cause) == (State.ABORTED, Cause.OUTSIDER_SIGNAL)
    assert info.ended_by is not None
    assert (info.ended_by.pid, info.ended_by.uid) == (killer.pid, os.getuid())
    assert sys.executable in info.ended_by.command


KILL_AND_STAY = "import os, sys, time; os.kill(int(sys.argv[1]), 15); time.sleep(60)"


def test_an_outsiders_kill_is_told_and_the_children_end_too(supervisor: Supervisor, tmp_path: Path) -> None:
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"), child=True)
    wait_until(lambda: sizes(tmp_path))
    tree = descendants(supervisor.pids()[job.id])
    os.kill(tree[0], signal.SIGKILL)

    info = job.wait(10)

    assert (info.state, info.cause, info.signal) == (State.FAILED, Cause.KILLED, signal.SIGKILL)
    assert not [pid for pid in tree if not is_stopped(pid)]


def test_a_crash_is_told(supervisor: Supervisor, tmp_path: Path) -> None:
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"))
    os.kill(supervisor.pids()[job.id], signal.SIGSEGV)

    info = job.wait(10)

    assert (info.state, info.cause, info.signal) == (State.FAILED, Cause.CRASHED, signal.SIGSEGV)


def test_a_child_killed_by_the_groups_term_is_part_of_the_abort(supervisor: Supervisor, tmp_path: Path) -> None:
    """The child may die of the TERM before the worker hears of it; that is no failure."""
    for number in range(10):
        marks = tmp_path / f"marks{number}"
        job = started(supervisor, "test-write", "write", marks=str(marks), child=True)
        wait_until(marks.exists)

        assert job.abort().state is State.ABORTED


@pytest.mark.parametrize("how", ["group", "session", "ignore"])
def test_nothing_that_a_worker_started_outlives_its_job(supervisor: Supervisor, tmp_path: Path, how: str) -> None:
    job = started(supervisor, "test-escape", "escaped", marks=str(tmp_path / "marks"), how=how)
    if how == "ignore":
        os.kill(supervisor.pids()[job.id], signal.SIGKILL)
    job.wait(10)
    for line in (tmp_path / "marks").read_text().split():
        assert not os.path.exists(f"/proc/{line}") or is_stopped(int(line))


def test_a_time_limit_ends_the_job(supervisor: Supervisor, tmp_path: Path) -> None:
    for zygote in ("alive", "dead"):
        job = supervisor.start("test-write", marks=str(tmp_path / "marks"), time_limit=0.3)
        job.wait(10, until=State.RUNNING)
        if zygote == "dead":
            kill_zygotes(supervisor)

        info = job.wait(10)

        assert (info.state, info.cause) == (State.FAILED, Cause.TIME_LIMIT)


def test_a_wrong_verb_says_what_is_allowed(supervisor: Supervisor, tmp_path: Path) -> None:
    job = started(supervisor, "test-write", "write", marks=str(tmp_path / "marks"))
    with pytest.raises(WrongState) as caught:
        job.resume()
    assert (caught.value.id, caught.value.state, caught.value.verb) == (job.id, "running", "resume")
    assert caught.value.allowed == ["abort", "suspend"]
    job.abort()
    with pytest.raises(WrongState) as caught:
        job.abort()
    assert caught.value.allowed == ["forget", "retry"]


def kill_zygotes(supervisor: Supervisor) -> None:
    """And wait until the supervisor knows that it has none."""
    for pid in supervisor._core.zygotes().result():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not supervisor._core.zygotes().result())


class flocked:
    """A shell command that holds flock(1) on a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "subprocess.Popen[bytes]":
        self._process = subprocess.Popen(
            ["flock", str(self._path), "sh", "-c", "echo; exec sleep 3600"], stdout=subprocess.PIPE, process_group=0
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self._process

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def test_a_time_limit_of_years_harms_neither_zygote_nor_supervisor(supervisor: Supervisor, tmp_path: Path) -> None:
    """epoll takes no timeout of more than 24 days."""
    volume = tmp_path / "volume"
    volume.write_bytes(b"x")
    zygotes = set(supervisor._core.zygotes().result())
    with halt_at(supervisor, "read") as halt:
        supervisor.start("checksum", volume=str(volume), time_limit=900_000_000.0)
        job = halt.wait()
        (zygote,) = set(supervisor._core.zygotes().result()) - zygotes
        os.kill(zygote, signal.SIGKILL)  # now the supervisor itself has to time it
        wait_until(lambda: not supervisor._core.zygotes().result())
        assert job.suspend().state == "suspended"
        job.resume()
    assert job.wait(30).ok
