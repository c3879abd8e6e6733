"""What can be asked of a job; each verb is checked against the table in `states`, and resolves when it is true.

All run on the pump. With `wait=False` the future resolves when the request is on its way.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from jobvisor import ending, entering, once, partial, store
from jobvisor.asking import Options, dependencies
from jobvisor.engine import Engine
from jobvisor.errors import Unreachable, UsageError, WrongState
from jobvisor.info import JobInfo
from jobvisor.once import Once
from jobvisor.reasons import HELD, explain
from jobvisor.record import Notes, Record, Waiter
from jobvisor.states import ALLOWED, State, Verb
from jobvisor_workers import registry
from jobvisor_workers.protocol import Life, Request, Requester
from jobvisor_workers.settle import settle

#: Request and notes of a job, and what one like it comes after.
Before = tuple[Request, Notes, list[str] | None]


def suspend(engine: Engine, id: int, wait: bool) -> Future[JobInfo]:
    """Stop every process of the job. Types that a stop would harm say so by can_suspend."""
    return _on(engine, id, Verb.SUSPEND, lambda record: _suspend(engine, record, wait))


def _suspend(engine: Engine, record: Record, wait: bool) -> Future[JobInfo]:
    id = record.id  # noqa: A001
    if not registry.get(record.request.type).can_suspend:
        raise UsageError(f"cannot suspend job {id}: a {record.request.type} job cannot be suspended")
    if record.report.delegated:
        raise UsageError(f"cannot suspend job {id}: another program does its work, and cannot be told to stop")
    if record.state is State.QUEUED:
        record.notes.held = True
        record.reason, record.place, record.waited = HELD, None, True
        engine.schedule.hold(id)
        engine.note(record)
        engine.announce(record)
        return _done(record)
    _when_claimed(record, lambda: engine.pool.suspend(id))
    return _until(engine, record, Verb.SUSPEND, wait, lambda job: job.state is State.SUSPENDED)


def resume(engine: Engine, id: int, wait: bool) -> Future[JobInfo]:
    """Let the job go on; a queued one that was held may start again."""
    return _on(engine, id, Verb.RESUME, lambda record: _resume(engine, record, wait))


def _resume(engine: Engine, record: Record, wait: bool) -> Future[JobInfo]:
    if record.state is State.QUEUED:
        record.notes.held = False
        record.reason, record.place = explain(engine, record)
        engine.schedule.release(record.id)
        engine.note(record)
        engine.announce(record)
        entering.run_queue(engine)
        return _done(record)
    engine.pool.resume(record.id)
    # One that was adopted while it was suspended has told this supervisor nothing: it counts as starting until then.
    unknown = (State.SUSPENDED, State.STARTING)
    return _until(engine, record, Verb.RESUME, wait, lambda job: job.state not in unknown)


def abort(engine: Engine, id: int, wait: bool, force: bool = False) -> Future[JobInfo]:
    """End the job: TERM, and KILL after the grace period; `force`: KILL now. True when its last process is gone."""
    return _on(engine, id, Verb.ABORT, lambda record: _abort(engine, record, wait, force))


def _abort(engine: Engine, record: Record, wait: bool, force: bool) -> Future[JobInfo]:
    queued = record.state is State.QUEUED
    record.notes.abort = True
    record.notes.force = record.notes.force or force
    engine.note(record)
    if record.move(State.ABORTING):
        engine.announce(record)
    if queued:
        ending.void(engine, record)
    elif not record.concluding:
        engine.pool.abort(record.id, engine.grace, force=force)
    return _until(engine, record, Verb.ABORT, wait, lambda job: job.state.final)


def complete(engine: Engine, id: int, wait: bool) -> Future[JobInfo]:
    """Tell a two-phase job that is ready to finish."""

    def do(record: Record) -> Future[JobInfo]:
        engine.pool.signal(id, signal.SIGUSR2)
        return _until(engine, record, Verb.COMPLETE, wait, lambda job: job.state is not State.READY)

    return _on(engine, id, Verb.COMPLETE, do)


def retry(engine: Engine, id: int, requester: Requester | None, named: Once | None) -> Future[JobInfo]:
    """A new job like this one, with retry_of; resolves to its info when it is durable.

    It is for the same user as this one, with the groups that `requester` has now if that is the user who asks. It comes
    after the newest retries of those that this one came after: a wipe is not to run because the copy before it failed.
    """

    def again(found: Before) -> tuple[Request, Notes]:
        from jobvisor.request import build

        request, told, after = found
        if registry.get(request.type).retry == "never":
            raise UsageError(
                f"cannot retry job {id}: jobs of type {request.type} are never to be repeated as they were"
            )
        known = msgspec.structs.asdict(request)
        options = Options(**{name: known[name] for name in Options.__struct_fields__} | {"after": after})
        same = requester if requester and requester.uid == told.owner_uid else request.requester
        fresh, notes = build(request.type, request.args, options, requester=same, umask=request.umask)
        return msgspec.structs.replace(fresh, retry_of=id), notes

    def build_again(found: Before) -> Future[tuple[Request, Notes]]:
        return engine.pump.aside(lambda: again(found))

    def accept(fresh: tuple[Request, Notes]) -> Future[JobInfo]:
        return entering.start(engine, *fresh, named)

    def start() -> Future[JobInfo]:
        _check_final(engine, id, Verb.RETRY)
        looked_up = engine.journal.post(lambda db: _retryable(db, id))
        built: Future[tuple[Request, Notes]] = engine.pump.then(looked_up, build_again)
        return engine.pump.then(built, accept)

    return once.start(engine, named, start)


def forget(engine: Engine, id: int) -> Future[None]:
    """Remove all that is known of a final job, and the partial that it kept, unless a retry needs that.

    Raises Unreachable when another user's partial cannot be removed.
    """
    _check_final(engine, id, Verb.FORGET)
    engine.recent.pop(id, None)
    for uid, current in list(engine.current.items()):
        if current == id:
            del engine.current[uid]
    directory = engine.home.job(id)

    def look(db: sqlite3.Connection) -> tuple[Requester | None, list[Life]]:
        store.info(db, id)
        requester = store.request_of(db, id)[0].requester
        return requester, partial.disposable(directory) if requester else []

    def remove(found: tuple[Requester | None, list[Life]]) -> Future[None]:
        requester, left = found
        if requester and left:
            return engine.pump.then(engine.errands.settle(requester, left), gone)
        return engine.journal.post(work)

    def gone(answer: bool | None) -> Future[None]:
        if answer is None:
            raise Unreachable(f"cannot forget job {id}: the directory of its partial does not answer; try again later")
        return engine.journal.post(work)

    def work(db: sqlite3.Connection) -> None:
        if store.request_of(db, id)[0].requester is None:
            settle(partial.disposable(directory))
        store.forget(db, id)
        if os.path.isdir(directory):
            shutil.rmtree(directory)

    return engine.pump.then(engine.journal.post(look), remove)


def _on(engine: Engine, id: int, verb: Verb, do: Callable[[Record], Future[JobInfo]]) -> Future[JobInfo]:
    """Raises WrongState; a job that is not live is looked up to say in which state it is, or that there is none."""
    record = engine.records.get(id)
    if record is None:
        return engine.journal.post(lambda db: _refuse(verb, store.info(db, id)))
    held_up = verb is Verb.RESUME and record.state is State.QUEUED and not record.notes.held
    if verb not in ALLOWED[record.state] or held_up:
        raise WrongState(id, record.state, verb, ALLOWED[record.state] - {verb})
    return do(record)


def _refuse(verb: Verb, info: JobInfo) -> JobInfo:
    raise WrongState(info.id, info.state, verb, ALLOWED[info.state])


def _check_final(engine: Engine, id: int, verb: Verb) -> None:
    if id in engine.records:
        state = engine.records[id].state
        raise WrongState(id, state, verb, ALLOWED[state])


def _retryable(db: sqlite3.Connection, id: int) -> Before:
    request, notes = store.request_of(db, id)
    state = store.info(db, id).state
    if Verb.RETRY not in ALLOWED[state]:
        raise WrongState(id, state, Verb.RETRY, ALLOWED[state])
    forgotten = set(notes.after_met) - store.ends(db, notes.after_met).keys()
    others = [(job, when) for job, when in dependencies(request.after) if job not in forgotten]
    after = [f"{when}:{store.last_retry(db, job)}" for job, when in others]
    return request, notes, after or None


def _when_claimed(record: Record, call: Callable[[], None]) -> None:
    if record.claimed:
        call()
    else:
        record.when_claimed.append(call)


def _until(engine: Engine, record: Record, verb: Verb, wait: bool, met: Callable[[Record], bool]) -> Future[JobInfo]:
    if not wait:
        return _done(record)
    return engine.wait(record.id, Waiter(met, lambda job: WrongState(job.id, job.state, verb, ALLOWED[job.state])))


def _done(record: Record) -> Future[JobInfo]:
    future: Future[JobInfo] = Future()
    future.set_result(record.info())
    return future
