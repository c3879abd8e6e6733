"""The public interface as its users see it, by each of the four classes that have it."""

import io
import os
import subprocess
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobvisor import (
    Busy,
    JobAborted,
    JobFailed,
    NoSuchJob,
    State,
    UsageError,
    WaitTimeout,
    WrongState,
    piping,
)
from jobvisor.face import Face
from jobvisor.testing import wait_until
from support.gate_types import Gate  # noqa: F401 - makes the types of its module known


def test_a_completed_job_has_all_its_facts(face: Face, gate: Path) -> None:
    job = face.start("test-gate", gate=str(gate))
    wait_until(lambda: job.info().data_total)
    running = job.info()
    assert (running.id, running.type, running.data_total, running.pid) == (1, "test-gate", 10, face.pids()[1])
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


def test_check_raises_what_the_job_became(face: Face, gate: Path) -> None:
    failing = face.start("test-gate", gate=str(gate), fail=True)
    aborted = face.start("test-gate", gate=str(gate))
    aborted.wait(10, until=State.RUNNING)
    aborted.abort()
    gate.touch()
    with pytest.raises(JobFailed, match="it was told to fail") as failed:
        failing.wait(10, check=True)
    assert failed.value.info.cause == "error"
    with pytest.raises(JobAborted):
        aborted.wait(10, check=True)


def test_a_wait_that_is_over_leaves_the_job_alone(face: Face, gate: Path) -> None:
    job = face.start("test-gate", gate=str(gate))
    with pytest.raises(WaitTimeout) as caught:
        job.wait(0.01)
    assert (caught.value.id, caught.value.timeout) == (job.id, 0.01)
    gate.touch()
    assert job.wait(10).ok


def test_jobs_on_one_resource_start_in_their_order(face: Face, gate: Path, image: Path) -> None:
    jobs = [face.start("test-gate", gate=f"{gate}{number}", image=str(image)) for number in range(3)]
    jobs[0].wait(10, until=State.RUNNING)
    assert [job.info().state for job in jobs[1:]] == [State.QUEUED, State.QUEUED]
    assert jobs[1].info().reason == f"{image} is in use by job 1"
    assert [(holder.job, holder.type) for holder in face.mask(str(image)).held_by] == [(1, "test-gate")]
    assert [holder.job for holder in face.mask(str(image)).waiting] == [2, 3]
    for number, job in enumerate(jobs):
        job.wait(10, until=State.RUNNING)
        Path(f"{gate}{number}").touch()
        assert job.wait(10).ok


def test_the_mask_names_who_is_in_the_way_and_that_he_is_suspended(face: Face, gate: Path, image: Path) -> None:
    job = face.start("test-look", gate=str(gate), volume=str(image))
    job.wait(10, until=State.RUNNING)
    job.suspend()
    mask = face.mask(str(image))
    assert (mask.forbidden["test-gate"].job, mask.forbidden["test-gate"].suspended) == (1, True)
    assert "test-look" not in mask.forbidden
    assert [(holder.job, holder.suspended) for holder in mask.held_by] == [(1, True)], "its lock is not told again"
    job.resume()
    gate.touch()
    job.wait(10)
    sleeper = subprocess.Popen(["flock", "--no-fork", str(image), "sleep", "60"])
    try:
        wait_until(lambda: face.mask(str(image)).held_by, 5, "the lock of another process")
        (holder,) = face.mask(str(image)).held_by
        assert (holder.kind, holder.pid, face.mask(str(image)).forbidden) == ("flock", sleeper.pid, {})
    finally:
        sleeper.kill()
        sleeper.wait()


def test_readers_share_a_resource(face: Face, gate: Path, image: Path) -> None:
    jobs = [face.start("test-look", gate=str(gate), volume=str(image)) for _ in range(3)]
    for job in jobs:
        assert job.wait(10, until=State.RUNNING).state is State.RUNNING
    assert "test-look" in face.mask(str(image)).may_start
    assert "test-gate" not in face.mask(str(image)).may_start


def test_a_start_that_must_not_wait_names_the_job_in_the_way(face: Face, gate: Path, image: Path) -> None:
    first = face.start("test-gate", gate=str(gate), image=str(image))
    alias = image.with_name("alias")
    alias.symlink_to(image)
    with pytest.raises(Busy) as caught:
        face.start("test-gate", gate=str(gate), image=str(alias), on_conflict="fail")
    assert caught.value.holder is not None
    assert caught.value.holder.job == first.id
    assert len(face.jobs()) == 1


def test_a_queued_job_can_be_held_released_and_aborted(face: Face, gate: Path, image: Path) -> None:
    first, second, third = (face.start("test-gate", gate=str(gate), image=str(image)) for _ in range(3))
    assert second.suspend().state is State.QUEUED
    assert third.abort().state is State.ABORTED
    gate.touch()
    first.wait(10)
    assert (second.info().state, second.info().reason) == (State.QUEUED, "held")
    with pytest.raises(UsageError):
        face.start("test-gate", gate=str(gate), on_conflict="hope")
    second.resume()
    assert second.wait(10).ok


def test_a_two_phase_job_completes_when_it_is_told(face: Face) -> None:
    job = face.start("test-two-phases")
    job.wait(10, until=State.READY)
    with pytest.raises(WrongState):
        job.suspend()
    job.complete()
    assert job.wait(10).result == {"completed": True}


def test_a_type_may_say_that_it_cannot_be_suspended(face: Face, gate: Path) -> None:
    job = face.start("test-unstoppable", gate=str(gate))
    job.wait(10, until=State.RUNNING)
    with pytest.raises(UsageError, match="cannot be suspended"):
        job.suspend()


def test_retry_is_a_new_job_like_the_old_one(face: Face, gate: Path) -> None:
    gate.touch()
    job = face.start("test-gate", gate=str(gate), fail=True, nice=3)
    job.wait(10)
    again = job.retry()
    info = again.wait(10)
    assert (again.id, info.retry_of, info.args) == (2, 1, job.info().args)
    done = face.start("test-gate", gate=str(gate))
    done.wait(10)
    with pytest.raises(WrongState):
        done.retry()
    never = face.start("test-two-phases")
    never.abort()
    with pytest.raises(UsageError, match="never to be repeated"):
        never.retry()


def test_the_current_job_is_the_last_started_or_the_one_that_was_set(face: Face, gate: Path) -> None:
    assert face.current() is None
    gate.touch()
    first, second = (face.start("test-gate", gate=str(gate)) for _ in range(2))
    assert face.current() == second
    face.set_current(first)
    assert face.current() == first
    third = face.start("test-gate", gate=str(gate))
    assert face.current() == third
    with pytest.raises(NoSuchJob):
        face.set_current(99)


def test_lists_can_be_narrowed(face: Face, gate: Path, image: Path) -> None:
    live = face.start("test-gate", gate=str(gate) + "never", image=str(image))
    gate.touch()
    face.start("test-gate", gate=str(gate), fail=True).wait(10)
    face.start("test-two-phases").abort()
    ids = [info.id for info in face.jobs()]
    assert ids == [3, 2, 1]
    live.wait(10, until=State.RUNNING)
    assert [info.id for info in face.jobs(state="running")] == [1]
    assert [info.id for info in face.jobs(state=[State.FAILED, State.ABORTED])] == [3, 2]
    assert [info.id for info in face.jobs(type="test-gate", limit=1)] == [2]
    assert [info.id for info in face.jobs(resource=str(image))] == [1]
    with pytest.raises(UsageError, match="states are"):
        face.jobs(state="sleeping")


def test_old_jobs_can_be_forgotten(face: Face, gate: Path) -> None:
    gate.touch()
    for _ in range(3):
        face.start("test-gate", gate=str(gate)).wait(10)
    assert face.forget(before=datetime.now() - timedelta(hours=1)) == 0
    assert face.forget() == 3
    assert face.jobs() == []


@pytest.mark.parametrize("id", [0, -1, 1 << 70, 4711])
def test_no_such_job(face: Face, id: int) -> None:
    with pytest.raises(NoSuchJob) as caught:
        face.job(id)
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
def test_a_request_without_sense_starts_nothing(face: Face, name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        face.start(name, **arguments)
    assert face.jobs() == []
    assert os.listdir(f"{face.home}/jobs") == []


def test_an_argument_may_be_larger_than_a_packet(face: Face) -> None:
    assert face.start("test-large", text="x" * 1_000_000).wait(20).result == {"length": 1_000_000}


def test_events_are_numbered_and_can_be_had_again(face: Face, gate: Path) -> None:
    gate.touch()
    with face.events() as events:
        job = face.start("test-gate", gate=str(gate))
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
    with face.events(since=numbers[1], job=job.id) as again:
        replayed = [event.number for event in iter(lambda: again.next(0.2), None)]
    assert replayed == numbers[2:]


def test_a_stream_can_be_closed_from_another_thread(face: Face) -> None:
    stream = face.events()
    seen: list[object] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    stream.close()
    reader.join(10)
    assert not reader.is_alive()


def test_a_job_reads_what_is_sent(face: Face, tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    job = face.start("test-count")
    assert job.send(io.BytesIO(content)) == len(content)
    assert job.wait(10, check=True).result == {"bytes": len(content)}
    with pytest.raises(WrongState, match="cannot send to job 1: it is completed"):
        job.send(io.BytesIO(b"more"))


def test_a_job_writes_what_is_received(face: Face, tmp_path: Path) -> None:
    job = face.start("test-fill", size=3_000_001)
    with open(tmp_path / "out", "wb") as file:
        assert job.receive(file) == 3_000_001
    assert (tmp_path / "out").read_bytes() == b"f" * 3_000_001
    assert job.wait(10).ok
    with pytest.raises(WrongState, match="cannot receive from job 1: it is completed"):
        job.receive(io.BytesIO())


def test_a_job_that_ends_early_ends_what_is_sent(face: Face) -> None:
    job = face.start("test-count")
    sent: list[int] = []
    with open("/dev/zero", "rb") as endless:
        sending = threading.Thread(target=lambda: sent.append(job.send(endless)))
        sending.start()
        wait_until(lambda: job.info().data_processed > 0)
        with pytest.raises(UsageError, match="somebody else has the stdin"):
            job.send(io.BytesIO(b"x"))
        job.abort()
        sending.join(10)
    assert sent[0] > 0
    assert job.info().state is State.ABORTED


def test_a_job_without_pipes_says_so(face: Face, gate: Path) -> None:
    job = face.start("test-gate", gate=str(gate))
    for wrong in (job.send, job.receive):
        with pytest.raises(UsageError, match="job 1 has no std"):
            wrong(io.BytesIO())


def test_output_that_ends_early_is_told_by_the_jobs_state(face: Face) -> None:
    job = face.start("test-fill", size=1 << 30)
    taken = Taken()
    receiving = threading.Thread(target=lambda: taken.counts.append(job.receive(taken)))
    receiving.start()
    wait_until(lambda: taken.size > 0)
    job.abort()
    receiving.join(10)
    assert 0 < taken.size == taken.counts[0] < 1 << 30
    assert job.info().state is State.ABORTED


def test_a_job_that_fails_before_it_writes_is_received_from_in_vain(face: Face, gate: Path) -> None:
    job = face.start("test-fill", size=-1, gate=str(gate))
    counts: list[int] = []
    receiving = threading.Thread(target=lambda: counts.append(job.receive(io.BytesIO())))
    receiving.start()
    wait_until(lambda: piping._taken)
    gate.touch()
    receiving.join(10)
    assert counts == [0]
    assert job.info().state is State.FAILED


class Taken(io.BytesIO):
    """Counts what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.counts: list[int] = []

    def write(self, piece: Any) -> int:
        self.size += len(piece)
        return len(piece)
