"""What the supervisor knows and does, all on the pump: jobs enter here, move through their states, and leave."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec

from jobvisor import recovery, store
from jobvisor.errors import Busy, JobvisorError, Unreachable
from jobvisor.events import Event, Hub
from jobvisor.home import Home, boot_id
from jobvisor.info import JobInfo
from jobvisor.journal import Journal
from jobvisor.orphan import open_worker
from jobvisor.pool import Listener, Pool
from jobvisor.pump import Pump
from jobvisor.record import Notes, Record, Waiter
from jobvisor.schedule import Schedule
from jobvisor.states import Cause, State
from jobvisor_workers.jobtype import Access
from jobvisor_workers.protocol import Exit, Holder, Report, Request, encode

#: A worker that dies before it could claim its job is forked again so often.
SPAWNS_MAX = 3
#: Final infos kept in memory, for those who ask just after the end.
RECENT = 256


class Engine(Listener):
    """The state of one supervisor."""

    def __init__(self, home: Home, journal: Journal, modules: list[str], grace: float, *, tied: bool) -> None:
        self.home, self.journal, self.grace = home, journal, grace
        self.boot = boot_id()
        self.pump = Pump()
        self.pool = Pool(self.pump, self, str(home.run), str(home.path), modules, tied=tied)
        self.schedule = Schedule()
        self.records: dict[int, Record] = {}
        self.recent: dict[int, JobInfo] = {}
        self.current: dict[int, int] = {}
        self.closed = False
        self.hub = Hub()
        self.next_id = 1
        self._zygote_lock = threading.Lock()

    # --- entering --------------------------------------------------------------------------------------------

    def start(self, request: Request, notes: Notes) -> Future[JobInfo]:
        """Accept a job: it gets its id here, and the future resolves when it is durable. `request.id` is not used."""
        self._check_open()
        needs = needs_of(notes)
        blocked = self.schedule.in_the_way(needs)
        if blocked and request.on_conflict == "fail":
            key, other = blocked
            path = next(path for path, (known, _) in notes.keys.items() if known == key)
            raise Busy(path, Holder("job", job=other, pid=self.pool.pids().get(other)))
        request = msgspec.structs.replace(request, id=self.next_id)
        self.next_id += 1
        directory = self.home.job(request.id)
        record = Record(request, notes, os.path.join(directory, "log"))
        self.records[record.id] = record
        self.schedule.enter(record.id, needs)
        accepted = self.journal.post(lambda db: store.accept(db, directory, request, notes), durable=True)
        started: Future[JobInfo] = Future()
        accepted.add_done_callback(lambda done: self.pump.call(lambda: self._accepted(record, done, started)))
        return started

    def _accepted(self, record: Record, done: Future[None], started: Future[JobInfo]) -> None:
        error = done.exception()
        if error:
            self.schedule.leave(record.id)
            del self.records[record.id]
            shutil.rmtree(self.home.job(record.id), ignore_errors=True)
            started.set_exception(error)
            return
        self.set_current(record.notes.owner_uid, record.id)
        self.schedule.release(record.id)
        self._announce(record)
        self.run_queue()
        started.set_result(record.info())

    def run_queue(self) -> None:
        """Start what may start, and tell the others what they wait for."""
        for job in self.schedule.startable():
            record = self.records[job]
            if self.schedule.needs(job) and record.reason:
                self.schedule.hold(job)
                self._resolve_again(record)
            else:
                self._spawn(record)
        self.explain_queue()

    def explain_queue(self) -> None:
        for job in self.schedule.queued():
            self._explain(self.records[job])

    def _explain(self, record: Record) -> None:
        reason = "held" if record.notes.held else None
        blocked = self.schedule.in_the_way(self.schedule.needs(record.id), record.id)
        if blocked:
            reason = f"{_path(record.notes, blocked[0])} is in use by job {blocked[1]}"
        if reason is not None and reason != record.reason:
            record.reason = reason
            self._announce(record)

    def _resolve_again(self, record: Record) -> None:
        """It waited: its paths may name other files now. A hung file system must not hang the pump."""
        from jobvisor.request import resolve

        def work() -> None:
            try:
                keys: dict[str, tuple[str, str]] | None = resolve(record.request.type, record.request.args)
            except Exception:  # whatever is wrong now, the worker says it with the rights it has
                keys = None
            self.pump.call(lambda: done(keys))

        def done(keys: dict[str, tuple[str, str]] | None) -> None:
            if record.state is not State.QUEUED:
                return
            record.reason = None
            if keys is not None:
                record.notes.keys = keys
                record.request = msgspec.structs.replace(
                    record.request, resolved={path: key for path, (key, _) in keys.items()}
                )
                self.schedule.replace(record.id, needs_of(record.notes))
            if not record.notes.held:
                self.schedule.release(record.id)
            self.run_queue()

        threading.Thread(target=work, name="jobvisor-resolve", daemon=True).start()

    def _spawn(self, record: Record) -> None:
        self.schedule.begin(record.id)
        record.reason = None
        record.spawns += 1
        record.move(State.STARTING)
        self._announce(record)
        try:
            self.pool.spawn(record, self.home.job(record.id), self.grace)
        except OSError as error:
            self.refused(record.id, f"cannot start the zygote: {error}")

    def respawn(self, record: Record) -> None:
        """The worker died before it claimed the job: nothing was done, so another one may."""
        self.pool.drop(record.id)
        if record.spawns >= SPAWNS_MAX:
            self._void(record, State.FAILED, Cause.WORKER_LOST, f"{record.spawns} workers died before they could begin")
            return
        record.spawns += 1
        try:
            self.pool.spawn(record, self.home.job(record.id), self.grace)
        except OSError as error:
            self.refused(record.id, f"cannot start the zygote: {error}")

    # --- the pool tells --------------------------------------------------------------------------------------

    def reported(self, job: int, report: Report) -> None:
        record = self.records.get(job)
        if record is None or record.state.final:
            return
        before = record.report
        record.measure(report)
        if not record.claimed:
            self._claimed(record)
        if record.state in (State.STARTING, State.WAITING, State.RUNNING, State.READY):
            moved = report.state != "starting" and record.move(State(report.state))
            told = (before.phase, before.holder, before.warnings) != (report.phase, report.holder, report.warnings)
            if moved or told:
                self._announce(record)
                return
        self.hub.progress(record.info, job)

    def _claimed(self, record: Record) -> None:
        record.claimed = True
        record.started = record.started or time.time()
        record.pid = self.pool.pids().get(record.id)
        for call in record.when_claimed:
            call()
        record.when_claimed.clear()

    def stopped(self, job: int, outsider: bool) -> None:
        record = self.records.get(job)
        if record is None or record.state.final or record.state is State.ABORTING:
            return
        record.suspended_by = "outsider" if outsider else "request"
        if record.move(State.SUSPENDED):
            record.forget_rate()
            self._announce(record)

    def continued(self, job: int, outsider: bool) -> None:
        record = self.records.get(job)
        if record is None or record.state is not State.SUSPENDED:
            return
        record.suspended_by = None
        record.forget_rate()
        record.move(State(record.report.state))
        self._announce(record)

    def refused(self, job: int, message: str) -> None:
        record = self.records.get(job)
        if record and not record.state.final:
            self.pool.drop(job)
            self._void(record, State.FAILED, Cause.ERROR, message)

    def exited(self, job: int, told: Exit | None) -> None:
        record = self.records.get(job)
        if record is None:  # told again after it was written down
            self.pool.acknowledge(job)
            return
        if record.concluding:
            return
        record.concluding = True
        base, directory, notes = record.info(), self.home.job(job), record.notes

        def work(db: sqlite3.Connection) -> JobInfo | recovery.Alive | recovery.Unclaimed:
            found = recovery.look(directory)
            if not isinstance(found, recovery.Ended):
                return found
            rebooted = notes.boot != self.boot
            final = recovery.conclude(directory, base, told, asked=notes.abort, rebooted=rebooted)
            store.finish(db, final)
            return final

        self._then(self.journal.post(work, durable=True), lambda outcome: self._concluded(record, outcome))

    def _concluded(self, record: Record, outcome: JobInfo | recovery.Alive | recovery.Unclaimed) -> None:
        record.concluding = False
        if isinstance(outcome, JobInfo):
            self.finished(record, outcome)
        elif isinstance(outcome, recovery.Alive):  # this one lost the claim to an earlier worker
            self.pool.drop(record.id)
            self.adopt(record, outcome)
        elif record.notes.abort:
            self._void(record, State.ABORTED, None, None)
        else:
            self.respawn(record)

    def zygote_lost(self, jobs: list[int]) -> None:
        for job in jobs:
            record = self.records.get(job)
            if record is None or record.concluding:
                continue
            found = recovery.look(self.home.job(job))
            if isinstance(found, recovery.Alive):
                self.adopt(record, found)
            elif isinstance(found, recovery.Ended):
                self.exited(job, None)
            elif record.notes.abort:
                self._void(record, State.ABORTED, None, None)
            else:
                self.respawn(record)

    def adopt(self, record: Record, alive: recovery.Alive) -> None:
        """Watch a worker without its zygote."""
        directory = self.home.job(record.id)
        if alive.claim is None:  # it holds the lock and is about to write its claim
            self.pump.later(0.002, lambda: self.zygote_lost([record.id]))
            return
        pid = alive.claim.pid
        pidfd = open_worker(pid, lambda: isinstance(recovery.look(directory), recovery.Alive))
        if pidfd is None:
            self.exited(record.id, None)
            return
        if record.state is State.QUEUED:
            record.move(State.STARTING)
        self.pool.adopt(record.id, pid, pidfd, alive.claim.pipe)
        self._claimed(record)
        if record.notes.abort:
            self.pool.abort(record.id, self.grace, force=record.notes.force)

    # --- leaving ---------------------------------------------------------------------------------------------

    def void(self, record: Record) -> None:
        """Abort a job that no worker has."""
        self._void(record, State.ABORTED, None, None)

    def _void(self, record: Record, state: State, cause: Cause | None, errmsg: str | None) -> None:
        record.concluding = True
        base, directory = record.info(), self.home.job(record.id)
        final = msgspec.structs.replace(
            base, state=state, cause=cause, errmsg=errmsg, ended=time.time(), reason=None, pid=None
        )

        def work(db: sqlite3.Connection) -> JobInfo | recovery.Alive | recovery.Unclaimed:
            if not recovery.void(directory):
                found = recovery.look(directory)
                if isinstance(found, recovery.Ended):
                    ended = recovery.conclude(directory, base, None, asked=record.notes.abort)
                    store.finish(db, ended)
                    return ended
                return found
            store.finish(db, final)
            return final

        self._then(self.journal.post(work, durable=True), lambda outcome: self._concluded(record, outcome))

    def finished(self, record: Record, info: JobInfo) -> None:
        """The end is durable: say it, and let the next ones have the resources."""
        record.move(info.state)
        del self.records[record.id]
        self.recent[record.id] = info
        if len(self.recent) > RECENT:
            del self.recent[next(iter(self.recent))]
        self.pool.acknowledge(record.id)
        self.schedule.leave(record.id)
        self._log_event(self.hub.state(info))
        for call in record.when_claimed:
            call()
        for waiter in record.waiters:
            late = None if waiter.met(record) else waiter.late(record)
            if late:
                waiter.future.set_exception(late)
            else:
                waiter.future.set_result(info)
        self.run_queue()

    # --- asking ----------------------------------------------------------------------------------------------

    def info(self, id: int) -> JobInfo | Future[JobInfo]:  # noqa: A002 - the field's name everywhere
        """Raises NoSuchJob."""
        self._check_open()
        if id in self.records:
            return self.records[id].info()
        if id in self.recent:
            return self.recent[id]
        return self.journal.post(lambda db: store.info(db, id))

    def wait(self, id: int, waiter: Waiter) -> Future[JobInfo]:  # noqa: A002
        """Resolves when the condition is met; for a final job at once."""
        self._check_open()
        record = self.records.get(id)
        if record is None:
            found: Future[JobInfo] = Future()
            answer = self.info(id)
            if isinstance(answer, Future):
                return answer
            found.set_result(answer)
            return found
        if waiter.met(record):
            waiter.future.set_result(record.info())
        else:
            record.waiters.append(waiter)
        return waiter.future

    def unwait(self, id: int, waiter: Waiter) -> None:  # noqa: A002
        """Nobody waits any more."""
        record = self.records.get(id)
        if record and waiter in record.waiters:
            record.waiters.remove(waiter)

    def set_current(self, uid: int, job: int) -> None:
        self.current[uid] = job
        self.journal.post(lambda db: store.set_setting(db, f"current:{uid}", job))

    def note(self, record: Record) -> None:
        """Write down what recovery must know; nobody waits for it."""
        notes = encode(record.notes)
        self.journal.post(lambda db: store.note(db, record.id, notes))

    # --- inside ----------------------------------------------------------------------------------------------

    def changed(self, record: Record) -> None:
        """A verb moved the job."""
        self._announce(record)

    def _announce(self, record: Record) -> None:
        info = record.info()
        self._log_event(self.hub.state(info))
        met = [waiter for waiter in record.waiters if waiter.met(record)]
        for waiter in met:
            record.waiters.remove(waiter)
            waiter.future.set_result(info)

    def _log_event(self, event: Event) -> None:
        self.journal.post(lambda db: store.log_event(db, event))

    def _then(self, future: Future[Any], call: Callable[[Any], None]) -> None:
        """Go on, on the pump, with what the journal's thread found."""

        def done(finished: Future[Any]) -> None:
            error = finished.exception()
            if error is None:
                outcome = finished.result()
                self.pump.call(lambda: call(outcome))
            else:
                self.pump.call(lambda: self._cannot_write(error))

        future.add_done_callback(done)

    def _cannot_write(self, error: BaseException) -> None:
        """The state disk is full: the job directories hold the truth; the end is announced when it can be written."""
        for record in list(self.records.values()):
            if record.concluding and record.id in self.pool:
                record.concluding = False
                self.pump.later(1.0, lambda job=record.id: self.exited(job, None))  # type: ignore[misc]
        if not isinstance(error, JobvisorError):
            raise error

    def _check_open(self) -> None:
        if self.closed:
            raise Unreachable("this supervisor was closed")


def needs_of(notes: Notes) -> dict[str, Access]:
    """key → access of all declared resources; the stronger one where two paths are one thing."""
    needs: dict[str, Access] = {}
    for key, access in notes.keys.values():
        needs[key] = Access.WRITE if Access.WRITE in (needs.get(key), access) else Access.READ
    return needs


def _path(notes: Notes, key: str) -> str:
    return next((path for path, (known, _) in notes.keys.items() if known == key), key)
