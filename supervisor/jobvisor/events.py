"""The supervisor's end of events: changes of state are numbered and kept, and delivered to any number of streams."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from jobvisor.info import JobInfo
from jobvisor.states import State
from jobvisor.stream import Event, EventStream

if TYPE_CHECKING:
    from jobvisor.feed import Feed
    from jobvisor.record import Record

#: Events kept in memory; older ones are read from the journal.
RING = 4096


class Hub:
    """Hands events from the pump to any number of streams and feeds, whatever these do; none can delay the pump."""

    def __init__(self) -> None:
        #: The number of the last event that is in the journal for certain.
        self.committed = 0
        self._next = 1
        self._ring: deque[Event] = deque(maxlen=RING)
        self._streams: set[LocalStream] = set()
        self._feeds: tuple[Feed, ...] = ()
        self._lock = threading.Lock()

    def begin(self, number: int) -> None:
        """Set the first number to be given."""
        self._next = number

    def state(self, info: JobInfo) -> Event:
        """Number a change of state, and deliver it to the streams; feeds get it once it is committed."""
        with self._lock:
            event = Event("state", self._next, time.time(), info)
            self._next += 1
            self._ring.append(event)
            for stream in self._streams:
                stream._reported.pop(info.id, None)
                stream._wake()
        return event

    def commit(self, number: int) -> None:
        """By any thread: events up to this one are in the journal."""
        if number > self.committed:
            self.committed = number
            for feed in self._feeds:
                if feed.on_news:
                    feed.on_news()

    def progress(self, record: Record) -> None:
        """Deliver progress, if anybody listens; on the pump, ten thousand times a second."""
        for feed in self._feeds:
            feed.reported(record.id)
        if not self._streams:
            return
        with self._lock:
            for stream in self._streams:
                if stream._is_about(record.id, record.notes.owner_uid):
                    stream._reported[record.id] = record, record.state
                    stream._wake()

    def open(self, stream: LocalStream) -> None:
        with self._lock:
            if stream._after is None:
                stream._after = self._next - 1
            self._streams.add(stream)

    def close(self, stream: LocalStream) -> None:
        with self._lock:
            self._streams.discard(stream)
            if stream._last is None:
                stream._last = self._next - 1

    def open_feed(self, feed: Feed) -> None:
        with self._lock:
            self._feeds = (*self._feeds, feed)

    def close_feed(self, feed: Feed) -> None:
        with self._lock:
            self._feeds = tuple(each for each in self._feeds if each is not feed)

    def close_all(self) -> None:
        for stream in list(self._streams):
            stream.close()

    def after(self, number: int, *, committed: bool = False) -> tuple[list[Event], int]:
        """The kept events behind `number`, and the first number that is kept; what is before it is in the journal."""
        with self._lock:
            behind = islice(reversed(self._ring), max(0, self.last - number))  # there is no gap in the ring
            events = [event for event in behind if not committed or (event.number or 0) <= self.committed]
            return events[::-1], self.first

    @property
    def first(self) -> int:
        first = self._ring[0].number if self._ring else self._next
        assert first is not None
        return first

    @property
    def last(self) -> int:
        """The newest number that was given."""
        return self._next - 1

    @property
    def is_fed(self) -> bool:
        """True while somebody waits for events to be committed."""
        return bool(self._feeds)


class LocalStream(EventStream):
    """Takes numbered events from the hub or, where they are older, from the journal, when it is asked for the next."""

    def __init__(
        self,
        hub: Hub,
        *,
        since: int | None,
        job: int | None,
        owner: int | None,
        older: Callable[[int, int], list[Event]],
    ) -> None:
        """`since`: deliver first what came after that number; `owner`: one user's jobs; `older`: reads the journal."""
        super().__init__()
        self._hub, self._job, self._owner, self._older = hub, job, owner, older
        self._after = since
        self._last: int | None = None
        self._taking = threading.Lock()
        self._reported: dict[int, tuple[Record, State]] = {}
        hub.open(self)

    def close(self) -> None:
        self._hub.close(self)
        super().close()

    @property
    def is_behind(self) -> bool:
        assert self._after is not None
        return not self._pending and self._after + 1 < self._hub.first

    def catch_up(self) -> None:
        with self._taking:
            if not self._pending:
                self._fetch()

    def _pop_progress(self) -> Event | None:
        while self._reported:
            try:
                record, state = self._reported.pop(next(iter(self._reported)))
            except (KeyError, RuntimeError, StopIteration):  # taken by another thread, or one was put in at this moment
                continue
            info = record.info()  # made here and now: of ten reports perhaps one is looked at
            if info.state is state:  # else an event that tells more is on its way
                return Event("progress", None, time.time(), info)
        return None

    def _has_news(self) -> bool:
        assert self._after is not None
        return super()._has_news() or bool(self._reported) or self._hub._next - 1 > self._after

    def _fetch(self) -> None:
        assert self._after is not None
        events, first = self._hub.after(self._after)
        older = self._older(self._after, first) if self._after + 1 < first else []
        self._after = events[-1].number if events else max(self._after, first - 1)
        events = older + events
        self._pending.extend(event for event in events if self._is_wanted(event))

    def _is_wanted(self, event: Event) -> bool:
        assert event.number is not None
        about = self._is_about(event.job.id, event.job.owner_uid)
        return about and (self._last is None or event.number <= self._last)

    def _is_about(self, job: int, owner: int) -> bool:
        return self._job in (None, job) and self._owner in (None, owner)
