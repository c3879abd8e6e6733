"""The two daemons of docs/examples, run as a reader would run them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobvisor.testing import nothing_left, processes_of, wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@contextmanager
def running(program: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-W", "error", str(EXAMPLES / program), str(directory)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as daemon:
        try:
            wait_until(lambda: answers(directory) or daemon.poll() is not None, what="the daemon answers")
            yield daemon
        finally:
            daemon.kill()


def answers(directory: Path) -> bool:
    try:
        connect(directory).close()
    except OSError:
        return False
    return True


def connect(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(directory / "socket"))
    except BaseException:
        connection.close()
        raise
    return connection


def ask(directory: Path, *lines: str) -> list[str]:
    with connect(directory) as connection, connection.makefile("rw") as file:
        found = []
        for line in lines:
            file.write(line + "\n")
            file.flush()
            found.append(file.readline().strip())
        return found


def end(daemon: subprocess.Popen[str]) -> str:
    daemon.send_signal(signal.SIGTERM)
    stdout, _ = daemon.communicate(timeout=60)
    assert daemon.returncode == 0, stdout
    return stdout


@pytest.fixture(params=["daemon_threads.py", "daemon_asyncio.py"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "source").write_bytes(os.urandom(3 << 20))
    with nothing_left(tmp_path / "jobs", tmp_path):
        yield tmp_path


def test_a_daemon_is_driven_ends_and_finds_its_jobs_again(program: str, directory: Path) -> None:
    source, target, slow = directory / "source", directory / "target", directory / "slow"
    with running(program, directory) as daemon:
        assert ask(directory, "list", f"clone {source} {target}", "wait 1") == ["no jobs", "job 1", "1 completed"]
        assert target.read_bytes() == source.read_bytes()
        (refused,) = ask(directory, f"clone {source} {target}")
        assert refused == "job 2"
        assert ask(directory, "wait 2")[0].startswith(f"2 failed: cannot clone to {target}: it exists already")
        assert ask(directory, "dance", "abort 99", "abort x", "abort 1") == [
            ask(directory, "")[0],
            "error: there is no job 99",
            "error: invalid literal for int() with base 10: 'x'",
            "error: cannot abort job 1: it is completed; it allows forget",
        ]
        assert ask(directory, f"clone {source} {slow} 1000", "suspend 3", "resume 3") == [
            "job 3", "3 suspended", "3 running"
        ]  # fmt: skip
        assert [line.split(" ", 1)[1] for line in ask(directory, "children", "children")] == ["ended with 0"] * 2
        with connect(directory) as patient:
            patient.sendall(b"wait 3\n")
            said = end(daemon)
    assert not (directory / "socket").exists()
    assert [line for line in said.splitlines() if line.startswith("job 1 ")][-1] == "job 1 is completed"
    assert "job 3 is suspended" in said.splitlines()
    workers = [process.pid for process in processes_of(directory / "jobs") if process.kind == "worker"]
    assert len(workers) == 1

    with running(program, directory) as daemon:
        (listed,) = ask(directory, "list")
        assert [line.split()[:3] for line in listed.split("; ")] == [
            ["3", "clone", "running"], ["2", "clone", "failed"], ["1", "clone", "completed"]
        ]  # fmt: skip
        assert [process.pid for process in processes_of(directory / "jobs") if process.kind == "worker"] == workers
        assert ask(directory, "abort 3", f"clone {source} {slow}", "wait 4") == ["3 aborted", "job 4", "4 completed"]
        end(daemon)


def test_a_daemon_that_was_killed_starts_again_and_a_second_one_does_not(program: str, directory: Path) -> None:
    source, target = directory / "source", directory / "target"
    with running(program, directory) as daemon:
        assert ask(directory, f"clone {source} {target} 1000", "suspend 1") == ["job 1", "1 suspended"]
        with running(program, directory) as second:
            stdout, _ = second.communicate(timeout=60)
            assert second.returncode == 1
            assert f"jobs is in use by pid {daemon.pid}" in stdout
        daemon.kill()
        daemon.communicate(timeout=60)
    with running(program, directory) as daemon:
        assert ask(directory, "resume 1", "abort 1") == ["1 running", "1 aborted"]
        end(daemon)
    assert not target.exists()
