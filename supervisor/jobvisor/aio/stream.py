"""Events for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from jobvisor import stream
from jobvisor.stream import Event


class EventStream:
    """Iterate with `async for` to get events as they come; use with `async with`; `close()` ends the iteration.

    To be used on one loop, that on which it is first awaited.
    """

    def __init__(self, stream: stream.EventStream, await_start: Callable[[], None] | None = None) -> None:
        self._stream = stream
        self._await_start = await_start
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._told = False

    def close(self) -> None:
        """End the iteration after what is already there. From any thread."""
        self._stream.close()

    async def opened(self) -> EventStream:
        """Return when nothing that happens from now on is missed. Raises Unreachable."""
        if self._await_start:
            await asyncio.to_thread(self._await_start)
            self._await_start = None
        return self

    @property
    def closed(self) -> bool:
        """True after `close`, also that of the supervisor; what is already there is still delivered."""
        return self._stream.closed

    async def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event, at most `timeout` seconds; None when there is none or the stream was closed."""
        try:
            return await asyncio.wait_for(self._next(), timeout)
        except TimeoutError:
            return None

    async def _next(self) -> Event | None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._stream.on_news = self._tell
        while True:
            self._news.clear()
            if self._stream.is_behind:  # reads the journal
                await asyncio.to_thread(self._stream.catch_up)
            closed = self.closed
            event = self._stream.poll()
            if event is not None or closed:
                return event
            await self._news.wait()

    def _tell(self) -> None:
        """On the pump's or any other thread. Many news are one call until the loop has heard it."""
        if not self._told:
            self._told = True
            assert self._loop is not None
            try:
                self._loop.call_soon_threadsafe(self._hear)
            except RuntimeError:  # the loop was closed: nobody is left to hear
                pass

    def _hear(self) -> None:
        self._told = False
        self._news.set()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        event = await self._next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> EventStream:
        await self.opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
