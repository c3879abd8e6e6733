"""The tables are complete, and agree with each other."""

import pytest

from jobvisor.record import Notes, Record
from jobvisor.states import ALLOWED, FINAL, MEANING, NEXT, State, Verb
from jobvisor_workers.protocol import Request


def test_every_state_has_its_rows() -> None:
    assert set(ALLOWED) == set(NEXT) == set(MEANING) == set(State)


def test_final_states_stay() -> None:
    assert {state for state in State if not NEXT[state]} == FINAL
    assert all(state.final == (state in FINAL) for state in State)


@pytest.mark.parametrize("state", [state for state in State if not state.final])
def test_every_other_state_can_end_in_each_final_one_and_be_aborted(state: State) -> None:
    assert NEXT[state] >= FINAL
    assert Verb.ABORT in ALLOWED[state]


@pytest.mark.parametrize("state", sorted(FINAL))
def test_final_jobs_can_be_forgotten_and_retried_unless_they_completed(state: State) -> None:
    assert (ALLOWED[state] == {Verb.FORGET}) == (state is State.COMPLETED)
    assert Verb.FORGET in ALLOWED[state]


@pytest.mark.parametrize("before", list(State))
@pytest.mark.parametrize("after", list(State))
def test_a_record_moves_by_the_table_only(before: State, after: State) -> None:
    record = Record(Request(1, "t", {}, 0.0), Notes(), "")
    record.state = before
    if before is after:
        assert not record.move(after)
    elif after in NEXT[before]:
        assert record.move(after)
        assert record.state is after
    else:
        with pytest.raises(RuntimeError, match=f"from {before} to {after}"):
            record.move(after)
