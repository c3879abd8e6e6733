"""What nobody waits for, above all events: written to the journal together, a moment later, in its order."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future

from jobvisor.events import Hub
from jobvisor.journal import Journal
from jobvisor.pump import Pump

Write = Callable[[sqlite3.Connection], None]

#: Seconds that writes are gathered, since each wake-up of the journal's thread costs time; less while a feed waits.
GATHER = 0.05
GATHER_FED = 0.005
#: Seconds until what could not be written (a full state disk) is tried again.
AGAIN = 1.0


class Backlog:
    """Touched by the pump only."""

    def __init__(self, pump: Pump, journal: Journal, hub: Hub) -> None:
        self._pump, self._journal, self._hub = pump, journal, hub
        self._writes: list[Write] = []
        self._under_way = False

    def add(self, write: Write) -> None:
        if not self._writes and not self._under_way:
            self._pump.later(self._delay, self._flush)
        self._writes.append(write)

    def close(self) -> None:
        """Hand over all there is; nothing is tried again."""
        self._hand_over()

    @property
    def _delay(self) -> float:
        return GATHER_FED if self._hub.is_fed else GATHER

    def _flush(self) -> None:
        """One batch at a time: if it fails, none behind it may be written, or readers would see a gap."""
        if self._under_way or not self._writes:
            return
        self._under_way = True
        writes, last = self._writes, self._hub.last

        def done(written: Future[None]) -> None:
            failed = written.exception() is not None
            if not failed:
                self._hub.commit(last)
            self._pump.call(lambda: again(failed))

        def again(failed: bool) -> None:
            self._under_way = False
            if failed:
                self._writes = writes + self._writes
            if self._writes:
                self._pump.later(AGAIN if failed else self._delay, self._flush)

        self._hand_over().add_done_callback(done)

    def _hand_over(self) -> Future[None]:
        writes, self._writes = self._writes, []

        def write_all(db: sqlite3.Connection) -> None:
            for write in writes:
                write(db)

        return self._journal.post(write_all)
