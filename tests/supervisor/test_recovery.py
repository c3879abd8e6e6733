"""What is said of a job agrees with what its processes left, wherever they died."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from jobvisor import Cause, JobInfo, State, Supervisor
from jobvisor.recovery import Alive, Ended, Unclaimed, conclude, look, void
from jobvisor.testing import job_type, kill_processes_of, nothing_left, wait_until
from jobvisor_workers import READ, WRITE, JobType, Worker, new_volume, volume
from jobvisor_workers.protocol import Claim, Commit, Exit, Failure, Linked, Report, Result, Sender, Temporary, encode
from jobvisor_workers.runtime import claim
from jobvisor_workers.settle import read_life, settle


@job_type
class Copy(JobType, tag="test-copy"):
    """Copy a small file, after a gate was opened."""

    source: Annotated[str, volume("volume to read", READ)]
    target: Annotated[str, new_volume("where the copy goes")]
    gate: str
    replace: bool = False

    def run(self, worker: Worker) -> dict[str, Any]:
        with worker.open(self.source) as source, worker.create(self.target, replace=self.replace) as output:
            os.pwrite(output.fd, os.pread(source.fd, source.size, 0), 0)
        worker.phase("gate")
        while not os.path.exists(self.gate):
            pass
        return {"size": source.size}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "job"
    path.mkdir()
    (path / "request").touch()
    return path


BASE = JobInfo(id=7, type="copy", state=State.RUNNING, created=1.0, started=2.0, data_total=100)


def test_a_job_that_was_declared_void_cannot_be_claimed_any_more(directory: Path) -> None:
    """Otherwise a worker forked before everybody died could run a job that was called aborted."""
    assert look(str(directory)) == Unclaimed()
    assert void(str(directory))
    assert look(str(directory)) == Ended()
    assert read_life(str(directory)) == []
    fd = os.open(directory, os.O_RDONLY)
    assert claim(fd, 5) is None
    os.close(fd)


def test_a_claimed_job_cannot_be_declared_void_or_claimed_again(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    life = claim(fd, 5)
    assert life is not None
    found = look(str(directory))
    assert isinstance(found, Alive)
    assert found.claim
    assert (found.claim.pid, found.claim.pipe) == (os.getpid(), 5)
    assert not void(str(directory))
    assert claim(fd, 5) is None
    os.close(life)
    assert look(str(directory)) == Ended()
    assert not void(str(directory))
    assert claim(fd, 5) is None
    os.close(fd)


def linked(path: Path, temporary: str | None = None) -> Linked:
    facts = path.stat()
    return Linked(str(path.parent), path.name, facts.st_dev, facts.st_ino, temporary)


def test_a_commit_whose_outputs_all_stand_is_done(tmp_path: Path) -> None:
    outputs = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        outputs.append(linked(tmp_path / name))
    assert settle([Claim(1, 2, 3.0), Commit(outputs, {"n": 2})]) == Commit(outputs, {"n": 2})
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_commit_that_was_not_finished_is_undone(tmp_path: Path) -> None:
    outputs = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        outputs.append(linked(tmp_path / name, f".jobvisor-{name}"))
    (tmp_path / "b").rename(tmp_path / ".jobvisor-b")
    assert settle([Claim(1, 2, 3.0), Commit(outputs, None)]) is None
    assert os.listdir(tmp_path) == []


def test_a_stranger_under_the_name_of_an_output_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("ours")
    intent = linked(tmp_path / "keep")
    (tmp_path / "new").write_text("theirs")
    (tmp_path / "new").rename(tmp_path / "keep")
    assert settle([Commit([intent], None)]) is None
    assert (tmp_path / "keep").read_text() == "theirs"


def test_what_replaced_another_file_is_never_taken_away(tmp_path: Path) -> None:
    """The old content is gone: without the new one both would be lost."""
    (tmp_path / "a").write_text("new")
    replaced = msgspec.structs.replace(linked(tmp_path / "a"), replaces=True)
    missing = Linked(str(tmp_path), "b", replaced.device, replaced.inode + 1)
    assert settle([Commit([replaced, missing], None)]) is None
    assert (tmp_path / "a").read_text() == "new"


def test_temporary_names_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".jobvisor-7-x").touch()
    assert settle([Claim(1, 2, 3.0), Temporary(str(tmp_path), ".jobvisor-7-x")]) is None
    assert os.listdir(tmp_path) == []


def test_a_line_that_was_cut_off_is_not_believed(directory: Path) -> None:
    (directory / "life").write_bytes(encode(Claim(4711, 5, 6.0)) + b'\n{"is":"commit","outp')
    assert read_life(str(directory)) == [Claim(4711, 5, 6.0)]


REPORT = Report("running", "copy", 50, 100)
SENDER = Sender(15, 42, 1000, "kill 4711")
VERDICTS: dict[str, tuple[Result | None, Exit | None, bool, State, Cause | None]] = {
    "its word": (Result("completed", REPORT, {}), None, False, State.COMPLETED, None),
    "its word, though an abort came": (Result("completed", REPORT, {}), None, True, State.COMPLETED, None),
    "failed": (
        Result("failed", REPORT, failure=Failure("no-space", "full")), None, False, State.FAILED, Cause.NO_SPACE,
    ),
    "aborted on request": (Result("aborted", REPORT, sender=SENDER), None, True, State.ABORTED, None),
    "aborted by the zygote's note": (
        Result("aborted", REPORT, sender=SENDER), Exit(9, 3.0, status=1, asked="abort"), False, State.ABORTED, None,
    ),
    "ended by an outsider": (
        Result("aborted", REPORT, sender=SENDER), None, False, State.ABORTED, Cause.OUTSIDER_SIGNAL,
    ),
    "too late": (
        Result("aborted", REPORT), Exit(9, 3.0, asked="time-limit"), False, State.FAILED, Cause.TIME_LIMIT,
    ),
    "a child failed in the abort": (
        Result("failed", REPORT, failure=Failure("error", "exit 143")), None, True, State.ABORTED, None,
    ),
    "killed": (None, Exit(9, 3.0, signal=9), False, State.FAILED, Cause.KILLED),
    "killed after the grace period": (None, Exit(9, 3.0, signal=9, killed=True), True, State.ABORTED, None),
    "crashed": (None, Exit(9, 3.0, signal=11), False, State.FAILED, Cause.CRASHED),
    "left without a word": (None, Exit(9, 3.0, status=3), False, State.FAILED, Cause.CRASHED),
    "ended before it could hear": (None, Exit(9, 3.0, signal=15), False, State.ABORTED, Cause.OUTSIDER_SIGNAL),
    "alarm": (None, Exit(9, 3.0, signal=14), False, State.FAILED, Cause.OUTSIDER_SIGNAL),
    "nobody saw it": (None, None, False, State.FAILED, Cause.WORKER_LOST),
}  # fmt: skip


@pytest.mark.parametrize("name", list(VERDICTS))
def test_a_verdict(directory: Path, name: str) -> None:
    result, exit_, asked, state, cause = VERDICTS[name]
    (directory / "life").write_bytes(encode(Claim(9, 5, 6.0)) + b"\n")
    if result:
        (directory / "result").write_bytes(encode(result))
    if exit_:
        (directory / "exit").write_bytes(encode(exit_))

    info = conclude(str(directory), BASE, None, asked=asked)

    assert (info.state, info.cause) == (state, cause)
    assert bool(info.errmsg) == (cause is not None or bool(result and result.failure))
    assert info.ended is not None
    if result:
        assert (info.data_processed, info.data_remaining, info.phase) == (50, 50, "copy")


def test_a_reboot_is_told(directory: Path) -> None:
    (directory / "life").write_bytes(encode(Claim(9, 5, 6.0)) + b"\n")
    info = conclude(str(directory), BASE, None, asked=False, lost="the host was started anew")
    assert (info.cause, info.errmsg) == (Cause.HOST_REBOOT, "the host was started anew")


def test_a_log_keeps_its_end(directory: Path) -> None:
    (directory / "log").write_bytes(b"a" * (1 << 20) + b"the end")
    conclude(str(directory), BASE, None, asked=False)
    assert (directory / "log").stat().st_size == 1 << 20
    assert (directory / "log").read_bytes().endswith(b"athe end")


#: Where the worker is killed, by the system call it is about to make, and whether its job has completed then.
COMMITS = [("linkat", False, False), ("renameat", False, True), ("linkat", True, False), ("renameat", True, False)]


@pytest.mark.parametrize(("call", "replace", "done"), COMMITS)
def test_job_and_file_agree_wherever_the_commit_is_cut(
    supervisor: Supervisor, tmp_path: Path, call: str, replace: bool, done: bool
) -> None:
    """The first renameat after the gate is the target's with --replace, and that of the result without."""
    (tmp_path / "source").write_bytes(b"new" * 1000)
    if replace:
        (tmp_path / "target").write_bytes(b"old")
    paths = {name: str(tmp_path / name) for name in ("source", "target", "gate")}
    with supervisor.events() as events:
        job = supervisor.start("test-copy", replace=replace, **paths)  # type: ignore[arg-type]
        next(event for event in events if event.job.phase == "gate" or event.job.final)
    with killed_at(supervisor.pids()[job.id], call, tmp_path / "strace"):
        (tmp_path / "gate").touch()
        info = job.wait(20)

    assert info.state is (State.COMPLETED if done else State.FAILED)
    assert info.result == ({"size": 3000} if done else None)
    if done:
        assert (tmp_path / "target").read_bytes() == b"new" * 1000
    elif replace:
        assert (tmp_path / "target").read_bytes() == b"old"
    else:
        assert not (tmp_path / "target").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".jobvisor")]


def test_a_target_that_somebody_made_meanwhile_is_left_alone(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"new")
    job = supervisor.start("test-copy", **{name: str(tmp_path / name) for name in ("source", "target", "gate")})  # type: ignore[arg-type]
    job.wait(10, until=State.RUNNING)
    wait_until(lambda: job.info().phase == "gate")
    (tmp_path / "target").write_bytes(b"theirs")
    (tmp_path / "gate").touch()

    info = job.wait(10)

    assert info.state is State.FAILED
    assert "somebody else made it meanwhile" in (info.errmsg or "")
    assert (tmp_path / "target").read_bytes() == b"theirs"


@contextmanager
def killed_at(pid: int, call: str, log: Path) -> Iterator[None]:
    """SIGKILL as the process enters a system call."""
    inject = f"inject={call}:signal=KILL:when=1"
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-e", f"trace={call}", "-e", inject, "-o", str(log)], stderr=subprocess.PIPE
    )
    assert tracer.stderr is not None
    assert b"attached" in tracer.stderr.readline()
    try:
        yield
    finally:
        tracer.kill()
        tracer.communicate()


@contextmanager
def rebooted(home: Path) -> Iterator[None]:
    """While the block runs all jobs of a closed supervisor's home die; then they are of an earlier boot."""
    yield
    kill_processes_of(home)
    with sqlite3.connect(home / "journal.sqlite") as db:
        for job, notes in db.execute("SELECT id, notes FROM jobs").fetchall():
            earlier = {**msgspec.json.decode(notes), "boot": "an earlier one"}
            db.execute("UPDATE jobs SET notes=? WHERE id=?", (msgspec.json.encode(earlier), job))
    db.close()


@job_type
class Scribble(JobType, tag="test-scribble"):
    """Write into one volume, read another, make a third, and never end."""

    written: Annotated[str, volume("written in place", WRITE)]
    read: Annotated[str, volume("only read", READ)]
    made: Annotated[str, new_volume("to be made")]

    def run(self, worker: Worker) -> None:
        with worker.create(self.made, size=1):
            worker.phase("scribble")
            while True:
                time.sleep(0.01)


def test_after_a_reboot_the_truth_is_told_of_each_volume(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("a", "b"):
        (tmp_path / name).touch()
    args: dict[str, Any] = {"written": str(tmp_path / "a"), "read": str(tmp_path / "b"), "made": str(tmp_path / "c")}
    with nothing_left(home, tmp_path):
        with Supervisor(home, types=[__name__]) as supervisor:
            job = supervisor.start("test-scribble", **args)
            wait_until(lambda: job.info().phase == "scribble", 10)
            behind = supervisor.start("test-scribble", **args)
        with rebooted(home):
            pass
        with Supervisor(home, types=[__name__]) as supervisor:
            info = supervisor.job(job.id).wait(10)
            assert (info.state, info.cause) == (State.FAILED, Cause.HOST_REBOOT)
            assert info.errmsg == (
                "the host was started anew while the job ran; "
                f"{tmp_path / 'a'} may be partly changed; {tmp_path / 'c'} was not created"
            )
            assert not (tmp_path / "c").exists()
            # What never ran is run now, and is of this boot: its death is no reboot.
            pid = supervisor.job(behind.id).wait(10, until=State.RUNNING).pid
            assert pid
            os.kill(pid, 9)
            assert supervisor.job(behind.id).wait(10).cause == Cause.KILLED


def test_an_output_that_stands_after_a_reboot_is_done(tmp_path: Path) -> None:
    home, gate = tmp_path / "home", tmp_path / "gate"
    (tmp_path / "a").write_text("content")
    with nothing_left(home, tmp_path):
        with Supervisor(home, types=[__name__]) as supervisor:
            args: dict[str, Any] = {"source": str(tmp_path / "a"), "target": str(tmp_path / "b"), "gate": str(gate)}
            job = supervisor.start("test-copy", **args)
            wait_until(lambda: job.info().phase == "gate", 10)
        with rebooted(home):
            (tmp_path / "b").write_text("content")
            with open(home / "jobs" / str(job.id) / "life", "ab") as life:
                life.write(encode(Commit([linked(tmp_path / "b")], {"size": 7})) + b"\n")
        with Supervisor(home, types=[__name__]) as supervisor:
            info = supervisor.job(job.id).wait(10)
            assert (info.state, info.result) == (State.COMPLETED, {"size": 7})


def test_the_time_limit_of_an_adopted_worker_counts_from_its_own_start(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "a").touch()
    with nothing_left(home, tmp_path):
        with Supervisor(home, types=[__name__]) as supervisor:
            args: dict[str, Any] = {
                "source": str(tmp_path / "a"),
                "target": str(tmp_path / "b"),
                "gate": str(tmp_path / "gate"),
            }
            job = supervisor.start("test-copy", time_limit=2.0, **args)
            job.wait(10, until=State.RUNNING)
            began = time.monotonic()
            (zygote,) = supervisor._core.zygotes().result()
        os.kill(zygote, 9)
        wait_until(lambda: time.monotonic() - began > 1.2, 10)
        with Supervisor(home, types=[__name__]) as supervisor:
            info = supervisor.job(job.id).wait(10)
            assert info.cause == Cause.TIME_LIMIT
            assert 1.8 < time.monotonic() - began < 3.0
            assert 1900 < info.time_elapsed < 3000
