"""Jobs that read what their user sends, and write what their user reads."""

import hashlib
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jobvisor import Job, State, Supervisor, streams
from jobvisor.asking import Options
from jobvisor.testing import job_type, wait_until
from jobvisor_workers import JobType, Worker
from jobvisor_workers.protocol import Requester

ANN = Requester(65533, 65533, [65533], "ann", "/nonexistent")


@job_type
class Sink(JobType, tag="test-sink"):
    """Digest of what is sent."""

    stop_after: int | None = None
    reads_stdin: ClassVar[bool] = True

    def run(self, worker: Worker) -> dict[str, Any]:
        digest = hashlib.sha256()
        with worker.stdin() as stdin:
            worker.phase("read")
            while piece := stdin.read():
                digest.update(piece)
                worker.advance(len(piece))
                if self.stop_after and stdin.count >= self.stop_after:
                    break
        return {"digest": digest.hexdigest(), "count": stdin.count}


@job_type
class Source(JobType, tag="test-source"):
    """Write so many bytes."""

    size: int
    writes_stdout: ClassVar[bool] = True

    def run(self, worker: Worker) -> dict[str, Any]:
        with worker.stdout() as stdout:
            worker.phase("write")
            for start in range(0, self.size, 1 << 20):
                stdout.write(bytes([start >> 20 & 0xFF]) * min(1 << 20, self.size - start))
                worker.advance(min(1 << 20, self.size - start))
        return {"count": stdout.count}


@job_type
class Plain(JobType, tag="test-plain"):
    """Reads without having said so."""

    def run(self, worker: Worker) -> None:
        with worker.stdin() as stdin:
            stdin.read()


def directory(supervisor: Supervisor, job: Job) -> str:
    return str(Path(supervisor.home) / "jobs" / str(job.id))


def opened(open_end: Callable[[str], int | None], where: str) -> int:
    found: list[int] = []

    def is_open() -> bool:
        fd = open_end(where)
        if fd is not None:
            found.append(fd)
        return fd is not None

    wait_until(is_open, 10)
    return found[0]


def send(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        select.select([], [fd], [], 10)
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            pass


def receive(fd: int, most: int = 1 << 30) -> bytes:
    content = b""
    while len(content) < most:
        assert select.select([fd], [], [], 10)[0]
        piece = os.read(fd, 1 << 16)
        if not piece:
            break
        content += piece
    return content


def test_input_is_read_to_its_end(supervisor: Supervisor) -> None:
    job = supervisor.start("test-sink")
    where = directory(supervisor, job)
    assert job.wait(10, until=State.WAITING).reason == "its input, which nobody sends yet"
    fd = opened(streams.open_input, where)
    content = os.urandom(5 << 20)
    send(fd, content)
    streams.finish_input(where, len(content))
    os.close(fd)
    info = job.wait(10)
    assert info.ok, info.errmsg
    assert info.result == {"digest": hashlib.sha256(content).hexdigest(), "count": len(content)}


def test_input_that_is_cut_off_never_looks_complete(supervisor: Supervisor) -> None:
    job = supervisor.start("test-sink")
    fd = opened(streams.open_input, directory(supervisor, job))
    send(fd, b"x" * 100_000)
    os.close(fd)
    info = job.wait(10)
    assert info.state is State.FAILED
    assert info.errmsg == "cannot test-sink: its input ended after 100000 bytes, before its sender was done"


def test_less_than_was_said_is_cut_off_too(supervisor: Supervisor) -> None:
    job = supervisor.start("test-sink")
    where = directory(supervisor, job)
    fd = opened(streams.open_input, where)
    send(fd, b"x" * 10)
    streams.finish_input(where, 11)
    os.close(fd)
    assert "ended after 10 bytes" in (job.wait(10).errmsg or "")


def test_empty_input_is_input(supervisor: Supervisor) -> None:
    job = supervisor.start("test-sink")
    where = directory(supervisor, job)
    fd = opened(streams.open_input, where)
    streams.finish_input(where, 0)
    os.close(fd)
    assert job.wait(10).ok


def test_a_sender_learns_that_the_job_has_enough(supervisor: Supervisor) -> None:
    job = supervisor.start("test-sink", stop_after=1)
    fd = opened(streams.open_input, directory(supervisor, job))
    try:
        with pytest.raises(BrokenPipeError):
            send(fd, b"x" * (8 << 20))
    finally:
        os.close(fd)
    assert job.wait(10).ok


def test_a_sender_that_pauses_is_waited_for(supervisor: Supervisor) -> None:
    job = supervisor.start("test-sink")
    where = directory(supervisor, job)
    fd = opened(streams.open_input, where)
    send(fd, b"one")
    job.wait(10, until=State.RUNNING)
    assert job.wait(10, until=State.WAITING).reason == "its input, of which nothing more comes"
    send(fd, b"two")
    assert job.wait(10, until=State.RUNNING).reason is None
    streams.finish_input(where, 6)
    os.close(fd)
    assert job.wait(10).ok


@pytest.mark.parametrize("begun", [False, True], ids=["nobody came", "the other end does nothing"])
@pytest.mark.parametrize("name", ["test-sink", "test-source"])
def test_a_job_that_waits_for_the_other_end_can_be_suspended_and_aborted(
    supervisor: Supervisor, name: str, begun: bool
) -> None:
    job = supervisor.start("test-sink") if name == "test-sink" else supervisor.start("test-source", size=64 << 20)
    job.wait(10, until=State.WAITING)
    fd = -1
    if begun:
        fd = opened(streams.open_input if name == "test-sink" else streams.open_output, directory(supervisor, job))
        wait_until(lambda: job.info().phase is not None, 10)
    try:
        assert job.suspend().state is State.SUSPENDED
        assert job.resume().state in (State.WAITING, State.RUNNING)
        began = time.monotonic()
        assert job.abort().state is State.ABORTED
        assert time.monotonic() - began < 3
    finally:
        if fd >= 0:
            os.close(fd)


def test_output_is_read_to_its_end(supervisor: Supervisor) -> None:
    job = supervisor.start("test-source", size=5 << 20)
    assert job.wait(10, until=State.WAITING).reason == "a reader of its output"
    fd = streams.open_output(directory(supervisor, job))
    content = receive(fd)
    os.close(fd)
    assert content == b"".join(bytes([each]) * (1 << 20) for each in range(5))
    assert job.wait(10).result == {"count": 5 << 20}


def test_a_reader_that_leaves_fails_the_job(supervisor: Supervisor) -> None:
    job = supervisor.start("test-source", size=64 << 20)
    fd = streams.open_output(directory(supervisor, job))
    receive(fd, 1)
    os.close(fd)
    info = job.wait(10)
    assert info.state is State.FAILED
    assert "cannot test-source: the reader of its output left after" in (info.errmsg or "")


def test_a_killed_worker_is_the_end_for_both(supervisor: Supervisor) -> None:
    job = supervisor.start("test-source", size=64 << 20)
    fd = streams.open_output(directory(supervisor, job))
    receive(fd, 1)
    os.kill(job.info().pid or 0, signal.SIGKILL)
    receive(fd)
    os.close(fd)
    assert job.wait(10).cause == "killed"


def test_a_type_that_did_not_say_so_has_no_pipes(supervisor: Supervisor) -> None:
    job = supervisor.start("test-plain")
    assert "does not declare reads_stdin" in (job.wait(10).errmsg or "")
    for open_end in (streams.open_input, streams.open_output):
        with pytest.raises(FileNotFoundError):
            open_end(directory(supervisor, job))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for somebody else")
def test_pipes_of_a_job_of_another_user(supervisor: Supervisor) -> None:
    core = supervisor._core.seen_by(ANN)
    job = supervisor.job(core.start("test-sink", Options(), {}).result(10).id)
    where = directory(supervisor, job)
    fd = opened(streams.open_input, where)
    assert (os.fstat(fd).st_uid, os.fstat(fd).st_mode & 0o777) == (ANN.uid, 0o600)
    send(fd, b"abc")
    streams.finish_input(where, 3)
    os.close(fd)
    assert job.wait(10).ok, job.info().errmsg
    job = supervisor.job(core.start("test-source", Options(), {"size": 10}).result(10).id)
    fd = streams.open_output(directory(supervisor, job))
    assert receive(fd) == bytes(10)
    os.close(fd)
    assert job.wait(10).ok
