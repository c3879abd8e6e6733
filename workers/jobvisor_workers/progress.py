"""The worker's end of the progress pipe: rate-limited snapshots, and the bandwidth limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic, sleep

from jobvisor_workers.protocol import Report, encode

#: Seconds between two reports of progress; changes of state go out at once.
PERIOD = 0.1
#: A write of at most this many bytes to a pipe is whole or not at all (PIPE_BUF on Linux).
LINE_MAX = 4096
#: A bandwidth limit sleeps in slices, so that it forgets a backlog (a suspended hour is not caught up).
SLICE = 0.25


class Reporter:
    """Keeps the latest report and writes it when it is due.

    The worker holds the read end open too: with nobody reading, a write answers EAGAIN and never EPIPE, so a dead
    supervisor does not disturb the job.
    """

    def __init__(self, pipe: int, bandwidth: int | None = None) -> None:
        """`pipe`: non-blocking write end; `bandwidth`: bytes per second."""
        self.report = Report()
        self.blocked = False
        #: Called when a report met a full pipe; somebody must then call `send` again.
        self.on_blocked: Callable[[], None] = lambda: None
        self._pipe = pipe
        self._due = 0.0
        self._bandwidth = bandwidth
        self._paid_until = 0.0
        #: advance(n): n bytes more are done. An attribute, so that the unlimited one costs one call.
        self.advance = self._advance if bandwidth is None else self._advance_limited

    def _advance(self, count: int) -> None:
        report = self.report
        report.processed += count
        now = monotonic()
        if now >= self._due:
            self._due = now + PERIOD
            self.send()

    def _advance_limited(self, count: int) -> None:
        self._advance(count)
        assert self._bandwidth is not None
        now = monotonic()
        self._paid_until = max(self._paid_until, now - SLICE) + count / self._bandwidth
        while (ahead := self._paid_until - monotonic()) > 0:
            sleep(min(ahead, SLICE))
            self.advance_nothing()

    def advance_nothing(self) -> None:
        """Report if it is due: a slow or limited job still says that it is alive."""
        self._advance(0)

    def send(self) -> None:
        """Write the snapshot; when the pipe is full, `blocked` asks for another try later."""
        try:
            line = encode(self.report) + b"\n"
            if len(line) > LINE_MAX:
                line = encode(self._shortened()) + b"\n"
            os.write(self._pipe, line)
            self.blocked = False
        except BlockingIOError:
            if not self.blocked:
                self.blocked = True
                self.on_blocked()

    def _shortened(self) -> Report:
        full = self.report
        return Report(
            state=full.state,
            phase=full.phase and full.phase[:200],
            processed=full.processed,
            total=full.total,
            continued=full.continued,
            reason=full.reason and full.reason[:200],
            abort_effect=full.abort_effect and full.abort_effect[:400],
            warnings=[text[:200] for text in full.warnings[:3]],
        )
