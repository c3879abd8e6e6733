"""A supervisor alone: its home, restarts, and its end."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobvisor import (
    HomeInUse,
    HomeUnusable,
    NoSuchJob,
    State,
    Supervisor,
    Unreachable,
)
from jobvisor.private import PrivateSupervisor
from jobvisor.testing import wait_until


def test_ids_go_on_after_a_restart_and_after_forgetting(tmp_path: Path, gate: Path) -> None:
    gate.touch()
    for expected in (1, 2, 3):
        with Supervisor(tmp_path / "home", types=["support.gate_types"]) as supervisor:
            job = supervisor.start("test-gate", gate=str(gate))
            job.wait(10)
            assert job.id == expected
            job.forget()
            with pytest.raises(NoSuchJob):
                job.info()
            assert not (tmp_path / "home" / "jobs" / str(expected)).exists()


def test_a_running_job_is_adopted_with_its_progress(tmp_path: Path, gate: Path) -> None:
    home = tmp_path / "home"
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        job = supervisor.start("test-gate", gate=str(gate))
        worker = job.wait(10, until=State.RUNNING).pid
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        info = supervisor.job(job.id).wait(10, until=State.RUNNING)
        assert (info.adopted, info.pid, info.data_total, info.phase) == (True, worker, 10, "wait")
        gate.touch()
        assert supervisor.job(job.id).wait(10).ok


def test_what_ended_meanwhile_is_found_out(tmp_path: Path, gate: Path) -> None:
    home = tmp_path / "home"
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        jobs = [supervisor.start("test-gate", gate=str(gate), fail=fail) for fail in (False, True)]
        for job in jobs:
            job.wait(10, until=State.RUNNING)
    gate.touch()
    wait_until(lambda: all((home / "jobs" / str(job.id) / "exit").exists() for job in jobs))
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        states = [supervisor.job(job.id).wait(10).state for job in jobs]
    assert states == [State.COMPLETED, State.FAILED]


def test_a_lost_journal_is_rebuilt_from_the_job_directories(tmp_path: Path, gate: Path) -> None:
    home = tmp_path / "home"
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        failed = supervisor.start("test-gate", gate=str(gate), fail=True)
        live = supervisor.start("test-gate", gate=str(gate) + "2")
        live.wait(10, until=State.RUNNING)
        gate.touch()
        failed.wait(10)
    for name in home.glob("journal.sqlite*"):
        name.unlink()
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        again = supervisor.job(failed.id).info()
        assert (again.state, again.errmsg) == (State.FAILED, "cannot go on: it was told to fail")
        Path(str(gate) + "2").touch()
        assert supervisor.job(live.id).wait(10).ok
        assert supervisor.start("test-gate", gate=str(gate)).id == live.id + 1


def test_one_home_has_one_supervisor(supervisor: Supervisor) -> None:
    with pytest.raises(HomeInUse) as caught:
        Supervisor(supervisor.home)
    assert caught.value.pid == os.getpid()
    assert caught.value.command
    assert Path("/proc/self/cmdline").read_text().replace("\0", " ").startswith(caught.value.command)


def test_a_wiped_run_directory_does_not_let_a_second_one_in(supervisor: Supervisor) -> None:
    for name in os.listdir(f"{supervisor.home}/run"):
        os.unlink(f"{supervisor.home}/run/{name}")
    os.rmdir(f"{supervisor.home}/run")
    with pytest.raises(HomeInUse):
        Supervisor(supervisor.home)


def test_a_home_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeUnusable, match="file"):
        Supervisor(tmp_path / "file" / "home")


def test_a_long_home_works(tmp_path: Path, gate: Path) -> None:
    """The path of a socket is limited to 107 bytes."""
    gate.touch()
    with Supervisor(tmp_path / ("long" * 40), types=["support.gate_types"]) as supervisor:
        assert supervisor.start("test-gate", gate=str(gate)).wait(10).ok


def test_queued_jobs_and_held_ones_survive_a_restart(tmp_path: Path, gate: Path, image: Path) -> None:
    home = tmp_path / "home"
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        for _ in range(3):
            supervisor.start("test-gate", gate=str(gate), image=str(image))
        supervisor.job(1).wait(10, until=State.RUNNING)
        supervisor.job(2).suspend()
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        assert [info.state for info in supervisor.jobs()][:2] == [State.QUEUED, State.QUEUED]
        gate.touch()
        wait_until(lambda: supervisor.job(1).info().final)
        assert supervisor.job(2).info().reason == "held"
        supervisor.job(2).resume()
        assert supervisor.job(3).wait(10).ok
        assert supervisor.job(2).wait(10).ok


def test_a_closed_supervisor_says_so(tmp_path: Path, gate: Path) -> None:
    supervisor = Supervisor(tmp_path / "home", types=["support.gate_types"])
    job = supervisor.start("test-gate", gate=str(gate))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            job.wait()
        except Unreachable as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    job.wait(10, until=State.RUNNING)
    supervisor.close()
    waiter.join(10)
    assert len(errors) == 1
    supervisor.close()
    with pytest.raises(Unreachable):
        supervisor.jobs()
    with Supervisor(tmp_path / "home", types=["support.gate_types"]) as again:
        again.job(job.id).abort()


def test_close_can_abort(tmp_path: Path, gate: Path) -> None:
    with Supervisor(tmp_path / "home", types=["support.gate_types"]) as supervisor:
        jobs = [supervisor.start("test-gate", gate=str(gate)) for _ in range(3)]
        supervisor.close(abort=True)
    with Supervisor(tmp_path / "home", types=["support.gate_types"]) as supervisor:
        assert {supervisor.job(job.id).info().state for job in jobs} == {State.ABORTED}


def test_a_stopped_host_does_not_hold_up_grace_periods(tmp_path: Path) -> None:
    """Its socket fills with notices (278 of them do); the zygote goes on all the same."""
    program = """
import os, sys, time
from jobvisor import Supervisor
supervisor = Supervisor(sys.argv[1], types=["support.deaf_types"], grace=0.5)
jobs = [supervisor.start("test-chatty") for _ in range(8)]
deaf = supervisor.start("test-deaf-worker")
for job in jobs:
    job.wait(until="running")
while deaf.info().phase != "deaf":
    time.sleep(0.01)
deaf.abort(wait=False)
print(supervisor.pids()[deaf.id], *[supervisor.pids()[job.id] for job in jobs], flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    host = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "home")], env=environment, stdout=-1)
    assert host.stdout is not None
    deaf, *chatty = (int(word) for word in host.stdout.readline().split())
    os.kill(host.pid, 19)
    for _ in range(100):
        for pid in chatty:
            os.kill(pid, 19)
            os.kill(pid, 18)
    wait_until(lambda: not os.path.exists(f"/proc/{deaf}"))
    host.kill()
    host.communicate()
    with Supervisor(tmp_path / "home", types=["support.deaf_types"]) as supervisor:
        assert supervisor.job(9).wait(10).signal == 9
        supervisor.close(abort=True)


def test_the_home_of_one_command_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBVISOR_HOME", str(tmp_path / "state" / "home"))
    before = os.umask(0)
    try:
        with PrivateSupervisor() as supervisor:
            directories = [Path(supervisor.home), *Path(supervisor.home).parents][:3]
            assert [path.stat().st_mode & 0o777 for path in directories] == [0o700] * 3
    finally:
        os.umask(before)
