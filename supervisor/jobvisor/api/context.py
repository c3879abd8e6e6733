"""What all requests to one API share: the supervisor, the threads for what may block, the streams, and the end."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jobvisor import __version__
from jobvisor.api.fanout import Fanout, Stream
from jobvisor.api.problems import Refused
from jobvisor.api.sse import Events
from jobvisor.api.wire import DaemonInfo
from jobvisor.core import Core

#: Open event streams of one user.
STREAMS_MAX = 256
#: Requests that may look at files at the same time: each waits as long as its filesystem does not answer.
THREADS = 64
T = TypeVar("T")


class Context:
    """Made on the API's event loop."""

    def __init__(self, core: Core, socket: str, idle_after: float | None) -> None:
        self.core = core
        self.leaving = asyncio.Event()
        self._socket, self._idle_after = socket, idle_after
        self._started = time.time()
        self._threads = ThreadPoolExecutor(THREADS, "jobvisor-api")
        self._fanout = Fanout(core.feed())
        self._streams: Counter[int] = Counter()

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def events(self, stream: Stream, since: int | None, uid: int) -> Events:
        """Raises Refused."""
        if self._streams[uid] >= STREAMS_MAX:
            raise Refused(429, "too-many-streams", f"you have {STREAMS_MAX} open event streams; close some")
        self._streams[uid] += 1

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

    def close(self) -> None:
        self._fanout.close_all()
        self._threads.shutdown(wait=False, cancel_futures=True)
