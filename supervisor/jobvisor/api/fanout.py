"""Events for many streams: each is encoded once, each stream is a place in the sequence, and none can delay another.

Lives on the API's event loop. Only events that are in the journal are told: what a client has heard is never unsaid by
a kill -9, and what it has not heard is found there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import msgspec

from jobvisor.feed import Feed
from jobvisor.stream import Event

encode = msgspec.json.Encoder().encode
#: Encoded events kept for streams that are a little behind; older ones are read from the journal.
KEPT = 1024
#: Streams are woken at most so often, seconds: a wake-up of 200 streams costs 5 ms.
GATHER = 0.05
#: Events that are read or sent at a time.
PAGE = 256
#: Streams that are woken at a time, and the seconds between two times: requests are answered in between.
AT_ONCE = 16
APART = 0.002


class Told(msgspec.Struct):
    """An event, ready to be sent."""

    number: int
    owner: int
    job: int
    text: bytes


class Stream:
    """One listener's place: the number of the last event it was sent, and the tick of its last progress."""

    def __init__(self, owner: int | None, jobs: frozenset[int] | None, hertz: float) -> None:
        """`owner`: whose jobs, None for everybody's; `jobs`: only these."""
        self.owner, self.jobs, self.hertz = owner, jobs, hertz
        self.after = 0
        self.tick = 0
        self.news = asyncio.Event()
        self.is_due = hertz > 0
        self._due = 0.0

    def ring(self, now: float) -> None:
        """New progress was gathered."""
        if self.hertz and now >= self._due:
            self._due = max(now, self._due + 1 / self.hertz) if self._due else now + 1 / self.hertz
            self.is_due = True
            self.news.set()

    def wants(self, owner: int, job: int) -> bool:
        return self.owner in (None, owner) and (self.jobs is None or job in self.jobs)


class Fanout:
    """Between the feed of one supervisor and the streams of its API."""

    def __init__(self, feed: Feed) -> None:
        self.streams: set[Stream] = set()
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._told: list[Told] = []
        self._last: int = feed.last
        self._woken = 0.0
        self._wake_timer: asyncio.TimerHandle | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._tick = 0
        #: Job → tick, owner, encoded progress.
        self._latest: dict[int, tuple[int, int, bytes]] = {}
        self._chunks: dict[tuple[int | None, int], bytes] = {}
        feed.on_news = self._committed

    # --- streams ---------------------------------------------------------------------------------------------

    def open(self, stream: Stream, since: int | None) -> int:
        """Put a stream in its place; returns the number behind which it begins."""
        self._collect()
        stream.after = self._last if since is None else min(since, self._last)
        self.streams.add(stream)
        if stream.hertz and self._ticker is None:
            self._feed.progress_wanted = True
            self._ticker = self._loop.create_task(self._gather())
        return stream.after

    def close(self, stream: Stream) -> None:
        self.streams.discard(stream)

    def close_all(self) -> None:
        if self._ticker:
            self._ticker.cancel()
        if self._wake_timer:
            self._wake_timer.cancel()
        self._feed.close()

    async def next(self, stream: Stream) -> bytes:
        """What is there for a stream now; empty when nothing is."""
        if stream.after + 1 < self._first:
            return await self._older(stream)
        start = stream.after + 1 - self._first
        page = self._told[start : start + PAGE]
        if page:
            stream.after = page[-1].number
        text = b"".join(told.text for told in page if stream.wants(told.owner, told.job))
        if len(page) < PAGE and stream.is_due:
            stream.is_due = False
            text += self._progress(stream)
        return text

    def is_behind(self, stream: Stream) -> bool:
        return stream.after < self._last or stream.is_due

    # --- changes of state --------------------------------------------------------------------------------------

    @property
    def _first(self) -> int:
        """The number of the first event kept here; they follow one another without a hole."""
        return self._last + 1 - len(self._told)

    def _committed(self) -> None:
        """On any thread."""
        self._loop.call_soon_threadsafe(self._news)

    def _news(self) -> None:
        if self.streams and self._wake_timer is None:
            wait = max(0.0, self._woken + GATHER - self._loop.time())
            self._wake_timer = self._loop.call_later(wait, self._wake)

    def _wake(self) -> None:
        self._wake_timer = None
        self._woken = self._loop.time()
        self._collect()
        self._rouse(list(self.streams), lambda stream: stream.news.set())

    def _rouse(self, streams: list[Stream], call: Callable[[Stream], None]) -> None:
        for stream in streams[:AT_ONCE]:
            call(stream)
        if len(streams) > AT_ONCE:
            self._loop.call_later(APART, self._rouse, streams[AT_ONCE:], call)

    def _collect(self) -> None:
        if not self.streams:  # nobody is behind: what came meanwhile is for the journal
            self._told.clear()
            self._latest.clear()
            self._last = self._feed.last
            return
        events, first = self._feed.after(self._last)
        if self._last + 1 < first:
            self._told.clear()
        for event in events:
            assert event.number is not None
            self._told.append(_told(event))
            self._last = event.number
            if event.job.final:
                self._latest.pop(event.job.id, None)
        if len(self._told) > 2 * KEPT:
            del self._told[:-KEPT]

    async def _older(self, stream: Stream) -> bytes:
        until = min(self._first, stream.after + 1 + PAGE)
        events = await asyncio.to_thread(self._feed.older, stream.after, until)
        stream.after = until - 1
        return b"".join(_told(event).text for event in events if stream.wants(event.job.owner_uid, event.job.id))

    # --- progress ----------------------------------------------------------------------------------------------

    async def _gather(self) -> None:
        """As often as the most curious stream wants it, as long as there is one."""
        while hertz := max((stream.hertz for stream in self.streams), default=0.0):
            await asyncio.sleep(1 / hertz)
            moved = await asyncio.wrap_future(self._feed.take_progress())
            if moved:
                self._tick += 1
                self._chunks.clear()
                self._latest |= {each.id: (self._tick, owner, encode(each)) for owner, each in moved}
                self._rouse(list(self.streams), partial(Stream.ring, now=self._loop.time()))
        self._feed.progress_wanted = False
        self._ticker = None

    def _progress(self, stream: Stream) -> bytes:
        after, stream.tick = stream.tick, self._tick
        if stream.jobs is not None:
            return self._chunk(stream, after)
        key = stream.owner, after
        if key not in self._chunks:
            self._chunks[key] = self._chunk(stream, after)
        return self._chunks[key]

    def _chunk(self, stream: Stream, after: int) -> bytes:
        known = self._latest
        jobs = known if stream.jobs is None else [job for job in stream.jobs if job in known]
        everybodys = stream.owner is None
        moved = [
            text
            for tick, owner, text in [known[job] for job in jobs]
            if tick > after and (everybodys or owner == stream.owner)
        ]
        if not moved:
            return b""
        return b'event: progress\ndata: {"time":%.3f,"jobs":[%b]}\n\n' % (time.time(), b",".join(moved))


def _told(event: Event) -> Told:
    assert event.number is not None
    content = encode({"time": event.time, "job": event.job.to_dict()})
    return Told(
        event.number,
        event.job.owner_uid,
        event.job.id,
        b"id: %d\nevent: state\ndata: %b\n\n" % (event.number, content),
    )
