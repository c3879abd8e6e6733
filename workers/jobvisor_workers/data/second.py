"""A second thread for half of the work of a loop, which ends before the loop does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class SecondThread(Generic[Item, Result]):
    """Does `work(item)` for each item given, in order; started by the first one.

    Leaving the context drops the items not begun and waits until the thread is out of `work`, so that it cannot touch
    a descriptor that is closed afterwards. SystemExit may come again and again while the main thread waits (an abort
    repeats it until the worker has left): it is raised on once the thread has ended.
    """

    def __init__(self, work: Callable[[Item], Result]) -> None:
        self._work = work
        self._items: SimpleQueue[tuple[Item] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Thread.join and is_alive of Python 3.11 take a thread for ended once an exception interrupted a join.
        self._stop = self._running = self._ended = False
        self._wake = threading.Lock()
        self._wake.acquire()

    def give(self, item: Item) -> None:
        """Add an item; `take` returns the results in the order given."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="data")
            self._thread.start()
        self._items.put((item,))

    def take(self) -> Result:
        """Wait for the next result; raises what the work on it raised."""
        result, error = self._results.get()
        if error is not None:
            raise error
        return cast(Result, result)

    def _run(self) -> None:
        self._running = True
        while (item := self._items.get()) is not None and not self._stop:
            try:
                self._results.put((self._work(*item), None))
            except BaseException as error:
                self._results.put((None, error))
        self._ended = True
        self._wake.release()

    def __enter__(self) -> SecondThread[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = True
        self._items.put(None)
        interrupted: BaseException | None = None
        # A thread that does not run yet will find _stop set, and do nothing.
        while self._running and not self._ended:
            try:
                self._wake.acquire(timeout=0.05)
            except BaseException as again:
                interrupted = again
        if interrupted is not None:
            raise interrupted
        if self._ended and self._thread is not None:
            self._thread.join()
