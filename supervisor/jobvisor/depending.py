"""Jobs that come after others: `--after 7` waits until job 7 completed. On the pump.

A job can only come after one that is there already, so its id is smaller, and no circle is possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

from jobvisor import ending, store
from jobvisor.asking import dependencies
from jobvisor.engine import Engine
from jobvisor.errors import NoSuchJob
from jobvisor.record import Doom, Record
from jobvisor.states import Cause, State
from jobvisor_workers.protocol import Request

#: Of each job that ended: whose it was, its type, and how it ended.
Ends = dict[int, tuple[int, str, State]]
#: What a dependency waits for → the ends that meet it.
MEETS: Mapping[str, frozenset[State]] = {
    "ok": frozenset({State.COMPLETED}),
    "any": frozenset({State.COMPLETED, State.FAILED, State.ABORTED}),
    "failed": frozenset({State.FAILED, State.ABORTED}),
}


def look(engine: Engine, request: Request, uid: int) -> Future[Ends]:
    """How the jobs ended that a new one is to come after, as far as they have. Raises NoSuchJob.

    `uid`: whose it is: for a user there are no jobs but their own.
    """
    named = {job for job, _ in dependencies(request.after)}

    def seen(found: Ends) -> Ends:
        for job in sorted(named):
            owner = engine.owner(job) if job not in found else found[job][0]
            if owner is None or not engine.may_see(owner, uid):
                raise NoSuchJob(job)
        return found

    def find() -> Future[Ends]:
        gone = sorted(named - engine.records.keys())
        return engine.pump.then(engine.journal.post(lambda db: store.ends(db, gone)), again)

    def again(found: Ends) -> Ends | Future[Ends]:
        # One that ended while the journal was read is looked up once more.
        return seen(found) if named <= engine.records.keys() | found.keys() or not _lately(found) else find()

    def _lately(found: Ends) -> bool:
        return any(job in engine.recent for job in named - engine.records.keys() - found.keys())

    return find()


def await_others(engine: Engine, record: Record, ends: Ends) -> None:
    """A job that was accepted: what it still waits for, or that its turn can never come."""
    for job, when in dependencies(record.request.after):
        if job in record.notes.after_met:
            continue
        if job in engine.records:
            record.after[job] = when
            engine.dependents.setdefault(job, []).append(record.id)
        elif job in engine.recent:
            _meet(record, job, when, engine.recent[job].type, engine.recent[job].state)
        elif job in ends:
            _, name, state = ends[job]
            _meet(record, job, when, name, state)
        else:
            why = f"job {job} was forgotten before it could be seen how it ended"
            record.doom = record.doom or Doom(State.FAILED, Cause.DEPENDENCY, why)


def ended(engine: Engine, other: Record) -> None:
    """The end of a job is durable: those that come after it may start, or end too."""
    for job in engine.dependents.pop(other.id, []):
        record = engine.records.get(job)
        if record is None or record.state is not State.QUEUED:
            continue
        when = record.after.pop(other.id)
        _meet(record, other.id, when, other.request.type, other.state)
        engine.note(record)
        engine.settle(record)
        if record.accepted:
            doom(engine, record)


def doom(engine: Engine, record: Record) -> bool:
    """End a queued job whose turn cannot come any more."""
    if record.doom is None or record.state is not State.QUEUED or record.concluding:
        return record.doom is not None
    ending.void(engine, record, record.doom.state, record.doom.cause, record.doom.errmsg)
    return True


def _meet(record: Record, job: int, when: str, name: str, state: State) -> None:
    if state in MEETS[when]:
        record.notes.after_met = [*record.notes.after_met, job]
    elif when == "ok":
        why = f"it was to come after job {job} ({name}), which {'failed' if state is State.FAILED else 'was aborted'}"
        record.doom = Doom(State.FAILED, Cause.DEPENDENCY, why)
    else:
        why = f"it was to start only if job {job} ({name}) failed, and that completed"
        record.doom = Doom(State.ABORTED, Cause.DEPENDENCY, why)
