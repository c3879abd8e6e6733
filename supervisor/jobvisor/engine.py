"""What one supervisor knows: the jobs that are not final, and the parts that work on them. Touched by the pump only.

What happens to a job is in modules of functions: `entering` (accepted, queued, forked), `watching` (what the pid pool
tells), `ending` (the final state), and `verbs` (what is asked of it).
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future

import msgspec

from jobvisor import disks, holding, store
from jobvisor.backlog import Backlog
from jobvisor.config import Config
from jobvisor.errands import Errands
from jobvisor.errors import Unreachable
from jobvisor.events import Hub
from jobvisor.hold import Hold
from jobvisor.home import Home, boot_id
from jobvisor.info import JobInfo
from jobvisor.journal import Journal
from jobvisor.pool import Pool
from jobvisor.pump import Pump
from jobvisor.reasons import explain
from jobvisor.record import Notes, Record, Waiter, user_name
from jobvisor.schedule import Schedule
from jobvisor.states import State
from jobvisor_workers.jobtype import Access
from jobvisor_workers.protocol import Holder, Request, encode
from jobvisor_workers.resources import uri

#: Final infos kept in memory, for those who ask just after the end.
RECENT = 256


class Engine:
    """The state of one supervisor."""

    def __init__(self, home: Home, journal: Journal, modules: list[str], grace: float, *, tied: bool) -> None:
        from jobvisor.watching import Watcher

        self.home, self.journal, self.grace = home, journal, grace
        self.boot = boot_id()
        self.pump = Pump()
        self.pool = Pool(self.pump, Watcher(self), str(home.run), str(home.path), modules, tied=tied)
        self.errands = Errands(self.pump, self.pool)
        self.schedule = Schedule()
        self.records: dict[int, Record] = {}
        self.recent: dict[int, JobInfo] = {}
        #: Job → those that come after it.
        self.dependents: dict[int, list[int]] = {}
        self.current: dict[int, int] = {}
        self.config = Config([], {})
        #: Scope → hold.
        self.holds: dict[tuple[int, str], Hold] = {}
        #: Jobs to be forgotten by age or number, whose partials must go with them.
        self.expired: list[int] = []
        #: Starts with a key that are being accepted: (uid, key) → digest of the request, and the answer to come.
        self.accepting: dict[tuple[int, str], tuple[bytes, Future[JobInfo]]] = {}
        self._closed = False
        self._pid = os.getpid()
        self.hub = Hub()
        self.next_id = 1
        #: When the last job ended, or all began; monotonic seconds.
        self.last_end = time.monotonic()
        self._backlog = Backlog(self.pump, journal, self.hub)

    def admit(self, request: Request, notes: Notes) -> Record:
        """A new record, at the end of the queue; to be settled once it is known what it comes after."""
        record = Record(request, notes, os.path.join(self.home.job(request.id), "log"))
        self.records[record.id] = record
        self.schedule.enter(record.id, needs_of(notes), request.priority, counts_in(record))
        return record

    def settle(self, record: Record) -> None:
        """A queued job that is not to start for its own sake, or by somebody's word, is in nobody's way."""
        if record.after or holding.over(self, record):
            self.schedule.step_aside(record.id)
        else:
            self.schedule.step_in(record.id)

    def info(self, id: int) -> JobInfo | Future[JobInfo]:
        """Raises NoSuchJob."""
        self.check_open()
        if id in self.records:
            return self.info_of(self.records[id])
        if id in self.recent:
            return self.recent[id]
        return self.journal.post(lambda db: store.info(db, id))

    def info_of(self, record: Record) -> JobInfo:
        """With the reason why it is queued, as it is now."""
        info = record.info()
        if record.state is not State.QUEUED:
            return info
        reason, place = explain(self, record)
        return msgspec.structs.replace(info, reason=reason, place=place)

    def correct(self, changed: dict[int, JobInfo]) -> None:
        """Of jobs that ended before, more is known now."""
        self.recent.update({job: changed[job] for job in changed.keys() & self.recent.keys()})

    def owner(self, id: int) -> int | None:
        """Whose job it is; None when only the journal knows."""
        if id in self.records:
            return self.records[id].notes.owner_uid
        return self.recent[id].owner_uid if id in self.recent else None

    def holder(self, job: int, seen_by: int) -> Holder:
        """A live job that is in somebody's way. Of other people's no more than id, type and user is told."""
        record = self.records[job]
        whose = record.notes.owner_uid
        pid = self.pool.pids().get(job) if self.may_see(whose, seen_by) else None
        stopped = record.state is State.SUSPENDED
        return Holder("job", job=job, pid=pid, type=record.request.type, user=user_name(whose), suspended=stopped)

    @staticmethod
    def may_see(owner: int, uid: int) -> bool:
        """True if this user may see and control jobs of `owner`: their own, and root and the supervisor's user all."""
        return uid in (owner, 0, os.getuid())

    def wait(self, id: int, waiter: Waiter) -> Future[JobInfo]:
        """Resolves when the condition is met; for a final job at once."""
        answer = self.info(id)
        record = self.records.get(id)
        if isinstance(answer, Future):
            return answer
        if record is None or waiter.met(record):
            waiter.future.set_result(answer)
        else:
            record.waiters.append(waiter)
        return waiter.future

    def unwait(self, id: int, waiter: Waiter) -> None:
        """Nobody waits any more."""
        record = self.records.get(id)
        if record and waiter in record.waiters:
            record.waiters.remove(waiter)

    def announce(self, record: Record) -> None:
        """Tell everybody of a new state, phase, holder or warning."""
        info = record.info()
        self.log_event(info)
        met = [waiter for waiter in record.waiters if waiter.met(record)]
        for waiter in met:
            record.waiters.remove(waiter)
            waiter.future.set_result(info)

    def log_event(self, info: JobInfo) -> None:
        event = self.hub.state(info)
        self._backlog.add(lambda db: store.log_event(db, event))

    def set_current(self, uid: int, job: int) -> None:
        self.current[uid] = job
        self._backlog.add(lambda db: store.set_setting(db, f"current:{uid}", job))

    def note(self, record: Record) -> None:
        """Write down at once what recovery must know; nobody waits for it."""
        notes = encode(record.notes)
        self.journal.post(lambda db: store.note(db, record.id, notes))

    @property
    def closed(self) -> bool:
        """True after `close`; and in a fork of the host, which has a copy of all this but no threads to serve it."""
        return self._closed or os.getpid() != self._pid

    def close(self) -> None:
        """What is told after this is not written down."""
        self._closed = True
        self._backlog.close()

    def check_open(self) -> None:
        """Raises Unreachable."""
        if self._closed:
            raise Unreachable("this supervisor was closed")
        if os.getpid() != self._pid:
            raise Unreachable(f"this supervisor is pid {self._pid}'s, and this is a fork of it")


def counts_in(record: Record) -> list[str]:
    """The classes of jobs that limits may be set on and that it belongs to."""
    notes = record.notes
    pools = {uri.parse(path).pool for path in notes.keys if path.startswith(uri.POOL)}
    below = {disk for key, _ in notes.keys.values() for disk in disks.of_key(key)}
    return [
        "jobs",
        f"user:{notes.owner_uid}",
        f"type:{record.request.type}",
        *(f"pool:{pool}" for pool in sorted(pools)),
        *(f"device:{disk}" for disk in sorted(below)),
    ]


def needs_of(notes: Notes) -> dict[str, Access]:
    """Key → access of all declared resources; the stronger one where two paths are one thing."""
    needs: dict[str, Access] = {}
    for key, access in notes.keys.values():
        needs[key] = Access.WRITE if Access.WRITE in (needs.get(key), access) else Access.READ
    return needs
