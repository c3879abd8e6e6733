"""Holds: as long as one is there, no new job that it is about starts. They survive the supervisor. On the pump."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from jobvisor.asking import checked_reason
from jobvisor.errors import WrongHold
from jobvisor.hold import Hold, about, scope

if TYPE_CHECKING:
    from jobvisor.engine import Engine
    from jobvisor.record import Record


def over(engine: Engine, record: Record) -> Hold | None:
    """The first hold that keeps a job from starting."""
    owner, name = record.notes.owner_uid, record.request.type
    return next((hold for hold in engine.holds.values() if hold.covers(owner, name)), None)


def hold(engine: Engine, user: str, uid: int, reason: str, type: str | None, all_users: bool) -> Future[Hold]:
    """Nothing new starts from now on; resolves when that is durable. Raises WrongHold."""
    from jobvisor import entering, store

    made = Hold(user=user, uid=uid, type=type, all_users=all_users, reason=checked_reason(reason), since=time.time())
    if made.scope in engine.holds:
        first = engine.holds[made.scope]
        why = f"{first.user} holds them already ({first.reason}); release them first"
        raise WrongHold(f"cannot hold {about(user, type, all_users)}: {why}", first)
    engine.holds[made.scope] = made
    entering.settle(engine)

    def write(db: sqlite3.Connection) -> Hold:
        store.hold(db, made)
        return made

    def written(done: Future[Hold]) -> None:
        if done.exception():  # who asked hears of it, and nothing is held
            engine.pump.call(lambda: _drop(engine, made))

    future = engine.journal.post(write, durable=True)
    future.add_done_callback(written)
    return future


def release(engine: Engine, user: str, uid: int, type: str | None, all_users: bool) -> Future[None]:
    """Undo one hold; resolves when that is durable, and only then something starts. Raises WrongHold."""
    from jobvisor import store

    which = scope(uid, type, all_users)
    found = engine.holds.get(which)
    if found is None:
        others = [each.about for each in visible(engine, uid)]
        there = f"what is held is {', '.join(others)}" if others else "nothing is held"
        raise WrongHold(f"cannot release {about(user, type, all_users)}: {there}")
    written = engine.journal.post(lambda db: store.release(db, which), durable=True)
    return engine.pump.then(written, lambda _: _drop(engine, found))


def visible(engine: Engine, uid: int | None) -> list[Hold]:
    """The holds that are about a user's jobs, or all of them; the oldest first."""
    found = [each for each in engine.holds.values() if each.all_users or uid in (None, each.uid)]
    return sorted(found, key=lambda each: each.since)


def _drop(engine: Engine, hold: Hold) -> None:
    from jobvisor import entering

    if engine.holds.get(hold.scope) is hold:
        del engine.holds[hold.scope]
        entering.settle(engine)
