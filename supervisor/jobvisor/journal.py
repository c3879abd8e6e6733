"""The journal: SQLite, owned by one thread, committed in batches.

A batch that holds an accept or a final state is synced to the disk (synchronous=FULL) before anybody hears of it; one
that holds only changes of state is not. Beside two busy writers a commit takes 125 ms: nobody else waits for the disk.
The job directories hold the truth; a lost journal is rebuilt from them.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from jobvisor.errors import JobvisorError, JournalError, Unreachable

T = TypeVar("T")
BATCH_MAX = 64
#: "JBVR": tells a journal from any other SQLite file.
APPLICATION_ID = 0x4A425652
SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY, state TEXT NOT NULL, type TEXT NOT NULL, owner_uid INTEGER NOT NULL, created REAL NOT NULL,
    ended REAL, request BLOB NOT NULL, notes BLOB NOT NULL, info BLOB, told INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs(state, id);
CREATE TABLE IF NOT EXISTS resources (
    path TEXT NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (path, job)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS resources_by_job ON resources(job);
CREATE TABLE IF NOT EXISTS keys (
    uid INTEGER NOT NULL, key TEXT NOT NULL, job INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (uid, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_by_job ON keys(job);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, job INTEGER NOT NULL, final INTEGER NOT NULL, content BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS holds (
    owner INTEGER NOT NULL, type TEXT NOT NULL, content BLOB NOT NULL, PRIMARY KEY (owner, type)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""


@dataclass
class _Work:
    do: Callable[[sqlite3.Connection], Any]
    durable: bool
    future: Future[Any] = field(default_factory=Future)


class Journal:
    """Work is handed in by `post`; results come back as futures, resolved on the journal's thread."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises JournalError when the file is there and is no journal; it is then left as it is."""
        self.path = os.fspath(path)
        self.is_new = not os.path.exists(self.path)
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        #: Reentrant, since a signal may interrupt the host's thread in `post`.
        self._door = threading.RLock()
        self._closed = False
        try:
            self._db = self._open()
        except sqlite3.Error as error:
            raise JournalError(
                self.path, f"cannot be read: {error}; move it away, and it is made anew from the job directories"
            )
        self._thread = threading.Thread(target=self._run, name="jobvisor-journal", daemon=True)
        self._thread.start()

    def post(self, do: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> Future[T]:
        """Run `do` inside a transaction; the future resolves after the commit. `do` may raise before it writes."""
        work = _Work(do, durable)
        with self._door:
            if not self._closed:
                self._work.put(work)
                return cast("Future[T]", work.future)
        work.future.set_exception(Unreachable("this supervisor was closed"))
        return cast("Future[T]", work.future)

    def close(self) -> None:
        """Finish what was posted; what is posted later fails with Unreachable."""
        with self._door:
            self._closed = True
            self._work.put(None)
        self._thread.join()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            os.chmod(self.path, 0o600)
            stamp, version = (
                db.execute("PRAGMA application_id").fetchone()[0],
                db.execute("PRAGMA user_version").fetchone()[0],
            )
            if not self.is_new and os.path.getsize(self.path) and stamp != APPLICATION_ID:
                raise JournalError(self.path, "is a database of another program; it was left alone")
            if version > SCHEMA_VERSION:
                raise JournalError(self.path, f"was written by a newer jobvisor (schema {version}); use that one")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA wal_autocheckpoint=4000")
            if not stamp:
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            db.executescript(SCHEMA)
        except BaseException:
            db.close()
            raise
        return db

    def _run(self) -> None:
        going = True
        while going:
            batch = [self._work.get()]
            while len(batch) < BATCH_MAX and batch[-1] is not None:
                try:
                    batch.append(self._work.get_nowait())
                except queue.Empty:
                    break
            going = batch[-1] is not None
            works = [work for work in batch if work is not None]
            if works and not self._commit(works):
                for work in works:  # one of them cannot be written: find out which
                    self._commit([work], last=True)
        self._db.close()

    def _commit(self, works: list[_Work], *, last: bool = False) -> bool:
        results: list[Any] = []
        try:
            # Cannot change inside a transaction; decides whether COMMIT calls fdatasync.
            self._db.execute("PRAGMA synchronous=" + ("FULL" if any(work.durable for work in works) else "NORMAL"))
            self._db.execute("BEGIN IMMEDIATE")
            for work in works:
                try:
                    results.append(work.do(self._db))
                except sqlite3.Error:
                    raise
                except JobvisorError as error:  # it found something wrong before it wrote anything: its caller's affair
                    results.append(error)
                except OSError as error:  # the job directories are a part of the journal
                    where = os.fspath(error.filename or self.path)
                    results.append(JournalError(where, f"{error.strerror}; {_advice(error)}"))
                except Exception as error:
                    results.append(error)
            self._db.execute("COMMIT")
        except Exception as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if last or len(works) == 1:
                if isinstance(error, sqlite3.Error):
                    error = JournalError(self.path, f"{error}; {_advice(error)}")
                for work in works:
                    work.future.set_exception(error)
                return True
            return False
        for work, result in zip(works, results, strict=True):
            if isinstance(result, Exception):
                work.future.set_exception(result)
            else:
                work.future.set_result(result)
        return True


def _advice(error: sqlite3.Error | OSError) -> str:
    if isinstance(error, sqlite3.OperationalError | OSError):
        return "free some space in its filesystem"
    return "move it away, and it is made anew from the job directories"
