"""A job in the foreground: from its start to its end or to the moment in which the command leaves it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from jobvisor.errors import NoSuchJob, UsageError, WrongState
from jobvisor.info import JobInfo
from jobvisor.job import Job
from jobvisor.states import State
from jobvisor_cli import display, exits, reach, render, streams
from jobvisor_cli.asked import Asked
from jobvisor_cli.display import Display
from jobvisor_cli.expected import expected_lines
from jobvisor_cli.page import info_page
from jobvisor_cli.piped import Piped
from jobvisor_cli.signals import Inbox, die_of
from jobvisor_cli.verbs import HELD
from jobvisor_workers.jobtype import JobType
from jobvisor_workers.pipes import NO_READER, NO_SENDER

if TYPE_CHECKING:
    from jobvisor.client import Client
    from jobvisor.private import PrivateSupervisor

#: Seconds in which a second ^C is the first one again: timeout(1) and others signal the command and then its group.
SAME_REQUEST = 0.03
#: Progress in JSON: at most two objects per second.
JSON_PERIOD = 0.5

T = TypeVar("T")


class Detached(Exception):
    """The command leaves, the job goes on. `signal`: what the command dies of."""

    def __init__(self, number: int) -> None:
        self.signal = number


def attach(
    job: JobType,
    typed: Mapping[str, Any],
    *,
    quiet: bool = False,
    json: bool = False,
    info: bool = False,
    progress: str = "auto",
    no_daemon: bool = False,
    **options: Any,
) -> int:
    """Run a job to its end and say what there is to say; returns the exit code, or dies of the signal that ended it.

    `typed`: the arguments as the user wrote them. Raises JobvisorError when there is no job, streams.CannotWrite.
    """
    what = render.subject(type(job), typed)
    events = streams.Events() if json else None
    shown = display.choose(what, label=_label(job, typed), progress=progress, quiet=quiet, json=json)
    inbox = Inbox()
    late = None
    try:
        with closing(_private() if no_daemon else reach.client()) as owner:
            attached = Attached(owner, inbox, shown, events, tied=no_daemon, dry_run=bool(options.get("dry_run")))
            try:
                attached.start(job, lambda: owner.start(job, **options))
                final = attached.follow()
            except Detached as left:
                die_of(left.signal)
            shown.hide()
            log = attached.job.log().decode(errors="replace") if final.cause or info else ""
    finally:
        late = inbox.release()
    broken = attached.piped and not attached.fatal and attached.piped.error()
    if broken:
        streams.complain(broken)
    elif final.ok or attached.fatal:
        early = ", before it could be aborted" if final.ok and attached.fatal else ""
        shown.say(render.ending(what, final, attached.abort_effect) + early)
    else:
        look = "add --info to see it" if no_daemon else f"jobvisor log {final.id} shows it"
        there_is_more = f"; {look}" if log and not info and "its log" in (final.errmsg or "") else ""
        streams.complain(exits.why(final, what, warned=not (quiet or json)) + there_is_more)
    if events:
        events.put({"event": "ended", "job": final.to_dict()})
        events.finish()
    digest = "" if events else render.digest_line(final, typed)
    if job.has_stdout and digest:
        streams.note(digest.rstrip("\n"))
    else:
        streams.result(digest)
    streams.result("" if events or info else expected_lines(final.result, _as_typed(job, final, typed)))
    streams.result(info_page(final, log, kept=not no_daemon) if info else "")
    number = attached.fatal or late
    if number is not None:
        die_of(number)
    return exits.FAILED if broken else exits.code(final)


class Attached:
    """The loop between the job's events and the command's signals."""

    job: Job

    def __init__(
        self,
        owner: Client | PrivateSupervisor,
        inbox: Inbox,
        shown: Display,
        events: streams.Events | None,
        *,
        tied: bool,
        dry_run: bool,
    ) -> None:
        """`tied`: the job dies with this command, unless it is detached. `dry_run`: it reads and writes nothing."""
        self.fatal: int | None = None
        self.piped: Piped | None = None
        self.abort_effect: str | None = None
        self._owner, self._inbox, self._shown, self._events = owner, inbox, shown, events
        self._tied, self._dry_run = tied, dry_run
        self._fatal_at: float | None = None
        self._unread: list[int] = []
        self._stopping = False
        self._hung_up = False
        self._json_due = 0.0

    def start(self, job: JobType, start: Callable[[], Job]) -> None:
        """Begin with the job that `start` gives. Raises JobvisorError, Detached."""
        self.job = self._ask(start)
        if (job.has_stdin or job.has_stdout) and not self._dry_run:
            self.piped = Piped(job, self._inbox.nudge, lambda: self.fatal is not None or self._hung_up)
            self.piped.start(self.job)
        self._stream = self._owner.events(since=0, job=self.job.id)
        self._stream.on_news = self._inbox.nudge
        self._info = self._ask(self.job.info)

    def follow(self) -> JobInfo:
        """The job's final info. Raises Detached."""
        while True:
            self._take_events()
            if self._info.final and (self.piped is None or self.piped.idle or self.fatal):
                return self._info
            if self._stopping and _at_rest(self._info):
                self._stopping = False
                self._stop()
            elif self._hung_up and not self._stopping:
                self._detach(signal.SIGHUP)
            else:
                self._obey(self._wait())
                self._shown.tick()

    def _ask(self, question: Callable[[], T]) -> T:
        """An answer, which may have to come from a daemon that hangs: two ^C do not wait for it. Raises Detached."""
        asked = Asked(question, self._inbox.nudge)
        first = self._fatal_at
        while not asked.answered:
            numbers = self._inbox.wait(None)
            self._unread += numbers
            if signal.SIGINT in numbers and first is None:
                first = time.monotonic()
            elif signal.SIGINT in numbers and first is not None and time.monotonic() - first > SAME_REQUEST:
                self._shown.hide()
                known = hasattr(self, "job")
                what = f"job {self.job.id} may go on" if known else "the job may have been started, see jobvisor list"
                streams.note(f"detached: the daemon does not answer; {what}")
                self._detach(signal.SIGINT)
        return asked.answer()

    def _detach(self, number: int) -> NoReturn:
        if self._tied:
            cast("PrivateSupervisor", self._owner).detach()
        raise Detached(number)

    def _wait(self) -> list[int]:
        unread, self._unread = self._unread, []
        if unread:
            return unread
        if self._events is None or not self._events.waiting:
            return self._inbox.wait(self._shown.period)
        numbers = self._inbox.wait(self._shown.period, writing=self._events.fileno())
        self._events.pump()
        return numbers

    def _take_events(self) -> None:
        while (event := self._stream.poll()) is not None:
            self._info = event.job
            self.abort_effect = event.job.abort_effect or self.abort_effect
            if event.job.reason not in (NO_SENDER, NO_READER):  # as we are there, that is over at once
                self._shown.show(event.job)
            if self._events is not None:
                now = time.monotonic()
                if event.event == "progress" and now < self._json_due:
                    continue
                self._json_due = now + JSON_PERIOD
                self._events.put({"event": event.event, "time": event.time, "job": event.job.to_dict()})

    def _obey(self, numbers: list[int]) -> None:
        self._hung_up = self._hung_up or signal.SIGHUP in numbers
        for number in numbers:
            match number:
                case signal.SIGINT | signal.SIGTERM if self.fatal is None:
                    self._abort(number)
                    return
                case signal.SIGINT:
                    self.fatal = number
                    self._leave()
                case signal.SIGTSTP if self.fatal is None:
                    self._suspend()

    def _abort(self, number: int) -> None:
        self.fatal, self._fatal_at, self._stopping = number, time.monotonic(), False
        try:
            self._ask(lambda: self.job.abort(wait=False))
        except WrongState:  # it ended by itself just now; its end is told as it was
            return
        time.sleep(SAME_REQUEST)
        self._hung_up = self._hung_up or signal.SIGHUP in [*self._unread, *self._inbox.wait(0)]
        self._unread.clear()

    def _leave(self) -> None:
        """A second ^C: the job is being aborted, but not as fast as the user wants the terminal back."""
        self._take_events()
        if self._info.final:
            return
        self._shown.hide()
        number, pid = self.job.id, self._info.pid
        if not self._tied:
            at_once = f"; jobvisor abort --force {number} ends it at once"
        else:
            at_once = f"; kill -9 {pid} ends it at once" if pid else ""
        who = f" (pid {pid})" if pid else ""
        streams.note(f"detached: job {number}{who} is still being aborted{at_once}")
        if self._events is not None:
            self._events.put({"event": "detached", "job": self._info.to_dict()})
        self._detach(signal.SIGINT)

    def _suspend(self) -> None:
        try:
            self._info = self._ask(lambda: self.job.suspend(wait=False))
        except UsageError as error:  # a stop would do harm
            self._shown.say(f"{error}; it goes on")
            return
        except WrongState:  # it is suspended already, or about to end
            self._info = self._ask(self.job.info)
        self._stopping = True

    def _stop(self) -> None:
        """The job is suspended: now the command stops, as ^Z stops any other; returns after fg or bg."""
        if not self._hung_up:
            self._shown.stopping()
            self._inbox.stop_self()
        numbers = [number for number in [*self._unread, *self._inbox.wait(0)] if number != signal.SIGTSTP]
        self._unread.clear()
        if not {signal.SIGINT, signal.SIGTERM} & set(numbers):
            try:
                self._ask(lambda: self.job.resume(wait=False))
            except (WrongState, NoSuchJob):  # it was resumed or ended by somebody else meanwhile
                pass
        self._obey(numbers)


def _private() -> PrivateSupervisor:
    from jobvisor.private import PrivateSupervisor

    return PrivateSupervisor()


def _at_rest(info: JobInfo) -> bool:
    """Suspended, or held before it had a worker."""
    return info.state is State.SUSPENDED or (info.state is State.QUEUED and info.reason == HELD)


def _as_typed(job: JobType, info: JobInfo, typed: Mapping[str, Any]) -> dict[str, str]:
    return {info.args[field]: str(typed[field]) for field in job.resources() if typed.get(field)}


def _label(job: JobType, typed: Mapping[str, Any]) -> str:
    """What fits beside a bar: "clone vm1.qcow2"."""
    named = ((str(typed[field]), each) for field, each in job.resources().items() if typed.get(field))
    names = [name for name, resource in named if not resource.is_pipe(name)]
    return " ".join([job.name(), *(os.path.basename(name) or name for name in names[-1:])])
