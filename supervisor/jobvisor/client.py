"""The client for threads: the interface of the Supervisor, answered by a daemon."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any, TypeVar

from jobvisor.errors import NoSuchJob, WrongState
from jobvisor.face import Face
from jobvisor.remote import calls
from jobvisor.remote.address import Address
from jobvisor.remote.blocking import BlockingTransport, run
from jobvisor.remote.calls import Call
from jobvisor.remote.exchange import Exchange
from jobvisor.states import FINAL, State, Verb

if TYPE_CHECKING:
    from datetime import datetime

    from jobvisor.asking import Options
    from jobvisor.info import DaemonInfo, JobInfo
    from jobvisor.source import Asked, Source
    from jobvisor.states import Goal
    from jobvisor.stream import EventStream
    from jobvisor_workers.jobtype import JobType

T = TypeVar("T")


class Client(Face):
    """Asks a daemon. Any thread may use it, and a fork too; a daemon that is restarted is asked again.

    with Client() as client:
        client.start("clone", source="a.raw", target="b.raw").wait(check=True)
    """

    def __init__(
        self, socket: str | os.PathLike[str] | None = None, *, home: str | os.PathLike[str] | None = None
    ) -> None:
        """The daemon on a socket, or that of a home, started in the background when none runs.

        With neither: JOBVISOR_SOCKET, else the home that Supervisor would take (root's is the system daemon's).
        Nothing is asked yet. Every method may raise Unreachable and NotPermitted.
        """
        self._address = Address(socket, home)
        self._exchange = Exchange(BlockingTransport(self._address), self._address.path)

    @property
    def home(self) -> str:
        return self.daemon().home

    @property
    def socket(self) -> str:
        """The path of the daemon's socket."""
        return self._address.path

    @property
    def version(self) -> str:
        """That of the daemon that answered last; empty before the first answer."""
        return self._exchange.version

    def daemon(self) -> DaemonInfo:
        """Who answers."""
        return self._answer(calls.daemon())

    def types(self) -> list[dict[str, Any]]:
        """The job types that the daemon knows, with their arguments."""
        return self._answer(calls.types())

    def events(self, *, since: int | None = None, job: int | None = None, all_users: bool = False) -> EventStream:
        from jobvisor.remote.stream import RemoteStream

        stream = RemoteStream(self._exchange, since, job, all_users)
        stream.await_start()
        return stream

    def forget(self, *, before: datetime | None = None) -> int:
        return self._answer(calls.forget_ended(before.timestamp() if before else None))

    def close(self, *, abort: bool = False) -> None:
        if self.closed:
            return
        if abort:
            live = self.jobs(state=set(State) - FINAL)
            for info in live:
                try:
                    self._verb(Verb.ABORT, info.id, wait=False)
                except (NoSuchJob, WrongState):  # it ended by itself meanwhile
                    pass
            for info in live:
                self._wait(info.id, None, None)
        self._exchange.close_all()

    @property
    def closed(self) -> bool:
        return self._exchange.closed

    @property
    def _source(self) -> Source:
        return calls

    def _answer(self, asked: Asked[T]) -> T:
        assert isinstance(asked, Call)
        return run(self._exchange.perform(asked))

    def _start(self, job: JobType | str, options: Options, args: dict[str, Any]) -> JobInfo:
        return run(self._exchange.start(job, options, args))

    def _wait(self, id: int, timeout: float | None, until: Goal | None) -> JobInfo | None:
        return run(self._exchange.wait(id, timeout, until))

    def _log(self, id: int, offset: int) -> bytes:
        return self._answer(calls.log(id, offset))

    def _send(self, id: int, file: IO[bytes]) -> int:
        return run(self._exchange.send(id, file))

    def _receive(self, id: int, file: IO[bytes]) -> int:
        return run(self._exchange.receive(id, file))
