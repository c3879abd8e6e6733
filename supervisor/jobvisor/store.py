"""The journal's statements: each runs on the journal's thread, inside a transaction."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from jobvisor.errors import NoSuchJob
from jobvisor.hold import Hold
from jobvisor.info import JobInfo, decode_info, encode_info
from jobvisor.record import Notes
from jobvisor.states import State
from jobvisor.stream import Event
from jobvisor_workers.protocol import Request, decode_request, encode

decode_notes = msgspec.json.Decoder(Notes).decode
decode_hold = msgspec.json.Decoder(Hold).decode
decode_event = msgspec.json.Decoder(Event).decode
#: Events kept for those who come late; their jobs' final infos stay longer.
EVENTS_KEPT = 20_000


def accept(db: sqlite3.Connection, directory: str, request: Request, notes: Notes) -> None:
    """Make the job durable: its row, and its directory with the request."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    content = encode(request)
    with open(os.path.join(directory, "request"), "wb", opener=_private) as file:
        file.write(content)
    insert(db, request, notes)
    set_setting(db, "last_id", request.id)


def insert(db: sqlite3.Connection, request: Request, notes: Notes) -> None:
    db.execute(
        "INSERT INTO jobs(id, state, type, owner_uid, created, request, notes) VALUES (?,?,?,?,?,?,?)",
        (request.id, "live", request.type, notes.owner_uid, request.created, encode(request), encode(notes)),
    )
    rows = {(request.id, path) for path in notes.resources}
    db.executemany("INSERT OR IGNORE INTO resources(job, path) VALUES (?,?)", sorted(rows))


def finish(db: sqlite3.Connection, info: JobInfo) -> None:
    db.execute(
        "UPDATE jobs SET state=?, ended=?, info=? WHERE id=?", (info.state, info.ended, encode_info(info), info.id)
    )


def keyed(db: sqlite3.Connection, uid: int, key: str) -> tuple[int, bytes] | None:
    """The job that was started with a key, and the digest of the request."""
    row = db.execute("SELECT job, digest FROM keys WHERE uid=? AND key=?", (uid, key)).fetchone()
    return None if row is None else (row[0], row[1])


def keep_key(db: sqlite3.Connection, uid: int, key: str, job: int, digest: bytes) -> None:
    db.execute("INSERT INTO keys(uid, key, job, digest) VALUES (?,?,?,?)", (uid, key, job, digest))


def owner(db: sqlite3.Connection, job: int) -> int:
    """Raises NoSuchJob."""
    row = db.execute("SELECT owner_uid FROM jobs WHERE id=?", (job,)).fetchone()
    if row is None:
        raise NoSuchJob(job)
    return int(row[0])


def ends(db: sqlite3.Connection, jobs: Iterable[int]) -> dict[int, tuple[int, str, State]]:
    """Whose they were, of which type, and how they ended: of those that have."""
    found = {}
    for job in jobs:
        row = db.execute("SELECT owner_uid, type, state FROM jobs WHERE id=? AND info IS NOT NULL", (job,)).fetchone()
        if row is not None:
            found[job] = row[0], row[1], State(row[2])
    return found


def last_retry(db: sqlite3.Connection, job: int) -> int:
    """The newest job that repeats this one, or repeats one that does; the job itself if there is none."""
    again = "SELECT max(id) FROM jobs WHERE id>? AND json_extract(CAST(request AS TEXT), '$.retry_of')=?"
    while (row := db.execute(again, (job, job)).fetchone())[0] is not None:
        job = row[0]
    return job


def hold(db: sqlite3.Connection, hold: Hold) -> None:
    db.execute("INSERT INTO holds(owner, type, content) VALUES (?,?,?)", (*hold.scope, encode(hold)))


def release(db: sqlite3.Connection, scope: tuple[int, str]) -> None:
    db.execute("DELETE FROM holds WHERE owner=? AND type=?", scope)


def holds(db: sqlite3.Connection) -> list[Hold]:
    return [decode_hold(row[0]) for row in db.execute("SELECT content FROM holds")]


def note(db: sqlite3.Connection, job: int, notes: bytes) -> None:
    db.execute("UPDATE jobs SET notes=? WHERE id=?", (notes, job))


def live(db: sqlite3.Connection) -> list[tuple[Request, Notes]]:
    """The jobs that have no final state."""
    rows = db.execute("SELECT request, notes FROM jobs WHERE state='live' ORDER BY id").fetchall()
    return [(decode_request(request), decode_notes(notes)) for request, notes in rows]


def info(db: sqlite3.Connection, job: int) -> JobInfo:
    """Raises NoSuchJob, also for one that is not final (the supervisor has those)."""
    row = db.execute("SELECT info FROM jobs WHERE id=?", (job,)).fetchone()
    if row is None or row[0] is None:
        raise NoSuchJob(job)
    return decode_info(row[0])


def request_of(db: sqlite3.Connection, job: int) -> tuple[Request, Notes]:
    """Raises NoSuchJob."""
    row = db.execute("SELECT request, notes FROM jobs WHERE id=?", (job,)).fetchone()
    if row is None:
        raise NoSuchJob(job)
    return decode_request(row[0]), decode_notes(row[1])


def final(
    db: sqlite3.Connection,
    *,
    states: Sequence[str] = (),
    type: str | None = None,
    resource: str | None = None,
    limit: int | None = None,
    owner: int | None = None,
    since: float | None = None,
) -> list[JobInfo]:
    """Final jobs, newest first. `since`: those that ended at that moment or later."""
    where, values = ["info IS NOT NULL"], list[Any]()
    if states:
        where.append(f"state IN ({','.join('?' * len(states))})")
        values += states
    if type is not None:
        where.append("type=?")
        values.append(type)
    if resource is not None:
        where.append("id IN (SELECT job FROM resources WHERE path=?)")
        values.append(resource)
    if owner is not None:
        where.append("owner_uid=?")
        values.append(owner)
    if since is not None:
        where.append("ended>=?")
        values.append(since)
    values.append(-1 if limit is None else limit)
    rows = db.execute(f"SELECT info FROM jobs WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?", values)
    return [decode_info(row[0]) for row in rows]


def forget(db: sqlite3.Connection, job: int) -> None:
    set_setting(db, "last_event", last_event(db))  # its numbers must not be given again
    db.execute("DELETE FROM jobs WHERE id=?", (job,))
    db.execute("DELETE FROM resources WHERE job=?", (job,))
    db.execute("DELETE FROM keys WHERE job=?", (job,))
    db.execute("DELETE FROM events WHERE job=?", (job,))


def ended_before(db: sqlite3.Connection, time: float, owner: int | None = None) -> list[int]:
    """The final jobs of one user, or of all."""
    whose = "" if owner is None else f" AND owner_uid={owner:d}"
    return [row[0] for row in db.execute(f"SELECT id FROM jobs WHERE info IS NOT NULL AND ended<?{whose}", (time,))]


def surplus(db: sqlite3.Connection, keep: int) -> list[int]:
    """The final jobs beyond the newest `keep`."""
    return [
        row[0]
        for row in db.execute("SELECT id FROM jobs WHERE info IS NOT NULL ORDER BY id DESC LIMIT -1 OFFSET ?", (keep,))
    ]


def log_event(db: sqlite3.Connection, event: Event) -> None:
    assert event.number is not None
    row = (event.number, event.job.id, event.job.final, encode(event))
    db.execute("INSERT INTO events(number, job, final, content) VALUES (?,?,?,?)", row)
    if event.job.final:
        db.execute("UPDATE jobs SET told=1 WHERE id=?", (event.job.id,))
    if event.number % 1000 == 0:
        # Counted, since numbers have gaps.
        kept = "SELECT number FROM events ORDER BY number DESC LIMIT 1 OFFSET ?"
        db.execute(f"DELETE FROM events WHERE number<=({kept})", (EVENTS_KEPT,))


def untold_ends(db: sqlite3.Connection) -> list[JobInfo]:
    """Jobs that are final, but whose last event was lost with the supervisor that was about to write it."""
    rows = db.execute("SELECT info FROM jobs WHERE info IS NOT NULL AND NOT told ORDER BY id")
    return [decode_info(row[0]) for row in rows]


def events(db: sqlite3.Connection, after: int, before: int) -> list[Event]:
    """Those numbered between the two, both not included."""
    rows = db.execute("SELECT content FROM events WHERE number>? AND number<? ORDER BY number", (after, before))
    return [decode_event(row[0]) for row in rows]


def setting(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("SELECT value FROM settings WHERE name=?", (name,)).fetchone()
    return int(row[0]) if row else 0


def set_setting(db: sqlite3.Connection, name: str, value: int) -> None:
    db.execute("INSERT INTO settings VALUES (?,?) ON CONFLICT DO UPDATE SET value=excluded.value", (name, value))


def last_event(db: sqlite3.Connection) -> int:
    """The highest number that was ever written."""
    kept = int(db.execute("SELECT coalesce(max(number),0) FROM events").fetchone()[0])
    return max(kept, setting(db, "last_event"))


def currents(db: sqlite3.Connection) -> dict[int, int]:
    rows = db.execute("SELECT name, value FROM settings WHERE name LIKE 'current:%'")
    return {int(name.partition(":")[2]): value for name, value in rows}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
