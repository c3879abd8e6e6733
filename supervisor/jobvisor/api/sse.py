"""`GET /v1/events`: server-sent events, as the HTML standard has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from jobvisor.api.fanout import Fanout, Stream

#: A comment so often, seconds: a dead peer is found out by a write.
COMMENT = 15.0
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class Events:
    """The answer to one request: it lasts until the client leaves, or the daemon does."""

    def __init__(
        self,
        fanout: Fanout,
        stream: Stream,
        since: int | None,
        leaving: asyncio.Event,
        closed: Callable[[], None],
    ) -> None:
        self._fanout, self._stream, self._since, self._leaving, self._closed = fanout, stream, since, leaving, closed
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = self._fanout.open(self._stream, self._since)
        watching = [asyncio.ensure_future(self._watch(receive)), asyncio.ensure_future(self._hear_leaving())]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            # Where it begins: who was told nothing else can still go on from here.
            await self._say(send, b'id: %d\nevent: start\ndata: {"number":%d}\n\n' % (number, number))
            while not self._gone and not self._leaving.is_set():
                text = await self._fanout.next(self._stream)
                if text:
                    await self._say(send, text)
                elif not self._fanout.is_behind(self._stream):
                    await self._wait(send)
            if not self._gone:
                await self._say(send, b"event: bye\ndata: {}\n\n")
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._fanout.close(self._stream)
            self._closed()
            for task in watching:
                task.cancel()

    async def _wait(self, send: Send) -> None:
        self._stream.news.clear()
        if self._gone or self._leaving.is_set() or self._fanout.is_behind(self._stream):
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + COMMENT
        timer = loop.call_at(due, self._stream.news.set)
        await self._stream.news.wait()
        timer.cancel()
        if loop.time() >= due:
            await self._say(send, b":\n\n")

    async def _say(self, send: Send, text: bytes) -> None:
        await send({"type": "http.response.body", "body": text, "more_body": True})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._stream.news.set()

    async def _hear_leaving(self) -> None:
        await self._leaving.wait()
        self._stream.news.set()
