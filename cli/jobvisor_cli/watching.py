"""Several jobs on the terminal until they end."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobvisor_cli import exits, streams
from jobvisor_cli.display import Many
from jobvisor_cli.signals import Inbox, die_of

if TYPE_CHECKING:
    from jobvisor.info import JobInfo
    from jobvisor.stream import EventStream

FATAL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Watch:
    """The loop between the events of jobs and the signals of the command, which are about the command alone."""

    def __init__(self, shown: Many, events: streams.Events | None, *, new: bool, quiet: bool) -> None:
        """`new`: also jobs that are started meanwhile."""
        self._shown, self._events, self._new, self._quiet = shown, events, new, quiet
        self._live: set[int] = set()
        self._told: set[int] = set()
        self._code = 0

    def run(self, stream: EventStream, jobs: Iterable[JobInfo]) -> int:
        """Until all have ended; the exit code is that of the first that did not complete, or death by a signal."""
        inbox = Inbox()
        try:
            stream.on_news = inbox.nudge
            for info in jobs:
                self._live.add(info.id)
                self._take("state", info, info.ended or info.started or info.created)
            while self._live:
                while (event := stream.poll()) is not None:
                    if event.job.id in self._live or (self._new and event.job.id not in self._told):
                        self._take(event.event, event.job, event.time)
                if self._live:
                    self._obey(inbox, inbox.wait(self._shown.period))
                    self._shown.tick()
        finally:
            self._shown.hide()
            inbox.release()
        return self._code

    def _take(self, kind: str, info: JobInfo, moment: float) -> None:
        self._live.add(info.id)
        self._shown.show(info)
        if self._events:
            kind = "ended" if info.final else kind
            self._events.put({"event": kind, "time": moment, "job": info.to_dict()})
        if info.final:
            self._live.discard(info.id)
            self._told.add(info.id)
            self._shown.hide()
            code = exits.tell(info, None, quiet=self._quiet or self._events is not None)
            self._code = self._code or code

    def _obey(self, inbox: Inbox, numbers: list[int]) -> None:
        for number in numbers:
            if number in FATAL:
                self._shown.hide()
                die_of(number)
            if number == signal.SIGTSTP:
                self._shown.hide()
                inbox.stop_self()
