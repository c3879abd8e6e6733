"""The machine stays awake while jobs work: the real systemd-inhibit, on a bus of its own with a mock of logind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from jobvisor import Client, State, Supervisor, inhibitor
from jobvisor.inhibitor import Inhibitor
from jobvisor.testing import job_type, nothing_left, wait_until
from jobvisor_workers import JobType, Worker

STRICT = str(Path(__file__).parent.parent / "support" / "strict_logind.py")
#: Where distributions put their own Python, which has the bindings of D-Bus.
PYTHON = "/usr/bin/python3"
DAEMON = """
import sys
from jobvisor.daemon import Config, run
run(Config(home=sys.argv[1], types=[sys.argv[2]]), lambda path: print(path, flush=True))
"""


def missing() -> str:
    for program in ("systemd-inhibit", "busctl", "dbus-daemon", PYTHON):
        if not shutil.which(program):
            return f"{program} is not installed"
    mock = subprocess.run([PYTHON, "-c", "import dbusmock"], capture_output=True, check=False)
    return "python3-dbusmock is not installed" if mock.returncode else ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@job_type
class Open(JobType, tag="test-open"):
    """Work until a file is there."""

    end: str

    def run(self, worker: Worker) -> None:
        while not os.path.exists(self.end):
            worker.advance(1)


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system bus without logind."""
    address = f"unix:path={tmp_path}/bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with running(["dbus-daemon", "--session", "--nofork", f"--address={address}"]):
        wait_until(lambda: (tmp_path / "bus").exists())
        yield


@contextmanager
def logind(template: str = "logind") -> Iterator[None]:
    with running([PYTHON, "-m", "dbusmock", "--system", "--template", template]):
        wait_until(lambda: ask().returncode == 0)
        yield


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ask() -> "subprocess.CompletedProcess[str]":
    place = ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]
    command = ["busctl", "--system", "--json=short", "call", *place, "ListInhibitors"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def locks() -> list[list[str]]:
    """What, who, why, mode of each lock."""
    return [each[:4] for each in json.loads(ask().stdout)["data"][0]]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def inhibiting(supervisor: Supervisor, notes: list[str]) -> Iterator[Callable[[], Inhibitor]]:
    """Starts it; afterwards no child of this process is left of it."""
    before = psutil.Process().children()
    found: list[Inhibitor] = []

    def start() -> Inhibitor:
        found.append(Inhibitor(supervisor._core, notes.append))
        found[0].start()
        return found[0]

    yield start
    for each in found:
        each.stop()
    assert psutil.Process().children() == before


Start = Callable[[], Inhibitor]


def test_a_lock_is_held_while_jobs_have_processes(
    supervisor: Supervisor, tmp_path: Path, notes: list[str], bus: None, inhibiting: Start
) -> None:
    with logind():
        inhibiting()
        assert locks() == []
        job = supervisor.start("test-open", end=str(tmp_path / "end"))
        wait_until(lambda: locks() == [["sleep:shutdown", "jobvisor", "1 job is running", "block"]])
        job.suspend()
        assert locks()
        (tmp_path / "end").touch()
        job.resume()
        job.wait(10, check=True)
        wait_until(lambda: locks() == [])
    assert notes == []


def test_it_tells_how_many_jobs_there_are(
    supervisor: Supervisor, tmp_path: Path, bus: None, inhibiting: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inhibitor, "RENEW", 0.1)
    with logind():
        first = supervisor.start("test-open", end=str(tmp_path / "end"))
        first.wait(10, until=State.RUNNING)
        inhibiting()
        wait_until(lambda: [lock[2] for lock in locks()] == ["1 job is running"])
        supervisor.start("test-open", end=str(tmp_path / "end"))
        supervisor.start("test-open", end=str(tmp_path / "end"))
        wait_until(lambda: [lock[2] for lock in locks()] == ["3 jobs are running"])


def test_who_may_not_forbid_it_has_it_delayed(
    supervisor: Supervisor, tmp_path: Path, notes: list[str], bus: None, inhibiting: Start
) -> None:
    with logind(STRICT):
        inhibiting()
        supervisor.start("test-open", end=str(tmp_path / "end"))
        wait_until(lambda: [lock[3] for lock in locks()] == ["delay"])
    assert notes == []


def test_a_lock_that_somebody_killed_is_taken_again(
    supervisor: Supervisor, tmp_path: Path, bus: None, inhibiting: Start
) -> None:
    with logind():
        working = inhibiting()
        supervisor.start("test-open", end=str(tmp_path / "end"))
        lock = wait_until(lambda: working._lock)
        assert lock
        os.killpg(lock._process.pid, signal.SIGKILL)
        wait_until(lambda: locks() == [])
        supervisor.start("test-open", end=str(tmp_path / "end"))
        wait_until(locks)


def test_without_logind_jobs_run_and_it_is_said_once(
    supervisor: Supervisor,
    tmp_path: Path,
    notes: list[str],
    bus: None,
    inhibiting: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inhibitor, "REFUSED", 0.1)
    working = inhibiting()
    job = supervisor.start("test-open", end=str(tmp_path / "end"))
    wait_until(lambda: notes)
    assert "cannot keep the machine awake while jobs run; mode block: Failed to inhibit: " in notes[0]
    tried = working._ask_at
    wait_until(lambda: working._ask_at > tried)
    (tmp_path / "end").touch()
    job.wait(10, check=True)
    assert len(notes) == 1


def test_without_a_bus_nothing_is_tried(inhibiting: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    monkeypatch.setattr(inhibitor, "SYSTEM_BUS", str(tmp_path / "none"))
    assert not inhibiting()._thread.is_alive()


def test_the_daemons_lock_falls_with_it(tmp_path: Path, bus: None) -> None:
    home = tmp_path / "home"
    with nothing_left(home, tmp_path), logind():
        command = [sys.executable, "-c", DAEMON, str(home), __file__]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
            assert daemon.stdout
            with Client(daemon.stdout.readline().strip()) as client:
                client.start("test-open", end=str(tmp_path / "end"))
            wait_until(locks)
            daemon.kill()
        wait_until(lambda: locks() == [])
        Supervisor(home, types=[__file__]).close(abort=True)
