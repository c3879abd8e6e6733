"""A job's way out: what became of it is found on the journal's thread, made durable, and then said. On the pump."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from jobvisor import entering, recovery, store
from jobvisor.engine import RECENT, Engine
from jobvisor.info import JobInfo
from jobvisor.record import Record
from jobvisor.states import Cause, State
from jobvisor_workers.protocol import Exit

#: Seconds until a final state that could not be written is tried again.
WRITE_AGAIN = 1.0

Outcome = JobInfo | recovery.Alive | recovery.Unclaimed


def conclude(engine: Engine, record: Record, told: Exit | None) -> None:
    """The worker's processes are gone. `told`: the zygote's notice."""
    if record.concluding:
        return
    base, directory, notes = record.info(), engine.home.job(record.id), record.notes

    def work(db: sqlite3.Connection) -> Outcome:
        found = recovery.look(directory)
        if not isinstance(found, recovery.Ended):
            return found
        rebooted = notes.boot != engine.boot
        final = recovery.conclude(directory, base, told, asked=notes.abort, late=notes.late, rebooted=rebooted)
        store.finish(db, final)
        return final

    _find_out(engine, record, work)


def void(
    engine: Engine, record: Record, state: State = State.ABORTED, cause: Cause | None = None, errmsg: str | None = None
) -> None:
    """End a job that no worker has; by default it was aborted. A late worker is kept from claiming it first."""
    base, directory, notes = record.info(), engine.home.job(record.id), record.notes
    final = msgspec.structs.replace(
        base, state=state, cause=cause, errmsg=errmsg, ended=time.time(), reason=None, pid=None
    )

    def work(db: sqlite3.Connection) -> Outcome:
        outcome = final
        if not recovery.void(directory):
            found = recovery.look(directory)
            if not isinstance(found, recovery.Ended):
                return found
            outcome = recovery.conclude(directory, base, None, asked=notes.abort)
        store.finish(db, outcome)
        return outcome

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
    elif record.notes.abort:
        void(engine, record)
    else:
        entering.spawn(engine, record)


def _finish(engine: Engine, record: Record, info: JobInfo) -> None:
    """The end is durable: say it, and let the next ones have the resources."""
    record.move(info.state)
    del engine.records[record.id]
    engine.last_end = time.monotonic()
    engine.recent[record.id] = info
    if len(engine.recent) > RECENT:
        del engine.recent[next(iter(engine.recent))]
    engine.pool.acknowledge(record.id)
    engine.schedule.leave(record.id)
    engine.log_event(info)
    for call in record.when_claimed:
        call()
    for waiter in record.waiters:
        late = None if waiter.met(record) else waiter.late(record)
        if late:
            waiter.future.set_exception(late)
        else:
            waiter.future.set_result(info)
    entering.run_queue(engine)
