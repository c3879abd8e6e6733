"""Events from a daemon: read on a thread, connected again where it was cut, without a gap and without a duplicate."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
from msgspec import Struct

from jobvisor.errors import JobvisorError, NoSuchJob, Unreachable
from jobvisor.info import JobInfo, Progress
from jobvisor.remote import calls, sse
from jobvisor.remote.blocking import run
from jobvisor.remote.conversation import Lost, NotUnderstood
from jobvisor.remote.exchange import Absent, Exchange, Outage, Reply
from jobvisor.states import FINAL, State
from jobvisor.stream import Event, EventStream

#: A reader that is so many events behind is waited for; the daemon keeps them for it.
BEHIND_MAX = 4096


class _Change(Struct):
    """The data of a message about a state."""

    time: float
    job: JobInfo


class _Progress(Struct):
    time: float
    jobs: list[Progress]


_decode_change = msgspec.json.Decoder(_Change).decode
_decode_progress = msgspec.json.Decoder(_Progress).decode


class RemoteStream(EventStream):
    """The daemon's events. Progress comes as what has changed, and is told as a whole JobInfo."""

    def __init__(self, exchange: Exchange, since: int | None, job: int | None, all_users: bool) -> None:
        """Raises UsageError."""
        super().__init__()
        exchange.check_open()
        self._exchange = exchange
        self._after, self._job, self._all_users = since, job, all_users
        calls.events(since, job, all_users)
        self._known: dict[int, JobInfo] = {}
        self._reply: Reply | None = None
        self._started = threading.Event()
        self._room = threading.Condition()
        self._is_full = False
        self._thread = threading.Thread(target=lambda: run(self._run()), name="jobvisor-events", daemon=True)
        self._thread.start()

    def await_start(self) -> None:
        """Return when the stream has its place, so that nothing after this is missed. Raises what prevents that."""
        self._started.wait()
        if self._error is not None and not self._pending:
            raise self._error

    def close(self) -> None:
        super().close()
        reply = self._reply
        if reply is not None:
            reply.interrupt()
        with self._room:
            self._room.notify_all()

    def poll(self) -> Event | None:
        event = super().poll()
        if self._is_full and len(self._pending) < BEHIND_MAX:
            with self._room:
                self._room.notify_all()
        return event

    async def _run(self) -> None:
        try:
            await self._read_on()
        except JobvisorError as error:
            if not self._closed and not self._exchange.closed:
                self._error = error
        finally:
            self._closed = True
            self._started.set()
            self._wake()

    async def _read_on(self) -> None:
        outage = Outage(self._exchange.transport)
        while not self._closed:
            try:
                await self._read(outage)
            except Lost as error:
                if self._closed or self._exchange.closed:
                    return
                await outage.lost(error)
            except Absent as error:
                if not outage.begun:
                    raise error.why from None
                await outage.absent(error.why)

    async def _read(self, outage: Outage) -> None:
        """One connection's worth. Raises Lost, Absent, JobvisorError."""
        reply = await self._exchange.open(calls.events(self._after, self._job, self._all_users))
        self._reply = reply
        reader = sse.Reader()
        try:
            while not self._closed:
                piece = await reply.read()
                if not piece:
                    raise Lost("the daemon ended the stream")
                outage.alive()
                for message in reader.feed(piece):
                    await self._take(message)
                if self._after is not None:
                    self._started.set()
                self._await_room()
        except (NotUnderstood, ValueError) as error:  # a DecodeError is a ValueError
            raise Unreachable(f"what the daemon on {self._exchange.name} tells is not understood: {error}")
        finally:
            self._reply = None
            self._exchange.close(reply)

    async def _take(self, message: sse.Message) -> None:
        match message.event:
            case "start":  # less than was asked for when a journal was lost, and numbers begin anew
                self._after = message.number
            case "state":
                self._take_state(message)
            case "progress":
                await self._take_progress(_decode_progress(message.data))
            case "bye":
                raise Lost("the daemon leaves")
        self._wake()

    def _take_state(self, message: sse.Message) -> None:
        if message.number is None or (self._after is not None and message.number <= self._after):
            return
        change = _decode_change(message.data)
        job = change.job
        if job.state in FINAL:
            self._known.pop(job.id, None)
        else:
            self._known[job.id] = job
        self._after = message.number
        self._progress.pop(job.id, None)
        self._pending.append(Event("state", message.number, change.time, job))

    async def _take_progress(self, progress: _Progress) -> None:
        if any(moved.id not in self._known for moved in progress.jobs):
            await self._get_to_know(progress.jobs)
        for moved in progress.jobs:
            info = self._known.get(moved.id)
            if info is not None:
                info = msgspec.structs.replace(info, **msgspec.structs.asdict(moved))
                self._known[moved.id] = info
                self._progress[moved.id] = Event("progress", None, progress.time, info)

    async def _get_to_know(self, moved: list[Progress]) -> None:
        """Jobs that changed no state since the stream began. One that has ended by now is told of by its event."""
        query: dict[str, Any] = {"type": None, "resource": None, "limit": None, "since": None}
        if self._job is not None:
            try:
                infos = [await self._exchange.perform(calls.info(self._job))]
            except NoSuchJob:
                infos = []
        else:
            live = set(State) - FINAL
            infos = await self._exchange.perform(calls.jobs(state=live, all_users=self._all_users, **query))
        wanted = {each.id for each in moved}
        for info in infos:
            if info.id in wanted and not info.final:
                self._known.setdefault(info.id, info)

    def _await_room(self) -> None:
        with self._room:
            while len(self._pending) >= BEHIND_MAX and not self._closed:
                self._is_full = True
                self._room.wait()
            self._is_full = False
