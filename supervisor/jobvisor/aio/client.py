"""The client for asyncio: the same calls as the one for threads makes, on the loop's own sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, TypeVar

from jobvisor import client
from jobvisor.aio.documented import documented_by
from jobvisor.aio.face import Face
from jobvisor.aio.stream import EventStream
from jobvisor.asking import Options
from jobvisor.errors import JobvisorError, NoSuchJob, Unreachable, WrongState
from jobvisor.info import DaemonInfo, JobInfo
from jobvisor.remote import calls
from jobvisor.remote.address import Address
from jobvisor.remote.blocking import PIECE, BlockingTransport
from jobvisor.remote.calls import Call
from jobvisor.remote.exchange import Exchange
from jobvisor.remote.stream import RemoteStream
from jobvisor.states import FINAL, Goal, State, Verb
from jobvisor_workers.jobtype import JobType

if TYPE_CHECKING:
    from jobvisor.source import Asked, Source

T = TypeVar("T")


@documented_by(client.Client)
class Client(Face):
    """Asks a daemon; one that is restarted is asked again. Opened by `async with`, or by `await Client().open()`.

    Several loops may use one client.
    """

    def __init__(
        self, socket: str | os.PathLike[str] | None = None, *, home: str | os.PathLike[str] | None = None
    ) -> None:
        """The daemon on a socket, or that of a home, started in the background when none runs.

        With neither: JOBVISOR_SOCKET, else the home that Supervisor would take (root's is the system daemon's).
        """
        self._address = Address(socket, home)
        self._exchange = Exchange(_Transport(self._address), self._address.path)
        # Streams have a thread each: it reads on while the loop is busy, and theirs is the same code for both clients.
        self._streaming = Exchange(BlockingTransport(self._address), self._address.path)
        self._starting: list[EventStream] = []
        self._found: DaemonInfo | None = None

    async def open(self) -> Client:
        """Look who answers. Raises Unreachable, NotPermitted."""
        self._found = await self.daemon()
        return self

    @property
    def home(self) -> str:
        if self._found is None:
            raise Unreachable("this client was not opened: use it with `async with`, or await open()")
        return self._found.home

    @property
    def socket(self) -> str:
        return self._address.path

    @property
    def version(self) -> str:
        return self._exchange.version

    async def daemon(self) -> DaemonInfo:
        return await self._answer(calls.daemon())

    async def types(self) -> list[dict[str, Any]]:
        return await self._answer(calls.types())

    def events(self, *, since: int | None = None, job: int | None = None, all_users: bool = False) -> EventStream:
        """Like that of Supervisor. It begins here for what this client does, and with `async with` for all the rest."""
        remote = RemoteStream(self._streaming, since, job, all_users)
        stream = EventStream(remote, remote.await_start)
        self._starting.append(stream)
        return stream

    async def forget(self, *, before: datetime | None = None) -> int:
        return await self._answer(calls.forget_ended(before.timestamp() if before else None))

    async def close(self, *, abort: bool = False) -> None:
        if self.closed:
            return
        if abort:
            live = await self.jobs(state=set(State) - FINAL)
            for info in live:
                try:
                    await self._answer(calls.verb(Verb.ABORT, info.id, wait=False))
                except (NoSuchJob, WrongState):  # it ended by itself meanwhile
                    pass
            for info in live:
                await self._wait(info.id, None, None)
        self._exchange.close_all()
        self._streaming.close_all()

    @property
    def closed(self) -> bool:
        return self._exchange.closed

    @property
    def _source(self) -> Source:
        return calls

    async def _answer(self, asked: Asked[T]) -> T:
        assert isinstance(asked, Call)
        await self._begin_streams()
        return await self._exchange.perform(asked)

    async def _start(self, job: JobType | str, options: Options, args: dict[str, Any]) -> JobInfo:
        await self._begin_streams()
        return await self._exchange.start(job, options, args)

    async def _wait(self, id: int, timeout: float | None, until: Goal | None) -> JobInfo | None:
        return await self._exchange.wait(id, timeout, until)

    async def _log(self, id: int, offset: int) -> bytes:
        return await self._answer(calls.log(id, offset))

    async def _send(self, id: int, file: IO[bytes]) -> int:
        return await self._exchange.send(id, file)

    async def _receive(self, id: int, file: IO[bytes]) -> int:
        return await self._exchange.receive(id, file)

    async def _begin_streams(self) -> None:
        while self._starting:
            stream = self._starting[0]
            try:
                await stream.opened()
            except JobvisorError:  # it tells whoever reads it
                pass
            if stream in self._starting:
                self._starting.remove(stream)


class _Connection:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def receive(self, timeout: float | None) -> bytes:
        async with asyncio.timeout(timeout):
            return await asyncio.get_running_loop().sock_recv(self._socket, PIECE)

    def interrupt(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended already
            pass

    def close(self) -> None:
        self._socket.close()


class _Transport:
    def __init__(self, address: Address) -> None:
        self._address = address

    async def connect(self) -> _Connection:
        # On a thread: the daemon may be busy, or may have to be started.
        return _Connection(await asyncio.to_thread(self._address.connect))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def read(self, file: IO[bytes]) -> bytes:
        return await asyncio.to_thread(file.read, PIECE)

    async def write(self, file: IO[bytes], piece: bytes) -> None:
        await asyncio.to_thread(file.write, piece)
