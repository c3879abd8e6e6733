"""What the API's event streams are made of: one feed per server, whatever the number of its streams."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from jobvisor import store
from jobvisor.engine import Engine
from jobvisor.info import Progress
from jobvisor.stream import Event


class Feed:
    """State events once they are in the journal, and the jobs whose progress is news. Any thread may use it.

    What one supervisor's feed delivers up to a number, and the next one's from that number on, is what the journal has:
    no gap and no duplicate, wherever the first was killed.
    """

    def __init__(self, engine: Engine) -> None:
        """Core.feed makes it."""
        self._engine, self._hub = engine, engine.hub
        self._changed: set[int] = set()
        #: While it is False reports cost nothing, and `take_progress` has nothing.
        self.progress_wanted = False
        #: Called on any thread, at most once per commit, when `last` has grown; must return at once.
        self.on_news: Callable[[], None] | None = None
        self._hub.open_feed(self)

    def close(self) -> None:
        self._hub.close_feed(self)

    @property
    def last(self) -> int:
        """The number of the last committed event; behind it is what comes from now on."""
        return self._hub.committed

    def after(self, number: int) -> tuple[list[Event], int]:
        """The committed events behind `number` that are in memory, and the first number that is: see `older`."""
        return self._hub.after(number, committed=True)

    def older(self, after: int, before: int) -> list[Event]:
        """The events between two numbers, from the journal; blocks. Raises Unreachable, JournalError."""
        return self._engine.journal.post(lambda db: store.events(db, after, before)).result()

    def take_progress(self) -> Future[list[tuple[int, Progress]]]:
        """Owner's uid and progress of the live jobs that reported since the last call."""
        return self._engine.pump.submit(self._take)

    def reported(self, job: int) -> None:
        """On the pump."""
        if self.progress_wanted:
            self._changed.add(job)

    def _take(self) -> list[tuple[int, Progress]]:
        self._engine.check_open()
        changed, self._changed = self._changed, set()
        live = self._engine.records
        records = [live[job] for job in changed if job in live]
        return [(record.notes.owner_uid, record.progress()) for record in records]
