"""A job's way in: accepted and durable, queued behind others, forked. All on the pump."""

from __future__ import annotations

import shutil
import sqlite3
import time
from concurrent.futures import Future

import msgspec

from jobvisor import depending, ending, once, partial, store, streams
from jobvisor.config import Config
from jobvisor.engine import Engine, counts_in, needs_of
from jobvisor.errors import Busy
from jobvisor.info import JobInfo
from jobvisor.once import Once
from jobvisor.reasons import explain, path_of
from jobvisor.record import Notes, Record
from jobvisor.request import declared, key_of_name, resolve
from jobvisor.states import Cause, State
from jobvisor_workers.protocol import Request, Requester, Seen
from jobvisor_workers.registry import UnknownType

#: A worker that dies before it could claim its job is forked again so often.
SPAWNS_MAX = 3

#: Path → (key, access) of the resources of a job that could be told apart.
Keys = dict[str, tuple[str, str]]


def start(engine: Engine, request: Request, notes: Notes, named: Once | None = None) -> Future[JobInfo]:
    """Accept a job: it gets its id here, and the future resolves when it is durable. `request.id` is not used.

    `named`: what is written down with it, so that `once` finds it.

    Raises Busy.
    """
    engine.check_open()
    requester = request.requester
    if requester is None:
        return _after_others(engine, request, notes, named)

    def looked(keys: Keys) -> Future[JobInfo]:
        return _after_others(engine, with_keys(request, keys), msgspec.structs.replace(notes, keys=keys), named)

    return engine.pump.then(_look(engine, request, requester), looked)


def with_keys(request: Request, keys: Keys) -> Request:
    return msgspec.structs.replace(request, resolved={path: key for path, (key, _) in keys.items()})


def _after_others(engine: Engine, request: Request, notes: Notes, named: Once | None) -> Future[JobInfo]:
    if not request.after:
        return _accept(engine, request, notes, named, {})
    ends = depending.look(engine, request, notes.owner_uid)
    return engine.pump.then(ends, lambda found: _accept(engine, request, notes, named, found))


def _accept(
    engine: Engine, request: Request, notes: Notes, named: Once | None, ends: depending.Ends
) -> Future[JobInfo]:
    engine.check_open()
    if request.on_conflict == "fail":
        _refuse_conflict(engine, request, notes)
    request = msgspec.structs.replace(request, id=engine.next_id)
    engine.next_id += 1
    directory = engine.home.job(request.id)
    record = engine.admit(request, notes)
    depending.await_others(engine, record, ends)
    engine.settle(record)
    started: Future[JobInfo] = Future()

    def accepted(error: BaseException | None) -> None:
        if error:
            engine.schedule.leave(record.id)
            del engine.records[record.id]
            shutil.rmtree(directory, ignore_errors=True)
            started.set_exception(error)
            return
        if engine.closed:  # accepted all the same: the next supervisor starts it
            started.set_result(record.info())
            return
        engine.set_current(notes.owner_uid, record.id)
        record.accepted = True
        engine.announce(record)
        if not depending.doom(engine, record):
            engine.schedule.release(record.id)
            limit_wait(engine, record)
            run_queue(engine)
        started.set_result(record.info())

    def write(db: sqlite3.Connection) -> None:
        streams.make(directory, request)
        store.accept(db, directory, request, notes)
        if request.retry_of is not None:
            partial.hand_on(engine.home.job(request.retry_of), directory)
        once.keep(db, named, request.id)

    written = engine.journal.post(write, durable=True)
    written.add_done_callback(lambda done: engine.pump.call(lambda: accepted(done.exception())))
    return started


def run_queue(engine: Engine) -> None:
    """Start what may start, and tell the others what they wait for."""
    if engine.closed:
        return
    while (job := engine.schedule.next()) is not None:
        record = engine.records[job]
        if record.concluding:  # its end is being written down
            engine.schedule.hold(job)
        elif record.waited and engine.schedule.needs(job):
            engine.schedule.hold(job)
            _resolve_again(engine, record)
        else:
            engine.schedule.begin(job)
            record.reason = record.place = None
            record.stop_waiting()
            record.move(State.STARTING)
            engine.announce(record)
            spawn(engine, record)
    for job in engine.schedule.moved():
        _explain(engine, engine.records[job])


def limit_wait(engine: Engine, record: Record) -> None:
    """See to it that a queued job does not wait for longer than its queue limit."""
    limit = record.request.queue_limit
    if limit is None:
        return

    def over() -> None:
        if record.state is State.QUEUED and not record.concluding and not engine.closed:
            reason, _ = explain(engine, record)
            why = f"it waited for longer than its queue limit of {limit:g} s" + (f": {reason}" if reason else "")
            ending.void(engine, record, State.FAILED, Cause.QUEUE_LIMIT, why)

    record.wait_limit = engine.pump.later(max(0.0, record.request.created + limit - time.time()), over)


def configure(engine: Engine, config: Config) -> None:
    """What is in effect from now on; what runs goes on, also above a limit."""
    engine.config = config
    engine.schedule.limit(config.limits)
    run_queue(engine)


def settle(engine: Engine) -> None:
    """What may start at all has changed."""
    queued = [engine.records[job] for job in engine.schedule.queued()]
    for record in queued:
        engine.settle(record)
    run_queue(engine)
    for record in queued:
        _explain(engine, record)


def spawn(engine: Engine, record: Record) -> None:
    """Ask the zygote for a worker; again when the one before died before its claim, since nothing was done then."""
    if engine.closed:
        return
    engine.pool.drop(record.id)
    if record.spawns >= SPAWNS_MAX:
        why = f"{record.spawns} workers died before they could begin; see {engine.home.run}/zygote.log"
        ending.void(engine, record, State.FAILED, Cause.WORKER_LOST, why)
        return
    record.spawns += 1
    if record.notes.boot != engine.boot:  # accepted before the host was started anew
        record.notes.boot = engine.boot
        engine.note(record)
    try:
        engine.pool.spawn(record, engine.home.job(record.id), engine.grace)
    except OSError as error:
        ending.void(engine, record, State.FAILED, Cause.ERROR, f"cannot start the zygote: {error}")


def _refuse_conflict(engine: Engine, request: Request, notes: Notes) -> None:
    blocked = engine.schedule.in_the_way(needs_of(notes), priority=request.priority)
    if blocked:
        key, other = blocked
        raise Busy(path_of(notes, key), engine.holder(other, notes.owner_uid))


def _explain(engine: Engine, record: Record) -> None:
    reason, place = explain(engine, record)
    if reason is not None and record.state is State.QUEUED:
        record.waited = True
        if reason != record.reason:
            record.reason, record.place = reason, place
            engine.announce(record)


def _resolve_again(engine: Engine, record: Record) -> None:
    """It waited: its paths may name other files now. Not on the pump, which a hung file system would hang."""
    request = record.request

    def done(looked: Future[Keys]) -> None:
        if record.state is not State.QUEUED or engine.closed:
            return
        record.waited = False
        if looked.exception() is None:  # whatever is wrong now, the worker says it with the rights it has
            record.notes.keys = looked.result()
            record.request = with_keys(record.request, record.notes.keys)
            engine.schedule.replace(record.id, needs_of(record.notes), counts_in(record))
        if not record.notes.held:
            engine.schedule.release(record.id)
        run_queue(engine)

    if request.requester:
        looked = _look(engine, request, request.requester)
    else:
        uid = record.notes.owner_uid
        looked = engine.pump.aside(lambda: resolve(request.type, request.args, request.connect, uid))
    looked.add_done_callback(lambda _: engine.pump.call(lambda: done(looked)))


def _look(engine: Engine, request: Request, requester: Requester) -> Future[Keys]:
    """As `resolve`, with the rights of the user whom the job is for."""
    try:
        volumes = declared(request.type, request.args)
    except UnknownType:  # of a supervisor before this one: the worker says so
        volumes = []
    names = {each.path: key_of_name(each.path, request.connect, requester.uid) for each in volumes}

    def keys(seen: dict[str, Seen]) -> Keys:
        known = {path: found.key for path, found in seen.items() if found.key}
        known |= {name: key for name, key in names.items() if key}
        return {each.path: (known[each.path], each.access) for each in volumes if each.path in known}

    paths = [each for each in volumes if not names[each.path]]
    return engine.pump.then(engine.errands.look(requester, paths), keys)
