"""Events: changes of state are numbered and kept; progress is not, and only its newest is delivered."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from msgspec import Struct

from jobvisor.info import JobInfo
from jobvisor.states import State

#: Events kept in memory; older ones are read from the journal.
RING = 4096


class Event(Struct, frozen=True):
    """`event`: state or progress. `number`: of a state event, ascending; None for progress. `time`: epoch seconds."""

    event: str
    number: int | None
    time: float
    job: JobInfo

    @property
    def state(self) -> State:
        return self.job.state


class Hub:
    """Hands events from the pump to any number of streams, whatever these do; none of them can delay the pump."""

    def __init__(self) -> None:
        self._next = 1
        self._ring: deque[Event] = deque(maxlen=RING)
        self._streams: set[EventStream] = set()
        self._lock = threading.Lock()

    def begin(self, number: int) -> None:
        """Set the first number to be given."""
        self._next = number

    def state(self, info: JobInfo) -> Event:
        """Number and deliver a change of state."""
        with self._lock:
            event = Event("state", self._next, time.time(), info)
            self._next += 1
            self._ring.append(event)
            for stream in self._streams:
                stream._progress.pop(info.id, None)
                stream._wake()
        return event

    def progress(self, info: Callable[[], JobInfo], job: int, owner: int) -> None:
        """Deliver progress, if anybody listens."""
        if not self._streams:
            return
        with self._lock:
            event = Event("progress", None, time.time(), info())
            for stream in self._streams:
                if stream._is_about(job, owner):
                    stream._progress[job] = event
                    stream._wake()

    def open(self, stream: EventStream) -> None:
        with self._lock:
            if stream._after is None:
                stream._after = self._next - 1
            self._streams.add(stream)

    def close(self, stream: EventStream) -> None:
        with self._lock:
            self._streams.discard(stream)
            if stream._last is None:
                stream._last = self._next - 1

    def close_all(self) -> None:
        for stream in list(self._streams):
            stream.close()

    def after(self, number: int) -> tuple[list[Event], int]:
        """The kept events behind `number`, and the first number that is kept; what is before it is in the journal."""
        with self._lock:
            return [event for event in self._ring if (event.number or 0) > number], self.first

    @property
    def first(self) -> int:
        first = self._ring[0].number if self._ring else self._next
        assert first is not None
        return first


class EventStream:
    """Iterate to get events as they come; use as a context manager; `close()` from any thread ends the iteration."""

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
        self._hub, self._job, self._owner, self._older = hub, job, owner, older
        self._after = since
        self._last: int | None = None
        self._pending: deque[Event] = deque()
        self._taking = threading.Lock()
        self._progress: dict[int, Event] = {}
        self._closed = False
        self._news = threading.Condition()
        self.on_news: Callable[[], None] | None = None
        hub.open(self)

    def close(self) -> None:
        """End the iteration after what is already there."""
        self._hub.close(self)
        self._closed = True
        self._wake()

    def poll(self) -> Event | None:
        """The next event if there is one now. State events go before progress."""
        self.catch_up()
        try:
            return self._pending.popleft()
        except IndexError:
            pass
        try:
            return self._progress.pop(next(iter(self._progress)))
        except (KeyError, RuntimeError, StopIteration):  # none, or the pump put one in at this moment
            return None

    @property
    def is_behind(self) -> bool:
        """True when `poll` has to read the journal, which blocks."""
        assert self._after is not None
        return not self._pending and self._after + 1 < self._hub.first

    def catch_up(self) -> None:
        """Get what came meanwhile; by any thread, and by several at once."""
        with self._taking:
            if not self._pending:
                self._fetch()

    @property
    def closed(self) -> bool:
        """True after `close`, also that of the supervisor; what is already there is still delivered."""
        return self._closed

    def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event, at most `timeout` seconds; None when there is none or the stream was closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            event = self.poll()
            if event is not None:
                return event
            with self._news:
                if self._closed:
                    return None
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                if not self._has_news():
                    self._news.wait(left)

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self.next()
            if event is None:
                return
            yield event

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has_news(self) -> bool:
        assert self._after is not None
        return bool(self._pending or self._progress or self._hub._next - 1 > self._after)

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

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()
        if self.on_news:
            self.on_news()
