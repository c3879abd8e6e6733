"""The library as its users see it: ids, queue, current job, events, and what it says to bad input."""

import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest

from jobvisor import (
    Busy,
    HomeInUse,
    HomeUnusable,
    JobAborted,
    JobFailed,
    NoSuchJob,
    State,
    Supervisor,
    Unreachable,
    UsageError,
    WaitTimeout,
    WrongState,
)
from jobvisor.testing import job_type, wait_until
from jobvisor_workers import READ, WRITE, JobError, JobType, Worker, new_volume, volume


@job_type
class Gate(JobType, tag="test-gate"):
    """Wait until a file is there; with a volume, have it alone meanwhile."""

    gate: str
    image: Annotated[str, volume("volume to lock", WRITE)] | None = None
    fail: bool = False
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("wait", total=10)
        while not os.path.exists(self.gate):
            time.sleep(0.002)
        worker.advance(10)
        if self.fail:
            raise JobError("cannot go on: it was told to fail")
        worker.warn("something to know")
        return {"gate": self.gate}


@job_type
class Look(JobType, tag="test-look"):
    """Read a volume."""

    volume: Annotated[str, volume("volume to read", READ)]
    gate: str

    def run(self, worker: Worker) -> None:
        worker.phase("look")
        while not os.path.exists(self.gate):
            time.sleep(0.002)


@job_type
class TwoPhases(JobType, tag="test-two-phases"):
    """Converge, then wait to be told."""

    def run(self, worker: Worker) -> dict[str, bool]:
        worker.ready()
        return {"completed": True}


@job_type
class Unstoppable(JobType, tag="test-unstoppable"):
    """A stop would do harm."""

    gate: str
    can_suspend: ClassVar[bool] = False

    def run(self, worker: Worker) -> None:
        worker.phase("wait")
        while not os.path.exists(self.gate):
            time.sleep(0.002)


@job_type
class Large(JobType, tag="test-large"):
    """Take an argument that fits in no packet."""

    text: str
    target: Annotated[str, new_volume("not used")] | None = None

    def run(self, worker: Worker) -> dict[str, int]:
        return {"length": len(self.text)}


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Touch it to let the jobs end."""
    return tmp_path / "gate"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 4096)
    return path


def test_a_completed_job_has_all_its_facts(supervisor: Supervisor, gate: Path) -> None:
    job = supervisor.start("test-gate", gate=str(gate))
    wait_until(lambda: job.info().data_total)
    running = job.info()
    assert (running.id, running.type, running.data_total, running.pid) == (1, "test-gate", 10, supervisor.pids()[1])
    assert repr(job) == "<Job 1 test-gate running>"
    gate.touch()

    info = job.wait(10, check=True)

    assert info.ok
    assert (info.result, info.warnings, info.data_processed) == ({"gate": str(gate)}, ["something to know"], 10)
    assert info.started is not None
    assert info.ended is not None
    assert info.created <= info.started <= info.ended
    assert info.rusage["user"] >= 0
    assert (info.exit_status, info.signal, info.pid) == (0, None, None)
    names = [parameter.name for parameter in info.params]
    assert names[:3] == ["operation", "job_type", "time_elapsed"]
    assert ("success", "boolean", True) in info.params
    assert info.to_dict()["job_type"] == "completed"
    assert msgspec.json.decode(msgspec.json.encode(info.to_dict())) == info.to_dict()
    assert job.info() == info


def test_check_raises_what_the_job_became(supervisor: Supervisor, gate: Path) -> None:
    failing = supervisor.start("test-gate", gate=str(gate), fail=True)
    aborted = supervisor.start("test-gate", gate=str(gate))
    aborted.wait(10, until=State.RUNNING)
    aborted.abort()
    gate.touch()
    with pytest.raises(JobFailed, match="it was told to fail") as failed:
        failing.wait(10, check=True)
    assert failed.value.info.cause == "error"
    with pytest.raises(JobAborted):
        aborted.wait(10, check=True)


def test_a_wait_that_is_over_leaves_the_job_alone(supervisor: Supervisor, gate: Path) -> None:
    job = supervisor.start("test-gate", gate=str(gate))
    with pytest.raises(WaitTimeout) as caught:
        job.wait(0.01)
    assert (caught.value.id, caught.value.timeout) == (job.id, 0.01)
    gate.touch()
    assert job.wait(10).ok


def test_ids_go_on_after_a_restart_and_after_forgetting(tmp_path: Path, gate: Path) -> None:
    gate.touch()
    for expected in (1, 2, 3):
        with Supervisor(tmp_path / "home", types=[__name__]) as supervisor:
            job = supervisor.start("test-gate", gate=str(gate))
            job.wait(10)
            assert job.id == expected
            job.forget()
            with pytest.raises(NoSuchJob):
                job.info()
            assert not (tmp_path / "home" / "jobs" / str(expected)).exists()


def test_a_running_job_is_adopted_with_its_progress(tmp_path: Path, gate: Path) -> None:
    home = tmp_path / "home"
    with Supervisor(home, types=[__name__]) as supervisor:
        job = supervisor.start("test-gate", gate=str(gate))
        worker = job.wait(10, until=State.RUNNING).pid
    with Supervisor(home, types=[__name__]) as supervisor:
        info = supervisor.job(job.id).wait(10, until=State.RUNNING)
        assert (info.adopted, info.pid, info.data_total, info.phase) == (True, worker, 10, "wait")
        gate.touch()
        assert supervisor.job(job.id).wait(10).ok


def test_what_ended_meanwhile_is_found_out(tmp_path: Path, gate: Path) -> None:
    home = tmp_path / "home"
    with Supervisor(home, types=[__name__]) as supervisor:
        jobs = [supervisor.start("test-gate", gate=str(gate), fail=fail) for fail in (False, True)]
        for job in jobs:
            job.wait(10, until=State.RUNNING)
    gate.touch()
    wait_until(lambda: all((home / "jobs" / str(job.id) / "exit").exists() for job in jobs))
    with Supervisor(home, types=[__name__]) as supervisor:
        states = [supervisor.job(job.id).wait(10).state for job in jobs]
    assert states == [State.COMPLETED, State.FAILED]


def test_a_lost_journal_is_rebuilt_from_the_job_directories(tmp_path: Path, gate: Path) -> None:
    home = tmp_path / "home"
    with Supervisor(home, types=[__name__]) as supervisor:
        failed = supervisor.start("test-gate", gate=str(gate), fail=True)
        live = supervisor.start("test-gate", gate=str(gate) + "2")
        live.wait(10, until=State.RUNNING)
        gate.touch()
        failed.wait(10)
    for name in home.glob("journal.sqlite*"):
        name.unlink()
    with Supervisor(home, types=[__name__]) as supervisor:
        again = supervisor.job(failed.id).info()
        assert (again.state, again.errmsg) == (State.FAILED, "cannot go on: it was told to fail")
        Path(str(gate) + "2").touch()
        assert supervisor.job(live.id).wait(10).ok
        assert supervisor.start("test-gate", gate=str(gate)).id == live.id + 1


def test_one_home_has_one_supervisor(supervisor: Supervisor) -> None:
    with pytest.raises(HomeInUse) as caught:
        Supervisor(supervisor.home)
    assert caught.value.pid == os.getpid()
    assert "pytest" in caught.value.command


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
    with Supervisor(tmp_path / ("long" * 40), types=[__name__]) as supervisor:
        assert supervisor.start("test-gate", gate=str(gate)).wait(10).ok


def test_jobs_on_one_resource_start_in_their_order(supervisor: Supervisor, gate: Path, image: Path) -> None:
    jobs = [supervisor.start("test-gate", gate=f"{gate}{number}", image=str(image)) for number in range(3)]
    jobs[0].wait(10, until=State.RUNNING)
    assert [job.info().state for job in jobs[1:]] == [State.QUEUED, State.QUEUED]
    assert jobs[1].info().reason == f"{image} is in use by job 1"
    assert [(holder.job, holder.type) for holder in supervisor.mask(str(image)).held_by] == [(1, "test-gate")]
    assert [holder.job for holder in supervisor.mask(str(image)).waiting] == [2, 3]
    for number, job in enumerate(jobs):
        job.wait(10, until=State.RUNNING)
        Path(f"{gate}{number}").touch()
        assert job.wait(10).ok


def test_readers_share_a_resource(supervisor: Supervisor, gate: Path, image: Path) -> None:
    jobs = [supervisor.start("test-look", gate=str(gate), volume=str(image)) for _ in range(3)]
    for job in jobs:
        assert job.wait(10, until=State.RUNNING).state is State.RUNNING
    assert "test-look" in supervisor.mask(str(image)).may_start
    assert "test-gate" not in supervisor.mask(str(image)).may_start


def test_a_start_that_must_not_wait_names_the_job_in_the_way(supervisor: Supervisor, gate: Path, image: Path) -> None:
    first = supervisor.start("test-gate", gate=str(gate), image=str(image))
    alias = image.with_name("alias")
    alias.symlink_to(image)
    with pytest.raises(Busy) as caught:
        supervisor.start("test-gate", gate=str(gate), image=str(alias), on_conflict="fail")
    assert caught.value.holder is not None
    assert caught.value.holder.job == first.id
    assert len(supervisor.jobs()) == 1


def test_a_queued_job_can_be_held_released_and_aborted(supervisor: Supervisor, gate: Path, image: Path) -> None:
    first, second, third = (supervisor.start("test-gate", gate=str(gate), image=str(image)) for _ in range(3))
    assert second.suspend().state is State.QUEUED
    assert third.abort().state is State.ABORTED
    gate.touch()
    first.wait(10)
    assert (second.info().state, second.info().reason) == (State.QUEUED, "held")
    with pytest.raises(UsageError):
        supervisor.start("test-gate", gate=str(gate), on_conflict="hope")
    second.resume()
    assert second.wait(10).ok


def test_queued_jobs_and_held_ones_survive_a_restart(tmp_path: Path, gate: Path, image: Path) -> None:
    home = tmp_path / "home"
    with Supervisor(home, types=[__name__]) as supervisor:
        for _ in range(3):
            supervisor.start("test-gate", gate=str(gate), image=str(image))
        supervisor.job(1).wait(10, until=State.RUNNING)
        supervisor.job(2).suspend()
    with Supervisor(home, types=[__name__]) as supervisor:
        assert [info.state for info in supervisor.jobs()][:2] == [State.QUEUED, State.QUEUED]
        gate.touch()
        wait_until(lambda: supervisor.job(1).info().final)
        assert supervisor.job(2).info().reason == "held"
        supervisor.job(2).resume()
        assert supervisor.job(3).wait(10).ok
        assert supervisor.job(2).wait(10).ok


def test_a_two_phase_job_completes_when_it_is_told(supervisor: Supervisor) -> None:
    job = supervisor.start("test-two-phases")
    job.wait(10, until=State.READY)
    with pytest.raises(WrongState):
        job.suspend()
    job.complete()
    assert job.wait(10).result == {"completed": True}


def test_a_type_may_say_that_it_cannot_be_suspended(supervisor: Supervisor, gate: Path) -> None:
    job = supervisor.start("test-unstoppable", gate=str(gate))
    job.wait(10, until=State.RUNNING)
    with pytest.raises(UsageError, match="cannot be suspended"):
        job.suspend()


def test_retry_is_a_new_job_like_the_old_one(supervisor: Supervisor, gate: Path) -> None:
    gate.touch()
    job = supervisor.start("test-gate", gate=str(gate), fail=True, nice=3)
    job.wait(10)
    again = job.retry()
    info = again.wait(10)
    assert (again.id, info.retry_of, info.args) == (2, 1, job.info().args)
    done = supervisor.start("test-gate", gate=str(gate))
    done.wait(10)
    with pytest.raises(WrongState):
        done.retry()
    never = supervisor.start("test-two-phases")
    never.abort()
    with pytest.raises(UsageError, match="never to be repeated"):
        never.retry()


def test_the_current_job_is_the_last_started_or_the_one_that_was_set(supervisor: Supervisor, gate: Path) -> None:
    assert supervisor.current() is None
    gate.touch()
    first, second = (supervisor.start("test-gate", gate=str(gate)) for _ in range(2))
    assert supervisor.current() == second
    supervisor.set_current(first)
    assert supervisor.current() == first
    third = supervisor.start("test-gate", gate=str(gate))
    assert supervisor.current() == third
    with pytest.raises(NoSuchJob):
        supervisor.set_current(99)


def test_lists_can_be_narrowed(supervisor: Supervisor, gate: Path, image: Path) -> None:
    live = supervisor.start("test-gate", gate=str(gate) + "never", image=str(image))
    gate.touch()
    supervisor.start("test-gate", gate=str(gate), fail=True).wait(10)
    supervisor.start("test-two-phases").abort()
    ids = [info.id for info in supervisor.jobs()]
    assert ids == [3, 2, 1]
    live.wait(10, until=State.RUNNING)
    assert [info.id for info in supervisor.jobs(state="running")] == [1]
    assert [info.id for info in supervisor.jobs(state=[State.FAILED, State.ABORTED])] == [3, 2]
    assert [info.id for info in supervisor.jobs(type="test-gate", limit=1)] == [2]
    assert [info.id for info in supervisor.jobs(resource=str(image))] == [1]
    with pytest.raises(UsageError, match="states are"):
        supervisor.jobs(state="sleeping")


def test_old_jobs_can_be_forgotten(supervisor: Supervisor, gate: Path) -> None:
    gate.touch()
    for _ in range(3):
        supervisor.start("test-gate", gate=str(gate)).wait(10)
    assert supervisor.forget(before=datetime.now() - timedelta(hours=1)) == 0
    assert supervisor.forget() == 3
    assert supervisor.jobs() == []


@pytest.mark.parametrize("id", [0, -1, 1 << 70, 4711])
def test_no_such_job(supervisor: Supervisor, id: int) -> None:
    with pytest.raises(NoSuchJob) as caught:
        supervisor.job(id)
    assert caught.value.id == id


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("clonee", {}, "no job type is called 'clonee'"),
        ("test-gate", {}, "missing required field `gate`"),
        ("test-gate", {"gate": "x", "speed": 1}, "unknown field `speed`"),
        ("test-gate", {"gate": 7}, "Expected `str`, got `int`"),
        ("test-look", {"gate": "x", "volume": ""}, "volume"),
        ("test-look", {"gate": "x", "volume": "a\0b"}, "volume"),
        ("test-look", {"gate": "x", "volume": "bad\udcff"}, "UTF-8"),
        ("test-gate", {"gate": "x", "bandwidth": 0}, "bandwidth"),
        ("test-gate", {"gate": "x", "time_limit": -1}, "time limit"),
        ("test-gate", {"gate": "x", "nice": 99}, "nice"),
        ("test-gate", {"gate": "x", "ionice": "fast"}, "ionice"),
    ],
)
def test_a_request_without_sense_starts_nothing(
    supervisor: Supervisor, name: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        supervisor.start(name, **arguments)
    assert supervisor.jobs() == []
    assert os.listdir(f"{supervisor.home}/jobs") == []


def test_an_argument_may_be_larger_than_a_packet(supervisor: Supervisor) -> None:
    assert supervisor.start("test-large", text="x" * 1_000_000).wait(20).result == {"length": 1_000_000}


def test_events_are_numbered_and_can_be_had_again(supervisor: Supervisor, gate: Path) -> None:
    gate.touch()
    with supervisor.events() as events:
        job = supervisor.start("test-gate", gate=str(gate))
        seen = []
        for event in events:
            if event.event == "state":
                seen.append(event)
            if event.job.final:
                break
    assert [event.state for event in seen][:2] == [State.QUEUED, State.STARTING]
    assert seen[-1].job == job.info()
    numbers = [event.number or 0 for event in seen]
    assert numbers == sorted(set(numbers))
    with supervisor.events(since=numbers[1], job=job.id) as again:
        replayed = [event.number for event in iter(lambda: again.next(0.2), None)]
    assert replayed == numbers[2:]


def test_a_stream_can_be_closed_from_another_thread(supervisor: Supervisor) -> None:
    stream = supervisor.events()
    seen: list[object] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    stream.close()
    reader.join(10)
    assert not reader.is_alive()


def test_a_closed_supervisor_says_so(tmp_path: Path, gate: Path) -> None:
    supervisor = Supervisor(tmp_path / "home", types=[__name__])
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
    with Supervisor(tmp_path / "home", types=[__name__]) as again:
        again.job(job.id).abort()


def test_close_can_abort(tmp_path: Path, gate: Path) -> None:
    with Supervisor(tmp_path / "home", types=[__name__]) as supervisor:
        jobs = [supervisor.start("test-gate", gate=str(gate)) for _ in range(3)]
        supervisor.close(abort=True)
    with Supervisor(tmp_path / "home", types=[__name__]) as supervisor:
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
