"""What a supervisor does first: find out what became of the jobs of the one before it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time

import msgspec

from jobvisor import depending, ending, entering, partial, recovery, spawner, store, verbs
from jobvisor.asking import dependencies
from jobvisor.engine import Engine
from jobvisor.events import RING
from jobvisor.info import JobInfo
from jobvisor.record import Notes
from jobvisor.request import resolve
from jobvisor.states import State
from jobvisor.watching import look_after
from jobvisor_workers.protocol import Request, decode_request
from jobvisor_workers.registry import UnknownType
from jobvisor_workers.settle import read_life

#: How much is kept of ended jobs.
JOBS_KEPT = 10_000
DAYS_KEPT = 90


def load(engine: Engine) -> None:
    """Before the pump runs: journal and job directories into records."""
    live = engine.journal.post(lambda db: _read(db, engine), durable=True).result()
    engine.hub.commit(engine.hub.last)
    for zygote in spawner.find(str(engine.home.run)):
        engine.pool.take(zygote)
    for request, notes in live:
        record = engine.admit(request, notes)
        record.accepted = True
        if request.after:
            depending.await_others(engine, record, _ends(engine, request))
        engine.settle(record)


def _ends(engine: Engine, request: Request) -> depending.Ends:
    """Of the jobs that this one comes after, and that are over."""
    gone = [job for job, _ in dependencies(request.after) if job not in engine.records]
    return engine.journal.post(lambda db: store.ends(db, gone)).result()


def resume(engine: Engine) -> None:
    """On the pump, first of all: adopt what lives, conclude what is dead, start what was never started."""
    for record in list(engine.records.values()):
        found = recovery.look(engine.home.job(record.id))
        known = record.id in engine.pool
        if not known and isinstance(found, recovery.Unclaimed):
            if record.notes.abort:
                ending.void(engine, record)
            elif not depending.doom(engine, record):
                entering.limit_wait(engine, record)
                if not record.notes.held:
                    engine.schedule.release(record.id)
            continue
        engine.schedule.begin(record.id)
        record.adopted = True
        record.move(State.STARTING)
        if record.notes.abort:
            record.move(State.ABORTING)
        if known:
            engine.pool.signal(record.id, signal.SIGUSR1)
            if record.notes.abort:
                engine.pool.abort(record.id, engine.grace, force=record.notes.force)
        else:
            look_after(engine, record)
    engine.pool.attach()
    for job in engine.expired:
        verbs.forget(engine, job)
    entering.run_queue(engine)


def _read(db: sqlite3.Connection, engine: Engine) -> list[tuple[Request, Notes]]:
    highest = _agree_with_directories(db, engine)
    engine.next_id = max(store.setting(db, "last_id"), highest) + 1
    # A reader that saw events which were not yet in the journal must not see their numbers again.
    engine.hub.begin(store.last_event(db) + RING)
    for info in store.untold_ends(db):
        store.log_event(db, engine.hub.state(info))
    engine.current = store.currents(db)
    engine.holds = {hold.scope: hold for hold in store.holds(db)}
    stale = {*store.surplus(db, JOBS_KEPT), *store.ended_before(db, time.time() - DAYS_KEPT * 86400)}
    for job in stale:
        if partial.disposable(engine.home.job(job)):  # may be another user's, and needs a zygote
            engine.expired.append(job)
            continue
        store.forget(db, job)
        shutil.rmtree(engine.home.job(job), ignore_errors=True)
    return store.live(db)


def _agree_with_directories(db: sqlite3.Connection, engine: Engine) -> int:
    """Rebuild rows that were lost; remove directories of starts that were never answered. Returns the highest id."""
    rows = {row[0] for row in db.execute("SELECT id FROM jobs")}
    directories = {int(name) for name in os.listdir(engine.home.jobs) if name.isdigit()}
    for job in sorted(directories - rows):
        directory = engine.home.job(job)
        try:
            with open(os.path.join(directory, "request"), "rb") as file:
                request = decode_request(file.read())
        except (FileNotFoundError, msgspec.DecodeError):
            shutil.rmtree(directory, ignore_errors=True)
            continue
        untouched = isinstance(recovery.look(directory), recovery.Unclaimed)
        if untouched and not engine.journal.is_new:
            shutil.rmtree(directory, ignore_errors=True)
            continue
        _rebuild(db, engine, request, directory)
    return max(rows | directories, default=0)


def _rebuild(db: sqlite3.Connection, engine: Engine, request: Request, directory: str) -> None:
    owner = request.requester.uid if request.requester else os.stat(directory).st_uid
    try:
        keys = {} if request.requester else resolve(request.type, request.args, request.connect, owner)
    except UnknownType:
        keys = {}
    notes = Notes(boot=engine.boot, owner_uid=owner, keys=keys, resources=list(keys))
    ended = isinstance(recovery.look(directory), recovery.Ended)
    voided = ended and not read_life(directory)
    notes.abort = voided
    store.insert(db, request, notes)
    # What another user's job has left is not ours to settle: `resume` comes to it when there is a zygote to ask.
    if ended and request.requester is None:
        base = JobInfo(
            id=request.id,
            type=request.type,
            state=State.RUNNING,
            args=request.args,
            resources=notes.resources,
            owner_uid=notes.owner_uid,
            created=request.created,
            retry_of=request.retry_of,
            log=os.path.join(directory, "log"),
        )
        store.finish(db, recovery.conclude(directory, base, None, asked=voided))
