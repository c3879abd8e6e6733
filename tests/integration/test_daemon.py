"""The daemon as a process: how it begins, who may have it, why it leaves, and what it leaves behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor import Client, HomeUnusable, Supervisor, Unreachable, autostart
from jobvisor.places import socket_of
from jobvisor.testing import kill_processes_of, nothing_left, wait_until
from support.daemons import is_gone, pid_of, run_daemon
from support.http import Http

STARTER = "import sys; from jobvisor.client import Client; print(Client(home=sys.argv[1]).daemon().pid)"
#: A daemon that is killed when it listens and has yet to say so; only the first {deaths} of them, whose pids it keeps.
KILLED = """
import os, signal, sys
sys.path[:] = sys.argv[2:]
from jobvisor import daemon
say = daemon._say
def die_or_say(*args):
    with open({pids!r}, "a+") as pids:
        pids.seek(0)
        if len(pids.readlines()) < {deaths}:
            print(os.getpid(), file=pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    say(*args)
daemon._say = die_or_say
daemon.main()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    with nothing_left(home, tmp_path):
        yield home
        if (home / "journal.sqlite").exists():
            with Client(home=home) as client:
                client.close(abort=True)
        autostart.stop(socket_of(str(home)))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(1 << 16))
    return path


# --- beginning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", [False, True], ids=["nothing", "a killed one's socket"])
def test_twenty_commands_at_once_start_one_daemon(home: Path, stale: bool) -> None:
    if stale:
        with Client(home=home) as client:
            pid = client.daemon().pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid))
        assert Path(socket_of(str(home))).exists()
    commands = [subprocess.Popen([sys.executable, "-c", STARTER, str(home)], stdout=subprocess.PIPE) for _ in range(20)]
    answers = [command.communicate()[0] for command in commands]
    assert [command.returncode for command in commands] == [0] * 20
    assert len(set(answers)) == 1, answers


def test_one_that_is_killed_while_it_begins_is_started_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = home.parent / "killed"
    monkeypatch.setattr(autostart, "PROGRAM", KILLED.format(pids=str(killed), deaths=2))
    with Client(home=home) as client:
        pid = client.daemon().pid
    pids = killed.read_text().split()
    assert len(pids) == 2
    assert str(pid) not in pids
    killed.unlink()


def test_one_that_never_lives_to_serve_is_said_with_its_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = home.parent / "killed"
    monkeypatch.setattr(autostart, "PROGRAM", KILLED.format(pids=str(killed), deaths=99))
    with (
        pytest.raises(Unreachable, match=rf"ended without a word, 3 times; see {home}/daemon.log"),
        Client(home=home) as client,
    ):
        client.daemon()
    assert len(killed.read_text().split()) == autostart.STARTS_MAX
    shutil.rmtree(home)
    killed.unlink()


def test_a_daemon_is_detached_from_whoever_started_it(home: Path) -> None:
    held = os.open(home.parent, os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        with Client(home=home) as client:
            pid = client.daemon().pid
    finally:
        os.close(held)
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    _, parent, _, session, terminal = (int(field) if field.isdigit() else field for field in fields[:5])
    assert parent != os.getpid()
    assert session != os.getsid(0)
    assert terminal == 0
    links = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            links[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:  # that of our own connection, closed meanwhile
            pass
    assert links["0"] == "/dev/null"
    assert links["1"] == links["2"] == str(home / "daemon.log")
    assert str(home.parent) not in links.values()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert "serves" in (home / "daemon.log").read_text()
    assert (home / "daemon.log").stat().st_mode & 0o777 == 0o600


def test_a_home_that_another_program_has_is_said_to_be_in_use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autostart, "LEAVE_TIME", 0.2)
    with Supervisor(home):
        with (
            pytest.raises(Unreachable, match=rf"in use by pid {os.getpid()} .*does not serve"),
            Client(home=home) as client,
        ):
            client.jobs()
        with Supervisor(home.parent / "other") as other, other.serve(socket_of(str(home))):
            assert pid_of(home) == os.getpid()
    shutil.rmtree(home.parent / "other")


def test_a_broken_journal_is_said_plainly_and_left_alone_and_jobs_go_on(home: Path, image: Path) -> None:
    with Client(home=home) as client:
        job = client.start("wipe", volume=str(image), bandwidth=1 << 14)
        worker = job.wait(30, until="running").pid
        assert worker
        assert autostart.stop(client.socket)
    journal = home / "journal.sqlite"
    good = journal.read_bytes()
    assert not Path(f"{journal}-wal").exists()
    broken = b"this is no database" * 400
    journal.write_bytes(broken)
    with pytest.raises(Unreachable, match=r"cannot start the daemon: journal .*journal.sqlite.*move it away"):
        Client(home=home).jobs()
    assert journal.read_bytes() == broken
    assert not is_gone(worker)
    journal.write_bytes(good)
    with Client(home=home) as client:
        assert client.job(job.id).wait(60).ok


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make somebody else's directory")
def test_somebody_elses_home_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "theirs"
    home.mkdir()
    os.chown(home, 65534, 65534)
    with pytest.raises(HomeUnusable, match="belongs to uid 65534"):
        Client(home=home).jobs()
    assert not list(home.iterdir())


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeUnusable, match="Not a directory"):
        Client(home=tmp_path / "file" / "home").jobs()


# --- leaving -----------------------------------------------------------------------------------------------------


def test_it_leaves_after_its_last_job_and_client(home: Path, image: Path) -> None:
    assert run_daemon(home, idle=0.3) == b"ready"
    pid = pid_of(home)
    assert pid
    http = Http(socket_of(str(home)))
    body = {"job": {"type": "wipe", "volume": str(image)}, "bandwidth": 1 << 16}
    started = time.monotonic()
    assert http("POST", "/v1/jobs", body).status == 201
    wait_until(lambda: is_gone(pid))
    assert time.monotonic() - started > 1.0, "it left while its job ran"
    assert not Path(socket_of(str(home))).exists()
    with Client(home=home) as client:
        assert client.job(1).info().ok


def test_a_client_keeps_it(home: Path) -> None:
    run_daemon(home, idle=0.1)
    with Http(socket_of(str(home))).events() as events:
        assert next(events)[0] == "start"
        pid = pid_of(home)
        time.sleep(0.5)  # five times the time after which it would have left
        assert pid
        assert not is_gone(pid)
    wait_until(lambda: is_gone(pid))


def test_no_client_is_turned_away_by_one_that_is_leaving(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request comes when the daemon of the one before is about to leave, or has just left."""
    monkeypatch.setattr(autostart, "IDLE", 0.05)
    pids = set()
    for number in range(40):
        with Client(home=home) as client:
            pids.add(client.daemon().pid)
        time.sleep(0.04 + 0.001 * (number % 30))
    assert len(pids) > 3, "none of them left"


def test_a_stopped_daemon_leaves_its_jobs_running_and_the_next_one_has_them(home: Path, image: Path) -> None:
    with Client(home=home) as client:
        running, held = (client.start("wipe", volume=str(path), bandwidth=1 << 14) for path in (image, _copy(image)))
        running.wait(30, until="running")
        assert held.suspend().state == "suspended"
        wait_until(lambda: running.info().data_processed > 0)
        before, pid = running.info(), client.daemon().pid
        assert autostart.stop(client.socket) == pid
        assert is_gone(pid)
        assert not is_gone(before.pid or 0)
        after = running.info()
        assert (after.state, after.pid, after.adopted) == ("running", before.pid, True)
        assert after.data_processed >= before.data_processed
        assert held.info().state == "suspended"
        assert client.daemon().pid != pid


def _copy(path: Path) -> Path:
    return Path(shutil.copy(path, path.with_name(f"{path.name}-copy")))


def test_sigterm_in_the_middle_of_requests_loses_no_answer(home: Path) -> None:
    """A client that was not answered asks the next daemon."""
    answers: list[int] = []
    over = threading.Event()

    def ask() -> None:
        with Client(home=home) as client:
            while not over.is_set():
                answers.append(client.daemon().pid)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(5):
            count = len(answers)
            wait_until(lambda: len(answers) > count + 20)  # noqa: B023 - waited for here
            autostart.stop(socket_of(str(home)))
    finally:
        over.set()
        for thread in asking:
            thread.join()
    assert len(set(answers)) >= 5


def test_a_full_state_disk_is_said_and_what_runs_goes_on(small_disk: Path) -> None:
    home = small_disk / "home"
    image = small_disk.parent / "image"
    image.write_bytes(b"x" * (1 << 16))
    with Client(home=home) as client:
        try:
            job = client.start("wipe", volume=str(image), bandwidth=1 << 14)
            job.wait(30, until="running")
            _fill(small_disk)
            answer = Http(client.socket)("POST", "/v1/jobs", {"job": {"type": "checksum", "volume": str(image)}})
            assert answer.status == 507
            assert answer.json()["code"] == "journal"
            assert "free some space" in answer.json()["detail"]
            assert job.info().state == "running"
            assert job.suspend().state == "suspended"
            job.resume()
            (small_disk / "filler").unlink()
            assert client.start("checksum", volume=str(image), on_conflict="queue").wait(60).ok
            assert job.info().ok
        finally:
            (small_disk / "filler").unlink(missing_ok=True)
            client.close(abort=True)
            autostart.stop(client.socket)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is soon full."""
    where = tmp_path / "disk"
    where.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", where], check=False).returncode
    ):
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield where
    finally:
        kill_processes_of(where / "home")
        subprocess.run(["umount", where], check=True)


def _fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as filler:
        for size in (1 << 16, 4096, 1):
            try:
                while filler.write(b"f" * size):
                    pass
            except OSError:  # ENOSPC
                pass


def test_a_socket_in_a_hundred_directories_is_reached(tmp_path: Path) -> None:
    home = tmp_path / ("h" * 120) / "home"
    home.parent.mkdir()
    with Client(home=home) as client:
        assert client.daemon().home == str(home)
        autostart.stop(client.socket)


def test_the_socket_file_of_somebody_who_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(Unreachable, match=r"api.sock"):
        Client(path).jobs()
