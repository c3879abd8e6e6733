"""What the pid pool tells of live jobs: reports, stops, ends, and zygotes that died. On the pump."""

from __future__ import annotations

import time

from jobvisor import ending, entering, recovery
from jobvisor.engine import Engine
from jobvisor.orphan import collect, open_worker
from jobvisor.pool import Listener
from jobvisor.record import Record
from jobvisor.states import Cause, State
from jobvisor_workers.protocol import Exit, Report
from jobvisor_workers.settle import claim_of, read_life

#: Between a worker's lock on its life file and its claim in it lie microseconds; seconds until the next look.
CLAIM_COMES = 0.01
#: States that follow the worker's own word.
FOLLOWS = {State.STARTING, State.WAITING, State.RUNNING, State.READY}


class Watcher(Listener):
    """Moves the jobs of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def reported(self, job: int, report: Report) -> None:
        record = self._engine.records.get(job)
        if record is None:
            return
        before = record.report
        record.measure(report)
        if not record.claimed:
            claimed(self._engine, record)
        told = report.phase != before.phase or report.holder != before.holder or report.warnings != before.warnings
        # Compared as words first: of ten thousand reports a second nearly all change neither state nor phase.
        if told or report.state != record.state:
            moved = record.state in FOLLOWS and report.state != "starting" and record.move(State(report.state))
            if moved or (told and record.state in FOLLOWS):
                self._engine.announce(record)
                return
        self._engine.hub.progress(record)

    def stopped(self, job: int, outsider: bool) -> None:
        record = self._engine.records.get(job)
        if record is None or record.state is State.ABORTING:
            return
        record.suspended_by = "outsider" if outsider else "request"
        if record.move(State.SUSPENDED):
            record.rate.pause()
            self._engine.announce(record)

    def continued(self, job: int) -> None:
        record = self._engine.records.get(job)
        if record is None or record.state is not State.SUSPENDED:
            return
        record.suspended_by = None
        record.rate.pause()
        record.move(State(record.report.state))
        self._engine.announce(record)

    def exited(self, job: int, told: Exit | None) -> None:
        record = self._engine.records.get(job)
        if record is None:  # told again after it was written down
            self._engine.pool.acknowledge(job)
        else:
            ending.conclude(self._engine, record, told)

    def refused(self, job: int, message: str) -> None:
        record = self._engine.records.get(job)
        if record:
            self._engine.pool.drop(job)
            ending.void(self._engine, record, State.FAILED, Cause.ERROR, message)

    def zygote_lost(self, jobs: list[int]) -> None:
        for job in jobs:
            record = self._engine.records.get(job)
            if record and not record.concluding:
                look_after(self._engine, record)


def look_after(engine: Engine, record: Record) -> None:
    """A job whose worker, if it ever had one, has no zygote: adopt it, conclude it, or fork another."""
    found = recovery.look(engine.home.job(record.id))
    if isinstance(found, recovery.Alive):
        adopt(engine, record, found)
    elif isinstance(found, recovery.Ended):
        _conclude_dead(engine, record)
    elif record.notes.abort:
        ending.void(engine, record)
    else:
        entering.spawn(engine, record)


def _conclude_dead(engine: Engine, record: Record) -> None:
    directory = engine.home.job(record.id)
    collect(engine.pump, directory, record.foreign_uid, lambda: ending.conclude(engine, record, None))


def adopt(engine: Engine, record: Record, alive: recovery.Alive) -> None:
    """Watch a worker without its zygote."""
    directory = engine.home.job(record.id)
    if alive.claim is None:
        engine.pump.later(CLAIM_COMES, lambda: look_after(engine, record))
        return
    pid = alive.claim.pid
    pidfd = open_worker(pid, lambda: isinstance(recovery.look(directory), recovery.Alive))
    if pidfd is None:
        _conclude_dead(engine, record)
        return
    engine.pool.adopt(record.id, pid, pidfd, alive.claim.pipe, directory, record.foreign_uid)
    claimed(engine, record)
    if record.notes.abort:
        engine.pool.abort(record.id, engine.grace, force=record.notes.force)
    elif record.request.time_limit:
        # Not by the clock on the wall, which somebody may set; both count from this boot, since the worker lives.
        left = alive.claim.at + record.request.time_limit - time.monotonic()
        engine.pump.later(max(0.0, left), lambda: _too_late(engine, record))


def claimed(engine: Engine, record: Record) -> None:
    """A worker has the job for certain: what waited for that may go on."""
    record.claimed = True
    if record.started is None:
        claim = claim_of(read_life(engine.home.job(record.id))) if record.adopted else None
        record.started = time.time() - (time.monotonic() - claim.at if claim else 0.0)
    record.pid = engine.pool.pids().get(record.id)
    for call in record.when_claimed:
        call()
    record.when_claimed.clear()


def _too_late(engine: Engine, record: Record) -> None:
    """The zygote that would have timed it is dead."""
    if not record.state.final and not record.notes.abort:
        record.notes.late = True
        engine.note(record)
        engine.pool.abort(record.id, engine.grace, force=False)
