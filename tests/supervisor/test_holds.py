"""As long as there is a hold nothing new starts that it is about; all else goes on."""

from pathlib import Path

import pytest

from jobvisor import Hold, State, Supervisor, UsageError, WrongHold
from jobvisor.face import Face
from support.gate_types import Gate  # noqa: F401 - makes the types of its module known


def test_a_hold_keeps_new_jobs_waiting_and_tells_them_why(face: Face, gate: Path) -> None:
    running = face.start("test-gate", gate=str(gate))
    running.wait(10, until=State.RUNNING)
    made = face.hold("backup of the journal")
    assert (made.uid, made.type, made.all_users, face.holds()) == (running.info().owner_uid, None, False, [made])
    queued = face.start("test-gate", gate=str(gate))
    gate.touch()
    assert running.wait(10).ok
    info = queued.info()
    assert (info.state, info.reason) == (State.QUEUED, f"held by {made.user}: backup of the journal")
    face.release()
    assert face.holds() == []
    assert queued.wait(10).ok


def test_holding_twice_names_the_first_and_release_undoes_only_what_was_held(face: Face, gate: Path) -> None:
    gate.touch()
    first = face.hold("first", type="test-gate")
    with pytest.raises(WrongHold, match=r"holds them already \(first\)") as caught:
        face.hold("second", type="test-gate")
    assert caught.value.hold == first
    with pytest.raises(WrongHold, match=f"what is held is {first.user}'s test-gate jobs"):
        face.release()
    queued = face.start("test-gate", gate=str(gate))
    assert face.start("test-two-phases").wait(10, until=State.READY).state is State.READY
    face.hold("all of them")
    face.release(type="test-gate")
    assert queued.info().reason == f"held by {first.user}: all of them"
    face.release()
    assert queued.wait(10).ok
    with pytest.raises(WrongHold, match="nothing is held"):
        face.release()
    face.job(2).complete()


@pytest.mark.parametrize(("reason", "type"), [("", None), ("two\nlines", None), ("x" * 201, None), ("why", "wipee")])
def test_a_hold_without_sense_is_none(face: Face, reason: str, type: str | None) -> None:
    with pytest.raises(UsageError):
        face.hold(reason, type=type)
    assert face.holds() == []


def test_a_held_job_is_in_nobodys_way_and_keeps_its_turn(supervisor: Supervisor, gate: Path, image: Path) -> None:
    supervisor.hold("not now", type="test-gate")
    held = supervisor.start("test-gate", gate=str(gate), image=str(image))
    reader = supervisor.start("test-look", gate=str(gate), volume=str(image))
    assert reader.wait(10, until=State.RUNNING).state is State.RUNNING
    supervisor.release(type="test-gate")
    late = supervisor.start("test-look", gate=str(gate), volume=str(image))
    assert (held.info().reason, held.info().place) == (f"{image} is in use by job 2", 1)
    assert (late.info().reason, late.info().place) == (f"{image} is wanted before by job 1", 2)
    gate.touch()
    assert late.wait(10).ok
    assert held.info().ok


def test_a_hold_outlives_the_supervisor(tmp_path: Path, gate: Path) -> None:
    home = tmp_path / "home"
    gate.touch()
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        made = supervisor.hold("maintenance", all_users=True)
        supervisor.start("test-gate", gate=str(gate))
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        info = supervisor.job(1).info()
        assert (info.state, info.reason) == (State.QUEUED, f"held by {made.user}: maintenance")
        assert supervisor.holds() == [made]
        with pytest.raises(WrongHold):
            supervisor.release()
        supervisor.release(all_users=True)
        assert supervisor.job(1).wait(10).ok


def test_whose_jobs_of_which_type_a_hold_is_about() -> None:
    def hold(**more: object) -> Hold:
        return Hold(user="alice", uid=7, reason="why", since=0.0, **more)  # type: ignore[arg-type]

    assert [hold().covers(uid, "wipe") for uid in (7, 8)] == [True, False]
    assert [hold(all_users=True).covers(uid, "wipe") for uid in (7, 8)] == [True, True]
    assert [hold(type="wipe").covers(7, name) for name in ("wipe", "clone")] == [True, False]
    assert hold(type="wipe").about == "alice's wipe jobs"
