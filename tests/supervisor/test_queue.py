"""Jobs that come after others, go first, or do not wait for ever."""

from pathlib import Path
from typing import Any

import pytest

from jobvisor import NoSuchJob, State, Supervisor, UsageError
from jobvisor.face import Face
from support.gate_types import Gate  # noqa: F401 - makes the types of its module known


@pytest.mark.parametrize(
    ("when", "how", "state", "cause"),
    [
        ("ok", "completed", "completed", None),
        ("ok", "failed", "failed", "dependency"),
        ("ok", "aborted", "failed", "dependency"),
        ("any", "failed", "completed", None),
        ("failed", "aborted", "completed", None),
        ("failed", "completed", "aborted", "dependency"),
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_a_job_comes_after_another(
    supervisor: Supervisor, gate: Path, when: str, how: str, state: str, cause: str | None, early: bool
) -> None:
    """`early`: the other one has ended before there is this one."""
    other = supervisor.start("test-gate", gate=str(gate), fail=how == "failed")
    end = Path(f"{gate}-open")
    end.touch()

    def go() -> None:
        if how == "aborted":
            other.abort()
        gate.touch()
        assert other.wait(10).state == how

    if early:
        go()
    job = supervisor.start("test-gate", gate=str(end), after=f"{when}:{other.id}")
    if not early:
        reason = "job 1 has not completed yet" if when == "ok" else "job 1 has not ended yet"
        assert (job.info().state, job.info().reason, job.info().after) == (State.QUEUED, reason, [f"{when}:1"])
        go()
    info = job.wait(10)
    assert (info.state, info.cause) == (state, cause)
    assert (info.errmsg is None) == (cause is None)
    if cause:
        assert "job 1 (test-gate)" in (info.errmsg or "")


def test_the_interface_for_it(face: Face, gate: Path) -> None:
    first = face.start("test-gate", gate=str(gate))
    second = face.start("test-gate", gate=str(gate))
    last = face.start("test-gate", gate=str(gate), after=[first, second.id], priority=-3, queue_limit=60)
    info = last.info()
    assert (info.after, info.priority, info.state) == (["ok:1", "ok:2"], -3, State.QUEUED)
    gate.touch()
    assert last.wait(10).ok
    assert (first.info().ok, second.info().ok) == (True, True)


@pytest.mark.parametrize("after", ["2", "99", "7,any:1", "99999999999999999"])
def test_a_job_comes_after_none_that_is_not_there(face: Face, gate: Path, after: str) -> None:
    """Itself among them: it has no id yet."""
    gate.touch()
    face.start("test-gate", gate=str(gate)).wait(10)
    with pytest.raises(NoSuchJob):
        face.start("test-gate", gate=str(gate), after=after)
    assert len(face.jobs()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"after": "never:1"},
        {"after": "x"},
        {"after": "-1"},
        {"after": ["1", "any:1"]},
        {"after": ""},
        {"priority": 101},
        {"queue_limit": 0},
        {"queue_limit": -1},
    ],
)
def test_a_wish_without_sense_starts_nothing(face: Face, gate: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        face.start("test-gate", gate=str(gate), **options)
    assert face.jobs() == []


def test_an_end_goes_down_the_whole_chain_and_a_retry_waits_for_the_retry(supervisor: Supervisor, gate: Path) -> None:
    first = supervisor.start("test-gate", gate=str(gate))
    second = supervisor.start("test-gate", gate=str(gate), after=first)
    third = supervisor.start("test-gate", gate=str(gate), after=second)
    first.abort()
    assert third.wait(10).errmsg == "it was to come after job 2 (test-gate), which failed"
    lonely = second.retry()
    assert lonely.wait(10).cause == "dependency"
    again, behind = first.retry(), second.retry()
    assert behind.info().after == [f"ok:{again.id}"]
    assert behind.info().reason == f"job {again.id} has not completed yet"
    gate.touch()
    assert behind.wait(10).ok


def test_what_waits_for_another_job_is_in_nobodys_way(supervisor: Supervisor, gate: Path, image: Path) -> None:
    other = supervisor.start("test-gate", gate=str(gate))
    writer = supervisor.start("test-gate", gate=str(gate), image=str(image), after=other, priority=9)
    reader = supervisor.start("test-look", gate=str(gate), volume=str(image))
    assert reader.wait(10, until=State.RUNNING).state is State.RUNNING
    gate.touch()
    assert writer.wait(10).ok


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_dependencies_outlive_the_supervisor(home: Path, gate: Path) -> None:
    open_gate = Path(f"{gate}-open")
    open_gate.touch()
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        running = supervisor.start("test-gate", gate=str(gate))
        done = supervisor.start("test-gate", gate=str(open_gate))
        supervisor.start("test-gate", gate=str(gate), after=[running, done])
        done.wait(10)
        done.forget()
        supervisor.start("test-gate", gate=str(gate), after=f"failed:{running.id}")
        running.wait(10, until=State.RUNNING)
    gate.touch()
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        assert supervisor.job(3).wait(10).ok
        assert supervisor.job(4).wait(10).cause == "dependency"


def test_the_higher_priority_goes_first_and_the_older_job_where_it_is_the_same(
    supervisor: Supervisor, gate: Path, image: Path
) -> None:
    jobs = [
        supervisor.start("test-gate", gate=f"{gate}{number}", image=str(image), priority=priority)
        for number, priority in enumerate([0, -5, 0, 7, 0])
    ]
    assert [job.info().place for job in jobs] == [None, 4, 2, 1, 3]
    for number in (0, 3, 2, 4, 1):
        jobs[number].wait(10, until=State.RUNNING)
        assert [job.info().state for job in jobs].count(State.RUNNING) == 1
        Path(f"{gate}{number}").touch()
        assert jobs[number].wait(10).ok


def test_a_queue_limit_ends_what_waits_and_nothing_that_has_begun(
    supervisor: Supervisor, gate: Path, image: Path
) -> None:
    running = supervisor.start("test-gate", gate=str(gate), image=str(image), queue_limit=0.2)
    waiting = supervisor.start("test-gate", gate=str(gate), image=str(image), queue_limit=0.3)
    info = waiting.wait(10)
    assert (info.state, info.cause) == (State.FAILED, "queue-limit")
    assert info.errmsg == f"it waited for longer than its queue limit of 0.3 s: {image} is in use by job 1"
    assert running.info().state is State.RUNNING
    gate.touch()
    assert running.wait(10).ok


def test_a_queue_limit_counts_while_there_is_no_supervisor(home: Path, gate: Path, image: Path) -> None:
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        supervisor.hold("not now")
        job = supervisor.start("test-gate", gate=str(gate), queue_limit=0.01)
        created = job.info().created
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        info = supervisor.job(1).wait(10)
        assert (info.cause, (info.ended or 0) > created) == ("queue-limit", True)
