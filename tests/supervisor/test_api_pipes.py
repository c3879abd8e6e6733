"""Standard input and output of jobs over HTTP: whole or not at all, in both directions."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jobvisor import Supervisor
from jobvisor.testing import job_type, wait_until
from jobvisor_workers import JobError, JobType, Worker
from support.http import Http, receive_all


@job_type
class Swallow(JobType, tag="swallow"):
    """Count the bytes that are sent; wait for a file before each piece."""

    gate: str
    reads_stdin: ClassVar[bool] = True

    def run(self, worker: Worker) -> dict[str, int]:
        with worker.stdin() as stdin:
            worker.phase("swallow")  # somebody sends
            while piece := stdin.read():
                while not os.path.exists(self.gate):
                    time.sleep(0.002)
                worker.advance(len(piece))
        return {"bytes": stdin.count}


@job_type
class Spout(JobType, tag="spout"):
    """Write so many bytes, and perhaps fail then."""

    size: int
    fail: bool = False
    writes_stdout: ClassVar[bool] = True

    def run(self, worker: Worker) -> None:
        with worker.stdout() as stdout:
            for _ in range(self.size // 65536):
                stdout.write(b"s" * 65536)
        if self.fail:
            raise JobError("cannot go on: it was told to fail")


SIZE = 8 << 20


@pytest.fixture
def http(supervisor: Supervisor) -> Iterator[Http]:
    with supervisor.serve() as path:
        yield Http(path)


def start(http: Http, type_: str, **fields: Any) -> str:
    answer = http("POST", "/v1/jobs", {"job": {"type": type_, **fields}})
    assert answer.status == 201, answer.content
    return answer.headers["location"]


def test_all_that_is_sent_arrives(http: Http, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    job = start(http, "swallow", gate=str(gate))
    assert http("PUT", f"{job}/stdin", b"x" * SIZE, Content_Type="application/octet-stream").status == 204
    assert http("GET", f"{job}/wait").json()["result"] == {"bytes": SIZE}


def test_what_is_cut_off_fails_the_job(http: Http, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    job = start(http, "swallow", gate=str(gate))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(http.path)
        head = f"PUT {job}/stdin HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 100_000)
        wait_until(lambda: http("GET", job).json()["data_processed"] == 100_000)
    final = http("GET", f"{job}/wait").json()
    assert (final["state"], final["cause"]) == ("failed", "error")
    assert "100000 bytes" in final["errmsg"]


def test_who_sends_is_held_back_by_a_slow_job_and_nobody_else_is(http: Http, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = start(http, "swallow", gate=str(gate))
    answers: list[Any] = []
    sending = threading.Thread(target=lambda: answers.append(http("PUT", f"{job}/stdin", b"x" * SIZE)))
    sending.start()
    wait_until(lambda: http("GET", job).json()["phase"] == "swallow")
    assert http("PUT", f"{job}/stdin", b"y").json()["code"] == "usage"
    assert not answers
    gate.touch()
    sending.join()
    assert answers[0].status == 204
    assert http("GET", f"{job}/wait").json()["result"] == {"bytes": SIZE}


def test_all_that_is_written_is_received(http: Http) -> None:
    answer = http("GET", f"{start(http, 'spout', size=SIZE)}/stdout")
    assert (answer.status, len(answer.content)) == (200, SIZE)


def test_an_answer_ends_well_only_if_the_job_does(http: Http) -> None:
    job = start(http, "spout", size=SIZE, fail=True)
    content = http.raw(f"GET {job}/stdout HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert content.startswith(b"HTTP/1.1 200")
    assert content.count(b"s") >= SIZE
    assert not content.endswith(b"0\r\n\r\n")
    assert http("GET", f"{start(http, 'spout', size=0, fail=True)}/stdout").json()["code"] == "job-failed"


def test_a_reader_that_leaves_fails_the_job(http: Http) -> None:
    job = start(http, "spout", size=1 << 30)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(http.path)
        connection.sendall(f"GET {job}/stdout HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(1000)
    final = http("GET", f"{job}/wait").json()
    assert (final["state"], final["cause"]) == ("failed", "error")


def test_when_the_daemon_leaves_both_are_broken_off(supervisor: Supervisor, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as reading, socket.socket(socket.AF_UNIX) as sending:
        with supervisor.serve() as path:
            http = Http(path)
            source, sink = start(http, "spout", size=1 << 30), start(http, "swallow", gate=str(tmp_path / "gate"))
            reading.connect(http.path)
            reading.sendall(f"GET {source}/stdout HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert reading.recv(1000)
            sending.connect(http.path)
            head = f"PUT {sink}/stdin HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n"
            sending.sendall(head.encode() + b"x" * 70_000)
            wait_until(lambda: http("GET", sink).json()["phase"] == "swallow")
        assert not receive_all(reading).endswith(b"0\r\n\r\n")
    (tmp_path / "gate").touch()
    assert [supervisor.job(job.id).wait(20).state for job in supervisor.jobs()] == ["failed", "failed"]


def test_jobs_without_pipes_say_so(http: Http, tmp_path: Path) -> None:
    job = start(http, "spout", size=65536)
    assert http("PUT", f"{job}/stdin", b"x").json()["code"] == "usage"
    assert http("GET", f"{job}/stdout").status == 200
    assert http("GET", "/v1/jobs/99/stdout").json()["code"] == "no-such-job"
    assert http("PUT", "/v1/jobs/99/stdin", b"x").json()["code"] == "no-such-job"
