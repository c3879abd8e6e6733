"""The supervisor for asyncio: nothing runs on the loop but the await of what the core's own threads resolve."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from jobvisor import piping, supervisor
from jobvisor.aio.documented import documented_by
from jobvisor.aio.face import Face
from jobvisor.aio.stream import EventStream
from jobvisor.asking import Options
from jobvisor.core import Core
from jobvisor.errors import JobvisorError, Unreachable
from jobvisor.info import JobInfo
from jobvisor.states import Goal
from jobvisor_workers.jobtype import JobType

if TYPE_CHECKING:
    from jobvisor.source import Asked

T = TypeVar("T")


@documented_by(supervisor.Supervisor)
class Supervisor(Face):
    """Runs jobs, one worker process each. It is opened by `async with`, or by `await Supervisor(home).open()`."""

    def __init__(
        self, home: str | os.PathLike[str] | None = None, *, types: Sequence[str] = (), grace: float = 10.0
    ) -> None:
        """`types`: modules (or .py files) with job types besides entry points; `grace`: seconds from TERM to KILL."""
        self._construct = lambda: Core(home, types, grace)
        self._opened: Core | None = None

    async def open(self) -> Supervisor:
        """Adopt or conclude the jobs of the supervisor before. Raises HomeInUse, HomeUnusable, JournalError."""
        core, interrupted = await _to_the_end(self._construct)
        if interrupted:
            await _to_the_end(core.close)
            raise interrupted
        self._opened = core
        return self

    @property
    def home(self) -> str:
        return str(self._core.home.path)

    def events(self, *, since: int | None = None, job: int | None = None, all_users: bool = False) -> EventStream:
        return EventStream(self._core.events(since, job, all_users=all_users))

    async def forget(self, *, before: datetime | None = None) -> int:
        jobs = await self._answer(self._core.ended_before(before))
        for each in jobs:
            await self._answer(self._core.forget(each))
        return len(jobs)

    @asynccontextmanager
    async def serve(
        self, socket: str | os.PathLike[str] | None = None, *, group: str | None = None
    ) -> AsyncIterator[Path]:
        from jobvisor.api.server import Serving

        serving = Serving(self._core, socket, group=group)
        _, interrupted = await _to_the_end(serving.start)
        try:
            if interrupted:
                raise interrupted
            yield serving.path
        finally:
            _, interrupted = await _to_the_end(serving.stop)
            if interrupted:
                raise interrupted

    async def close(self, *, abort: bool = False) -> None:
        if self._opened is None:
            return
        core = self._opened
        _, interrupted = await _to_the_end(lambda: core.close(abort=abort))
        if interrupted:
            raise interrupted

    @property
    def closed(self) -> bool:
        return self._opened is None or self._opened.closed

    @property
    def _core(self) -> Core:
        if self._opened is None:
            raise Unreachable("this supervisor was not opened: use it with `async with`, or await open()")
        return self._opened

    @property
    def _source(self) -> Core:
        return self._core

    async def _answer(self, asked: Asked[T]) -> T:
        assert isinstance(asked, Future)
        return await asyncio.wrap_future(asked)

    async def _start(self, job: JobType | str, options: Options, args: dict[str, Any]) -> JobInfo:
        # The request is built on a thread: it looks at files, which may be on a server that does not answer.
        return await self._answer(await asyncio.to_thread(self._core.start, job, options, args))

    async def _wait(self, id: int, timeout: float | None, until: Goal | None) -> JobInfo | None:
        core = self._core
        future, waiter = core.wait(id, until)
        try:
            return await asyncio.wait_for(self._answer(future), timeout)
        except BaseException as error:
            core.unwait(id, waiter)
            if isinstance(error, TimeoutError) and not isinstance(error, JobvisorError):
                return None
            raise

    async def _log(self, id: int, offset: int) -> bytes:
        info = await self._answer(self._core.info(id))
        return await asyncio.to_thread(supervisor.read_log, info.log, offset)

    async def _send(self, id: int, file: IO[bytes]) -> int:
        return await self._pipe(piping.send, id, file)

    async def _receive(self, id: int, file: IO[bytes]) -> int:
        return await self._pipe(piping.receive, id, file)

    async def _pipe(
        self, copy: Callable[[Core, int, IO[bytes], threading.Event], int], id: int, file: IO[bytes]
    ) -> int:
        """On a thread; one whose coroutine is cancelled breaks off."""
        leave = threading.Event()
        try:
            return await asyncio.to_thread(copy, self._core, id, file, leave)
        finally:
            leave.set()


async def _to_the_end(function: Callable[[], T]) -> tuple[T, asyncio.CancelledError | None]:
    """Run what blocks in a thread; a cancellation waits for its end and is returned, since half of it is no use."""
    running = asyncio.get_running_loop().run_in_executor(None, function)
    interrupted = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            interrupted = error
    return running.result(), interrupted
