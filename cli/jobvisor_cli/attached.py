"""A job in the foreground: from its start to its end or to the moment in which the command leaves it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from jobvisor.errors import JobvisorError, UsageError, WrongState
from jobvisor.info import JobInfo
from jobvisor.job import Job
from jobvisor.private import PrivateSupervisor
from jobvisor.states import Cause, State
from jobvisor_cli import display, render, streams
from jobvisor_cli.display import Display
from jobvisor_cli.signals import Inbox, die_of
from jobvisor_workers.jobtype import JobType

#: Seconds in which a second ^C is the first one again: timeout(1) and others signal the command and then its group.
SAME_REQUEST = 0.03
#: Progress in JSON: at most two objects per second.
JSON_PERIOD = 0.5
#: Bytes read of a crashed worker's log.
LOG_TAIL = 16384

EXIT_CODES = {State.COMPLETED: 0, State.FAILED: 1, State.ABORTED: 3}
EXIT_BUSY = 6


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
    no_daemon: bool = False,  # noqa: ARG001 - there is no other way yet
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
        with closing(PrivateSupervisor()) as supervisor:
            attached = Attached(supervisor, supervisor.start(job, **options), inbox, shown, events)
            try:
                final = attached.follow()
            except Detached as left:
                die_of(left.signal)
            shown.hide()
            log = _tail(final.log)
    finally:
        late = inbox.release()
    if final.ok or attached.fatal:
        early = ", before it could be aborted" if final.ok and attached.fatal else ""
        shown.say(render.ending(what, final, attached.abort_effect) + early)
    else:
        there_is_more = "; add --info to see it" if log and not info and "log" in (final.errmsg or "") else ""
        streams.complain(render.failure(what, final) + there_is_more)
    if events:
        events.put({"event": "ended", "job": final.to_dict()})
        events.finish()
    streams.result("" if events else render.digest_line(final, str(typed.get("volume", ""))))
    streams.result(render.info_page(final, log) if info else "")
    number = attached.fatal or late
    if number is not None:
        die_of(number)
    return EXIT_BUSY if final.cause is Cause.BUSY else EXIT_CODES[final.state]


class Attached:
    """The loop between the job's events and the command's signals."""

    def __init__(
        self, supervisor: PrivateSupervisor, job: Job, inbox: Inbox, shown: Display, events: streams.Events | None
    ) -> None:
        self.fatal: int | None = None
        self.abort_effect: str | None = None
        self._supervisor, self._job, self._inbox, self._shown, self._events = supervisor, job, inbox, shown, events
        self._stopping = False
        self._hung_up = False
        self._json_due = 0.0
        self._stream = supervisor.events(since=0, job=job.id)
        self._stream.on_news = inbox.nudge
        self._info = job.info()

    def follow(self) -> JobInfo:
        """The job's final info. Raises Detached."""
        while True:
            self._take_events()
            if self._info.final:
                return self._info
            if self._stopping and _at_rest(self._info):
                self._stopping = False
                self._stop()
            elif self._hung_up and not self._stopping:
                self._supervisor.detach()
                raise Detached(signal.SIGHUP)
            else:
                self._obey(self._wait())
                self._shown.tick()

    def _wait(self) -> list[int]:
        if self._events is None or not self._events.waiting:
            return self._inbox.wait(self._shown.period)
        numbers = self._inbox.wait(self._shown.period, writing=self._events.fileno())
        self._events.pump()
        return numbers

    def _take_events(self) -> None:
        while (event := self._stream.poll()) is not None:
            self._info = event.job
            self.abort_effect = event.job.abort_effect or self.abort_effect
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
        self.fatal, self._stopping = number, False
        try:
            self._job.abort(wait=False)
        except WrongState:  # it ended by itself just now; its end is told as it was
            return
        time.sleep(SAME_REQUEST)
        self._hung_up = self._hung_up or signal.SIGHUP in self._inbox.wait(0)

    def _leave(self) -> None:
        """A second ^C: the job is being aborted, but not as fast as the user wants the terminal back."""
        self._take_events()
        if self._info.final:
            return
        self._supervisor.detach()
        self._shown.hide()
        pid = f" (pid {self._info.pid})" if self._info.pid else ""
        at_once = f"; kill -9 {self._info.pid} ends it at once" if self._info.pid else ""
        streams.note(f"detached: job {self._job.id}{pid} is still being aborted{at_once}")
        if self._events is not None:
            self._events.put({"event": "detached", "job": self._info.to_dict()})
        raise Detached(signal.SIGINT)

    def _suspend(self) -> None:
        try:
            self._info = self._job.suspend(wait=False)
        except UsageError as error:  # a stop would do harm
            self._shown.say(f"{error}; it goes on")
            return
        except WrongState:  # it is suspended already, or about to end
            self._info = self._job.info()
        self._stopping = True

    def _stop(self) -> None:
        """The job is suspended: now the command stops, as ^Z stops any other; returns after fg or bg."""
        if not self._hung_up:
            self._shown.stopping()
            self._inbox.stop_self()
        numbers = [number for number in self._inbox.wait(0) if number != signal.SIGTSTP]
        if not {signal.SIGINT, signal.SIGTERM} & set(numbers):
            try:
                self._job.resume()
            except JobvisorError:  # it was resumed or ended by somebody else meanwhile
                pass
        self._obey(numbers)


def _at_rest(info: JobInfo) -> bool:
    """Suspended, or held before it had a worker."""
    return info.state is State.SUSPENDED or (info.state is State.QUEUED and info.reason == "held")


def _label(job: JobType, typed: Mapping[str, Any]) -> str:
    """What fits beside a bar: "clone vm1.qcow2"."""
    names = [str(typed[field]) for field in job.resources() if typed.get(field)]
    return " ".join([job.name(), *(os.path.basename(name) or name for name in names[-1:])])


def _tail(path: str) -> str:
    """The end of a worker's log, which goes away with the private home."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
