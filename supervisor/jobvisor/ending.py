"""A job's way out: what became of it is found on the journal's thread, made durable, and then said. On the pump."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import msgspec

from jobvisor import depending, entering, partial, recovery, store
from jobvisor.engine import RECENT, Engine
from jobvisor.info import JobInfo
from jobvisor.record import Record
from jobvisor.states import Cause, State
from jobvisor_workers.protocol import Commit, Exit, Life, Requester
from jobvisor_workers.settle import settle

#: Seconds until a final state that could not be written is tried again.
WRITE_AGAIN = 1.0

#: How often, and seconds between, a user's directory is tried that does not answer.
SETTLE_TRIES = 3
SETTLE_AGAIN = 1.0

Outcome = JobInfo | recovery.Alive | recovery.Unclaimed | recovery.Ended


def conclude(engine: Engine, record: Record, told: Exit | None) -> None:
    """The worker's processes are gone. `told`: the zygote's notice."""
    if record.concluding:
        return
    record.concluding = True
    requester = record.request.requester
    left = recovery.left_by(engine.home.job(record.id)) if requester else []
    if requester and left:
        _settle_as(engine, record, requester, left, told)
    else:
        _conclude(engine, record, told, settle)


def _settle_as(engine: Engine, record: Record, requester: Requester, left: list[Life], told: Exit | None) -> None:
    """In a directory where the user may rename things, root would be led to remove any file: so the user removes it."""
    tries = iter(range(1, SETTLE_TRIES))

    def ask() -> None:
        engine.errands.settle(requester, left).add_done_callback(lambda done: answered(done.result()))

    def answered(stands: bool | None) -> None:
        if engine.closed:
            return
        if stands is None and next(tries, None):
            engine.pump.later(SETTLE_AGAIN, ask)
            return
        commit = next((line for line in left if isinstance(line, Commit)), None)
        _conclude(engine, record, told, lambda _: commit if stands else None, left if stands is None else [])

    ask()


def _conclude(
    engine: Engine, record: Record, told: Exit | None, settle: recovery.Settling, unsettled: Sequence[Life] = ()
) -> None:
    base, directory, notes = record.info(), engine.home.job(record.id), record.notes
    lost = None
    if notes.boot != engine.boot:
        lost = recovery.lost_by_reboot(record.request, notes.keys)

    def work(db: sqlite3.Connection) -> Outcome:
        found = recovery.look(directory)
        if not isinstance(found, recovery.Ended):
            return found
        final = recovery.conclude(directory, base, told, asked=notes.abort, late=notes.late, lost=lost, settle=settle)
        if unsettled:
            text = f"it could not be looked whether these are left: {', '.join(recovery.names_in(unsettled))}"
            final = msgspec.structs.replace(final, warnings=[*final.warnings, text])
        store.finish(db, final)
        earlier = partial.tell_earlier(db, engine.home, final)
        if earlier:
            engine.pump.call(lambda: engine.correct(earlier))
        return final

    _find_out(engine, record, work)


def void(
    engine: Engine, record: Record, state: State = State.ABORTED, cause: Cause | None = None, errmsg: str | None = None
) -> None:
    """End a job that no worker has; by default it was aborted. A late worker is kept from claiming it first."""
    base, directory = record.info(), engine.home.job(record.id)
    final = msgspec.structs.replace(
        base, state=state, cause=cause, errmsg=errmsg, ended=time.time(), reason=None, place=None, pid=None
    )

    def work(db: sqlite3.Connection) -> Outcome:
        if not recovery.void(directory):
            return recovery.look(directory)
        store.finish(db, final)
        return final

    _find_out(engine, record, work)


def _find_out(engine: Engine, record: Record, work: Callable[[sqlite3.Connection], Outcome]) -> None:
    """When it cannot be written (a full state disk) the job directories keep the truth, and it is tried again."""
    record.concluding = True

    def done(finished: Future[Outcome]) -> None:
        if finished.exception():
            engine.pump.call(lambda: later())
        else:
            outcome = finished.result()
            engine.pump.call(lambda: _found(engine, record, outcome))

    def later() -> None:
        engine.pump.later(WRITE_AGAIN, lambda: _find_out(engine, record, work))

    engine.journal.post(work, durable=True).add_done_callback(done)


def _found(engine: Engine, record: Record, outcome: Outcome) -> None:
    from jobvisor.watching import adopt

    if engine.closed:  # what is durable is found by the next supervisor, and so is what is not
        return
    record.concluding = False
    if isinstance(outcome, JobInfo):
        _finish(engine, record, outcome)
    elif isinstance(outcome, recovery.Alive):  # the one that ended lost the claim to an earlier worker
        engine.pool.drop(record.id)
        adopt(engine, record, outcome)
    elif isinstance(outcome, recovery.Ended):  # it was claimed before it could be declared void
        conclude(engine, record, None)
    elif record.notes.abort:
        void(engine, record)
    else:
        entering.spawn(engine, record)


def _finish(engine: Engine, record: Record, info: JobInfo) -> None:
    """The end is durable: say it, and let the next ones have the resources."""
    record.move(info.state)
    record.stop_waiting()
    del engine.records[record.id]
    engine.last_end = time.monotonic()
    engine.recent[record.id] = info
    if len(engine.recent) > RECENT:
        del engine.recent[next(iter(engine.recent))]
    engine.pool.acknowledge(record.id)
    engine.schedule.leave(record.id)
    engine.log_event(info)
    depending.ended(engine, record)
    for call in record.when_claimed:
        call()
    for waiter in record.waiters:
        late = None if waiter.met(record) else waiter.late(record)
        if late:
            waiter.future.set_exception(late)
        else:
            waiter.future.set_result(info)
    entering.run_queue(engine)
