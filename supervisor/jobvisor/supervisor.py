"""The supervisor for threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from jobvisor import piping
from jobvisor.asking import Options
from jobvisor.core import Core
from jobvisor.face import Face
from jobvisor.info import JobInfo
from jobvisor.states import Goal
from jobvisor.stream import EventStream
from jobvisor_workers.jobtype import JobType

if TYPE_CHECKING:
    from jobvisor.source import Asked

T = TypeVar("T")


class Supervisor(Face):
    """Runs jobs, one worker process each. Any thread may use it; it takes none of the program's signals or children.

    with Supervisor(home) as supervisor:
        supervisor.start(Clone("a.raw", "b.raw")).wait(check=True)
    """

    def __init__(
        self, home: str | os.PathLike[str] | None = None, *, types: Sequence[str] = (), grace: float = 10.0
    ) -> None:
        """`types`: modules (or .py files) with job types besides entry points; `grace`: seconds from TERM to KILL.

        Raises HomeInUse, HomeUnusable, JournalError.
        """
        self._core = Core(home, types, grace)

    @property
    def home(self) -> str:
        return str(self._core.home.path)

    def events(self, *, since: int | None = None, job: int | None = None, all_users: bool = False) -> EventStream:
        return self._core.events(since, job, all_users=all_users)

    def forget(self, *, before: datetime | None = None) -> int:
        jobs = self._core.ended_before(before).result()
        for job in jobs:
            self._core.forget(job).result()
        return len(jobs)

    def serve(
        self, socket: str | os.PathLike[str] | None = None, *, group: str | None = None
    ) -> AbstractContextManager[Path]:
        """Open the API at a socket, by default where `jobvisor --home DIR` looks for it, as long as the block lasts.

        `group`: its members may connect besides the own user and root. Raises HomeUnusable, UsageError.
        """
        from jobvisor.api.server import Serving

        return Serving(self._core, socket, group=group)

    def close(self, *, abort: bool = False) -> None:
        self._core.close(abort=abort)

    @property
    def closed(self) -> bool:
        return self._core.closed

    @property
    def _source(self) -> Core:
        return self._core

    def _answer(self, asked: Asked[T]) -> T:
        assert isinstance(asked, Future)
        return asked.result()

    def _start(self, job: JobType | str, options: Options, args: dict[str, Any]) -> JobInfo:
        return self._core.start(job, options, args).result()

    def _wait(self, id: int, timeout: float | None, until: Goal | None) -> JobInfo | None:
        future, waiter = self._core.wait(id, until)
        try:
            return future.result(timeout)
        except FutureTimeout:
            self._core.unwait(id, waiter)
            return None

    def _log(self, id: int, offset: int) -> bytes:
        return read_log(self._core.info(id).result().log, offset)

    def _send(self, id: int, file: IO[bytes]) -> int:
        return piping.send(self._core, id, file, threading.Event())

    def _receive(self, id: int, file: IO[bytes]) -> int:
        return piping.receive(self._core, id, file, threading.Event())


def read_log(path: str, offset: int) -> bytes:
    """What a worker wrote from there on; nothing when there was none."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""
