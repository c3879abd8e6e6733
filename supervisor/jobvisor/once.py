"""A start that may be asked for again: the same key and request answer with the same job, never with a second one.

The key is written down with the job, is its user's own, and is forgotten with the job. All on the pump.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future

import msgspec
from msgspec import Struct

from jobvisor import store
from jobvisor.engine import Engine
from jobvisor.errors import KeyReused, UsageError
from jobvisor.info import JobInfo
from jobvisor_workers.protocol import Request, encode

KEY_MAX = 255


class Once(Struct, frozen=True):
    """What a caller calls one start. `digest`: of what was asked for."""

    uid: int
    key: str
    digest: bytes


def once(uid: int, key: str | None, asked: Request | str) -> Once | None:
    """None without a key. Raises UsageError."""
    if key is None:
        return None
    if not 0 < len(key) <= KEY_MAX or not key.isprintable():
        raise UsageError(f"an idempotency key is 1 to {KEY_MAX} printable characters")
    if isinstance(asked, Request):
        # What a repetition may see differently: the moment, and the files.
        asked = encode(msgspec.structs.replace(asked, created=0, resolved={}, requester=None)).decode()
    return Once(uid, key, hashlib.blake2b(asked.encode(), digest_size=16).digest())


def start(engine: Engine, named: Once | None, do: Callable[[], Future[JobInfo]]) -> Future[JobInfo]:
    """`do` unless this start was accepted, or is just being accepted. Raises KeyReused."""
    if named is None:
        return do()
    mark = (named.uid, named.key)
    if mark in engine.accepting:
        digest, future = engine.accepting[mark]
        _check(named, digest)
        return future

    def proceed(known: tuple[int, bytes] | None) -> JobInfo | Future[JobInfo]:
        if known is None:
            return do()
        job, digest = known
        _check(named, digest)
        return engine.info(job)

    def accepted() -> None:
        del engine.accepting[mark]

    future = engine.pump.then(engine.journal.post(lambda db: store.keyed(db, *mark)), proceed)
    engine.accepting[mark] = named.digest, future
    future.add_done_callback(lambda _: engine.pump.call(accepted))
    return future


def keep(db: sqlite3.Connection, named: Once | None, job: int) -> None:
    """With the job's own row, in one transaction."""
    if named:
        store.keep_key(db, named.uid, named.key, job, named.digest)


def _check(named: Once, digest: bytes) -> None:
    if named.digest != digest:
        raise KeyReused(named.key)
