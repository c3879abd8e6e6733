"""Events as their reader sees them: changes of state have numbers; progress has none, and only its newest is told."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from msgspec import Struct

from jobvisor.errors import JobvisorError
from jobvisor.info import JobInfo
from jobvisor.states import State


class Event(Struct, frozen=True):
    """`event`: state or progress. `number`: of a state event, ascending; None for progress. `time`: epoch seconds."""

    event: str
    number: int | None
    time: float
    job: JobInfo

    @property
    def state(self) -> State:
        return self.job.state


class EventStream:
    """Iterate to get events as they come; use as a context manager; `close()` from any thread ends the iteration.

    The iteration raises Unreachable when the supervisor went away for good.
    """

    def __init__(self) -> None:
        #: Called, on any thread, when there may be something to poll.
        self.on_news: Callable[[], None] | None = None
        self._pending: deque[Event] = deque()
        self._progress: dict[int, Event] = {}
        self._closed = False
        self._error: JobvisorError | None = None
        self._news = threading.Condition()

    def close(self) -> None:
        """End the iteration after what is already there."""
        self._closed = True
        self._wake()

    def poll(self) -> Event | None:
        """The next event if there is one now. State events go before progress."""
        self.catch_up()
        try:
            return self._pending.popleft()
        except IndexError:
            pass
        progress = self._pop_progress()
        if progress is None and self._error is not None and not self._pending:
            raise self._error
        return progress

    @property
    def is_behind(self) -> bool:
        """True when `poll` has to read the journal, which blocks."""
        return False

    def catch_up(self) -> None:
        """Get what came meanwhile; by any thread, and by several at once."""

    @property
    def closed(self) -> bool:
        """True after `close`, also that of the supervisor; what is already there is still delivered."""
        return self._closed

    def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event, at most `timeout` seconds; None when there is none or the stream was closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            closed = self._closed
            event = self.poll()
            if event is not None or closed:
                return event
            with self._news:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                if not self._closed and not self._has_news():
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

    def _pop_progress(self) -> Event | None:
        try:
            return self._progress.pop(next(iter(self._progress)))
        except (KeyError, RuntimeError, StopIteration):  # none, or one was put in at this moment
            return None

    def _has_news(self) -> bool:
        return bool(self._pending or self._progress or self._error)

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()
        if self.on_news:
            self.on_news()
