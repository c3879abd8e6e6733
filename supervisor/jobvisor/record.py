"""A job as the supervisor's pump sees it: the one mutable value, from which every JobInfo is taken."""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable
from concurrent.futures import Future

from msgspec import Struct

from jobvisor.info import EndedBy, JobInfo, Progress
from jobvisor.pump import Timer
from jobvisor.rate import Rate
from jobvisor.states import NEXT, Cause, State
from jobvisor_workers.protocol import Report, Request


class Notes(Struct, omit_defaults=True):
    """What recovery must know beyond the request; kept in the journal's row."""

    boot: str = ""
    owner_uid: int = 0
    abort: bool = False
    force: bool = False
    late: bool = False
    held: bool = False
    #: The jobs of `after` whose end was as it was to be.
    after_met: list[int] = []
    keys: dict[str, tuple[str, str]] = {}
    resources: list[str] = []


class Doom(Struct, frozen=True):
    """How a queued job ends that cannot start any more."""

    state: State
    cause: Cause
    errmsg: str


class Waiter:
    """Somebody waits for a job: `met` says when, `late` what to raise when the job ended otherwise."""

    def __init__(self, met: Callable[[Record], bool], late: Callable[[Record], Exception | None]) -> None:
        self.met, self.late = met, late
        self.future: Future[JobInfo] = Future()


class Record:
    """One job that is not final, or has just become so. Touched by the pump only, but for `info`."""

    def __init__(self, request: Request, notes: Notes, log: str) -> None:
        self.request, self.notes, self.log = request, notes, log
        self.id = request.id
        self.state = State.QUEUED
        self.report = Report()
        self.claimed = False
        self.pid: int | None = None
        self.cause: Cause | None = None
        self.reason: str | None = None
        #: In the line for what it waits for.
        self.place: int | None = None
        #: It did not start at once, so its paths may name other files when it does.
        self.waited = False
        #: It is durable, and who started it knows.
        self.accepted = False
        #: Jobs that are still to end → how; and why its turn can never come.
        self.after: dict[int, str] = {}
        self.doom: Doom | None = None
        self.wait_limit: Timer | None = None
        self.errmsg: str | None = None
        self.started: float | None = None
        self.ended: float | None = None
        self.suspended_by: str | None = None
        self.ended_by: EndedBy | None = None
        self.exit_status: int | None = None
        self.signal: int | None = None
        self.rusage: dict[str, float] = {}
        self.result: dict[str, object] | None = None
        self.adopted = False
        self.spawns = 0
        self.concluding = False
        self.waiters: list[Waiter] = []
        self.when_claimed: list[Callable[[], None]] = []
        self.rate = Rate()

    @property
    def foreign_uid(self) -> int | None:
        """Whom the worker became, if it is not the user of this process."""
        return self.request.requester.uid if self.request.requester else None

    def move(self, state: State) -> bool:
        """Enter a state; False when it is the present one. A transition that is not in the table is a defect."""
        if state is self.state:
            return False
        if state not in NEXT[self.state]:
            raise RuntimeError(f"job {self.id} cannot go from {self.state} to {state}")
        self.state = state
        return True

    def stop_waiting(self) -> None:
        """It starts, or never will."""
        if self.wait_limit:
            self.wait_limit.drop()

    def measure(self, report: Report) -> None:
        """Take a report, and the rate from it and those before."""
        self.rate.add(time.monotonic(), report.processed)
        self.report = report

    def progress(self) -> Progress:
        """The part of `info` that each report changes."""
        report, state = self.report, self.state
        remaining = None if report.total is None else max(0, report.total - report.processed)
        elapsed = ((self.ended or time.time()) - self.started) if self.started else 0.0
        now_bps = self.rate.bps if state is State.RUNNING else 0.0
        if self.ended and elapsed > 0 and report.processed:
            bps: int | None = int((report.processed - report.continued) / elapsed)
        else:
            bps = int(now_bps) or None
        return Progress(
            id=self.id,
            phase=report.phase,
            data_total=report.total,
            data_processed=report.processed,
            data_remaining=remaining,
            disk_bps=bps,
            time_elapsed=max(0, int(elapsed * 1000)),
            time_remaining=int(remaining * 1000 / now_bps) if now_bps and remaining is not None else None,
            abort_effect=None if state.final else report.abort_effect,
        )

    def info(self) -> JobInfo:
        report, state, progress = self.report, self.state, self.progress()
        return JobInfo(
            id=self.id,
            type=self.request.type,
            state=state,
            cause=self.cause,
            reason=self.reason or report.reason,
            place=self.place if state is State.QUEUED else None,
            holder=report.holder if state in (State.WAITING, State.FAILED, State.SUSPENDED) else None,
            phase=progress.phase,
            args=self.request.args,
            resources=self.notes.resources,
            connect=self.request.connect,
            owner=user_name(self.notes.owner_uid),
            owner_uid=self.notes.owner_uid,
            pid=self.pid,
            created=self.request.created,
            started=self.started,
            ended=self.ended,
            time_elapsed=progress.time_elapsed,
            time_remaining=progress.time_remaining,
            data_total=progress.data_total,
            data_processed=progress.data_processed,
            data_remaining=progress.data_remaining,
            data_continued=report.continued,
            disk_bps=progress.disk_bps,
            errmsg=self.errmsg,
            result=self.result,
            warnings=list(report.warnings),
            suspended_by=self.suspended_by,
            ended_by=self.ended_by,
            rusage=self.rusage,
            exit_status=self.exit_status,
            signal=self.signal,
            abort_effect=progress.abort_effect,
            retry_of=self.request.retry_of,
            after=self.request.after or [],
            priority=self.request.priority,
            delegated=report.delegated and not state.final,
            adopted=self.adopted,
            log=self.log,
        )


_names: dict[int, str] = {}


def user_name(uid: int) -> str:
    """The user's name, or the number where there is none; looked up once, since name services can be slow."""
    if uid not in _names:
        try:
            _names[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            _names[uid] = str(uid)
    return _names[uid]
