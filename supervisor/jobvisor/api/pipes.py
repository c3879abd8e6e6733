"""`PUT …/stdin` and `GET …/stdout`: a request's body or answer on the event loop, and a job's pipe on a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import IO, TypeVar, cast

from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from jobvisor import piping
from jobvisor.api.call import Call
from jobvisor.api.context import Context
from jobvisor.job import checked

#: How often a thread that waits for the client looks whether it is to leave, seconds.
LOOK = 0.2
MEDIA_TYPE = "application/octet-stream"
T = TypeVar("T")


async def put_input(context: Context, call: Call) -> Response:
    """All of the body is written to the job. One that is cut off fails the job: a part never looks like the whole."""
    with context.streaming(call.core.uid) as leave:
        file = cast("IO[bytes]", _Body(call.request.stream(), leave))
        await context.in_thread(lambda: piping.send(call.core, call.id, file, leave))
    return Response(status_code=204)


async def get_output(context: Context, call: Call) -> Response:
    """What the job writes, as fast as the client reads it. The answer ends well only if the job does."""
    pieces = _answered(context, call)
    first = await anext(pieces, b"")  # what is wrong from the beginning is a problem, not a broken stream
    return StreamingResponse(_chained(first, pieces), media_type=MEDIA_TYPE)


async def _answered(context: Context, call: Call) -> AsyncIterator[bytes]:
    queue: asyncio.Queue[bytes] = asyncio.Queue(1)
    with context.streaming(call.core.uid) as leave:
        file = cast("IO[bytes]", _Sink(queue, leave))

        async def read() -> None:
            try:
                await context.in_thread(lambda: piping.receive(call.core, call.id, file, leave))
            finally:
                await queue.put(b"")

        reading = asyncio.ensure_future(read())
        try:
            while piece := await queue.get():
                yield piece
            await reading
            future, _ = call.core.wait(call.id, None)
            checked(await call.unless_gone(asyncio.wrap_future(future)))
        finally:
            leave.set()
            reading.cancel()


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for piece in rest:
        yield piece


class _OnLoop:
    """Awaits for a thread, until this is to leave."""

    def __init__(self, leave: threading.Event) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), leave

    def _result(self, future: Future[T]) -> T:
        """Raises ClientDisconnect when it is to leave first."""
        while not self._leave.is_set():
            try:
                return future.result(LOOK)
            except TimeoutError:
                pass
        future.cancel()
        raise ClientDisconnect


class _Body(_OnLoop):
    """A request's body as a file to read."""

    def __init__(self, pieces: AsyncIterator[bytes], leave: threading.Event) -> None:
        super().__init__(leave)
        self._pieces = pieces

    def read(self, _size: int) -> bytes:
        """The next piece, of whatever size. Raises ClientDisconnect."""
        while True:
            piece = self._result(asyncio.run_coroutine_threadsafe(self._next(), self._loop))
            if piece is None:
                return b""
            if piece:
                return piece

    async def _next(self) -> bytes | None:
        return await anext(self._pieces, None)


class _Sink(_OnLoop):
    """An answer as a file to write to."""

    def __init__(self, queue: asyncio.Queue[bytes], leave: threading.Event) -> None:
        super().__init__(leave)
        self._queue = queue

    def write(self, piece: bytes) -> int:
        """Returns when the client has room for more. Raises ClientDisconnect."""
        self._result(asyncio.run_coroutine_threadsafe(self._queue.put(piece), self._loop))
        return len(piece)
