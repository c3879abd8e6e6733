"""The supervisor's one thread: descriptors, timers, and work handed in by other threads. No user code runs on it."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
#: epoll takes no timeout of more than 24 days; a loop that wakes for nothing goes to sleep again. Seconds.
NAP_MAX = 86400.0


class Timer:
    """A call in the future, until it is dropped."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def drop(self) -> None:
        self.call = None


class Pump:
    """A selector loop on a thread of its own."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._awake = False
        self._over = False
        #: Reentrant, since a signal may interrupt the host's thread in `call`, and its code call again.
        self._door = threading.RLock()
        self._shut = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self.thread = threading.Thread(target=self._run, name="jobvisor-pump", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """From any other thread: end after what was handed in before."""
        self.call(self._end)
        self.thread.join()

    def call(self, function: Callable[[], None]) -> None:
        """From any thread: run it on the pump, in the order of the calls; at once when the pump has ended."""
        with self._door:
            shut = self._shut
            if not shut:
                self._calls.append(function)
                if not self._awake:
                    self._awake = True
                    os.eventfd_write(self._wake, 1)
        if shut:
            guarded(function)

    def submit(self, function: Callable[[], T | Future[T]]) -> Future[T]:
        """From any thread: the function's result, or that of the Future which it returned."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                outcome = function()
            except BaseException as error:
                future.set_exception(error)
                return
            if isinstance(outcome, Future):
                outcome.add_done_callback(lambda done: _copy(done, future))
            else:
                future.set_result(outcome)

        self.call(run)
        return future

    def then(self, first: Future[S], function: Callable[[S], T | Future[T]]) -> Future[T]:
        """When `first` has its result: that of the function, run on the pump with it."""
        outcome: Future[T] = Future()
        outcome.set_running_or_notify_cancel()

        def proceed(done: Future[S]) -> None:
            error = done.exception()
            if error:
                outcome.set_exception(error)
            else:
                self.submit(lambda: function(done.result())).add_done_callback(lambda last: _copy(last, outcome))

        first.add_done_callback(proceed)
        return outcome

    def aside(self, function: Callable[[], T]) -> Future[T]:
        """The function's result, on a thread of its own: it looks at files or names, and may hang with their server."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="jobvisor-aside", daemon=True).start()
        return future

    def later(self, delay: float, function: Callable[[], None]) -> Timer:
        """On the pump: run it in `delay` seconds."""
        timer = Timer(function)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._count), timer))
        return timer

    def watch(self, fd: int, function: Callable[[], None], events: int = selectors.EVENT_READ) -> None:
        self._selector.register(fd, events, function)

    def rewatch(self, fd: int, function: Callable[[], None], events: int) -> None:
        self._selector.modify(fd, events, function)

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def _end(self) -> None:
        self._over = True

    def _woken(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(self._timeout()):
                guarded(key.data)
            self._awake = False
            for _ in range(len(self._calls)):
                guarded(self._calls.popleft())
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                timer = heapq.heappop(self._timers)[2]
                if timer.call:
                    guarded(timer.call)
        self._selector.close()
        with self._door:  # a late call must not write to the number, which may be a file of the host by then
            self._shut = True
            os.close(self._wake)
        while self._calls:
            guarded(self._calls.popleft())

    def _timeout(self) -> float | None:
        if self._calls:
            return 0
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        return min(NAP_MAX, max(0.0, self._timers[0][0] - time.monotonic())) if self._timers else None


def guarded(function: Callable[[], Any]) -> None:
    """A defect in one job's bookkeeping must not end the supervision of all others."""
    try:
        function()
    except Exception:
        traceback.print_exc(file=sys.stderr)


def _copy(done: Future[T], future: Future[T]) -> None:
    error = done.exception()
    if error:
        future.set_exception(error)
    else:
        future.set_result(done.result())
