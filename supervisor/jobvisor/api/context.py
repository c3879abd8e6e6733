"""What all requests to one API share: the supervisor, the threads for what may block, the streams, and the end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from jobvisor import __version__
from jobvisor.api.fanout import Fanout, Stream
from jobvisor.api.problems import Refused
from jobvisor.api.sse import Events
from jobvisor.core import Core
from jobvisor.info import DaemonInfo

#: Open event streams of one user.
STREAMS_MAX = 256
#: Standard inputs and outputs of jobs that one user may have open: each has a thread.
PIPES_MAX = 16
#: Requests of one user that may have a body in memory, or a thread that looks at files, at the same time.
TURNS = 16
T = TypeVar("T")


class Context:
    """Made on the API's event loop."""

    def __init__(self, core: Core, socket: str, idle_after: float | None) -> None:
        self.core = core
        self.leaving = asyncio.Event()
        self._socket, self._idle_after = socket, idle_after
        self._started = time.time()
        self._cut: set[threading.Event] = set()
        self._fanout = Fanout(core.feed())
        self._turns: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(TURNS))
        self._streams: Counter[int] = Counter()
        self._pipes: Counter[int] = Counter()

    def turn(self, uid: int) -> asyncio.Semaphore:
        """To be held by a request of that user which may take memory or a thread."""
        return self._turns[uid]

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Await what may block for as long as a filesystem, or a client, likes.

        Each has a thread of its own, which does not keep the process from ending, as those of a pool would.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            outcome: Future[T] = Future()
            try:
                outcome.set_result(function())
            except BaseException as error:
                outcome.set_exception(error)
            try:
                loop.call_soon_threadsafe(_copy, outcome, future)
            except RuntimeError:  # the loop was closed: nobody waits any more
                pass

        threading.Thread(target=run, name="jobvisor-api-call", daemon=True).start()
        return await future

    @contextmanager
    def streaming(self, uid: int) -> Iterator[threading.Event]:
        """While something is sent or received; the event is set when that is to be broken off. Raises Refused."""
        self._enter(uid, PIPES_MAX, self._pipes, "pipes")
        leave = threading.Event()
        if self.leaving.is_set():
            leave.set()
        self._cut.add(leave)
        try:
            yield leave
        finally:
            leave.set()  # its thread may still wait: the request was cancelled, or the daemon leaves
            self._pipes[uid] -= 1
            self._cut.discard(leave)

    def events(self, stream: Stream, since: int | None, uid: int) -> Events:
        """Raises Refused."""
        self._enter(uid, STREAMS_MAX, self._streams, "event streams")

        def closed() -> None:
            self._streams[uid] -= 1

        return Events(self._fanout, stream, since, self.leaving, closed)

    async def about(self) -> DaemonInfo:
        return DaemonInfo(
            version=__version__,
            pid=os.getpid(),
            home=str(self.core.home.path),
            socket=self._socket,
            uid=os.geteuid(),
            started=self._started,
            jobs=await asyncio.wrap_future(self.core.live()),
            idle_after=self._idle_after,
        )

    def leave(self) -> None:
        """Streams say good-bye, and who waits is told to ask again."""
        self.leaving.set()
        for leave in self._cut:
            leave.set()

    def close(self) -> None:
        self._fanout.close_all()

    def _enter(self, uid: int, most: int, counted: Counter[int], what: str) -> None:
        if counted[uid] >= most:
            raise Refused(429, "too-many-streams", f"you have {most} open {what}; close some")
        counted[uid] += 1


def _copy(outcome: Future[T], future: asyncio.Future[T]) -> None:
    if future.done():  # who waited for it was cancelled
        return
    error = outcome.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(outcome.result())
