"""jobvisor for asyncio: the names of `jobvisor`, with coroutines in place of methods that block.

    async with aio.Supervisor(home) as supervisor:
        job = await supervisor.start(Clone("a.raw", "b.raw"))
        info = await job.wait(check=True)

Nothing runs on the loop but the await itself; several loops in several threads may use one supervisor. A coroutine that
is cancelled stops waiting and leaves the job as it is, except `start`, which may have been heard already.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from jobvisor import events, job, supervisor
from jobvisor.core import Core
from jobvisor.errors import (
    Busy,
    HomeInUse,
    HomeUnusable,
    JobAborted,
    JobFailed,
    JobvisorError,
    JournalError,
    NoSuchJob,
    NotPermitted,
    Unreachable,
    UsageError,
    WaitTimeout,
    WrongState,
)
from jobvisor.events import Event
from jobvisor.info import EndedBy, JobInfo, Parameter
from jobvisor.request import Options
from jobvisor.schedule import Mask
from jobvisor.states import Cause, State, Verb, goal
from jobvisor_workers.jobtype import JobType

__all__ = [
    "Busy",
    "Cause",
    "EndedBy",
    "Event",
    "EventStream",
    "HomeInUse",
    "HomeUnusable",
    "Job",
    "JobAborted",
    "JobFailed",
    "JobInfo",
    "JobvisorError",
    "JournalError",
    "Mask",
    "NoSuchJob",
    "NotPermitted",
    "Parameter",
    "State",
    "Supervisor",
    "Unreachable",
    "UsageError",
    "Verb",
    "WaitTimeout",
    "WrongState",
]

T = TypeVar("T")
C = TypeVar("C", bound=type)


def _documented_by(blocking: type) -> Callable[[C], C]:
    """Take the docstrings of the class for threads, so that they are written once."""

    def document(face: C) -> C:
        for name, value in vars(face).items():
            if callable(value) and not name.startswith("_") and not value.__doc__:
                value.__doc__ = getattr(blocking, name).__doc__
        return face

    return document


async def _answer(future: Future[T]) -> T:
    return await asyncio.wrap_future(future)


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


@_documented_by(job.Job)
class Job(job.Handle):
    """Made by Supervisor.start and Supervisor.job; equal to any other handle of the same id.

    Its repr shows the state that was seen last.
    """

    def __init__(self, core: Core, info: JobInfo) -> None:
        super().__init__(core, info.id)
        self._core, self._seen = core, info

    async def info(self) -> JobInfo:
        return await self._see(self._core.info(self.id))

    async def wait(
        self, timeout: float | None = None, *, until: State | str | None = None, check: bool = False
    ) -> JobInfo:
        future, waiter = self._core.wait(self.id, None if until is None else goal(until))
        try:
            info = await asyncio.wait_for(self._see(future), timeout)
        except BaseException as error:
            self._core.unwait(self.id, waiter)
            if isinstance(error, TimeoutError) and not isinstance(error, JobvisorError):
                raise WaitTimeout(self.id, timeout or 0.0)
            raise
        return job.checked(info) if check else info

    async def suspend(self, *, wait: bool = True) -> JobInfo:
        return await self._see(self._core.verb(Verb.SUSPEND, self.id, wait=wait))

    async def resume(self, *, wait: bool = True) -> JobInfo:
        return await self._see(self._core.verb(Verb.RESUME, self.id, wait=wait))

    async def abort(self, *, wait: bool = True, force: bool = False) -> JobInfo:
        return await self._see(self._core.verb(Verb.ABORT, self.id, wait=wait, force=force))

    async def complete(self, *, wait: bool = True) -> JobInfo:
        return await self._see(self._core.verb(Verb.COMPLETE, self.id, wait=wait))

    async def retry(self) -> Job:
        return Job(self._core, await _answer(self._core.retry(self.id)))

    async def forget(self) -> None:
        await _answer(self._core.forget(self.id))

    async def _see(self, future: Future[JobInfo]) -> JobInfo:
        self._seen = await _answer(future)
        return self._seen

    def __repr__(self) -> str:
        return job.describe(self._seen)


class EventStream:
    """Iterate with `async for` to get events as they come; use with `async with`; `close()` ends the iteration.

    To be used on one loop, that on which it is first awaited.
    """

    def __init__(self, stream: events.EventStream) -> None:
        self._stream = stream
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._told = False

    def close(self) -> None:
        """End the iteration after what is already there. From any thread."""
        self._stream.close()

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
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@_documented_by(supervisor.Supervisor)
class Supervisor:
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
        """The directory of journal and jobs."""
        return str(self._core.home.path)

    async def start(
        self,
        job: JobType | str,
        /,
        *,
        on_conflict: str = "queue",
        bandwidth: int | None = None,
        time_limit: float | None = None,
        dry_run: bool = False,
        nice: int | None = None,
        ionice: str | None = None,
        **args: Any,
    ) -> Job:
        options = Options(
            on_conflict=on_conflict,
            bandwidth=bandwidth,
            time_limit=time_limit,
            dry_run=dry_run,
            nice=nice,
            ionice=ionice,
        )
        core = self._core
        # The request is built on a thread: it looks at files, which may be on a server that does not answer.
        return Job(core, await _answer(await asyncio.to_thread(core.start, job, options, args)))

    async def job(self, id: int) -> Job:
        return Job(self._core, await _answer(self._core.info(id)))

    async def jobs(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        type: str | None = None,
        resource: str | None = None,
        limit: int | None = None,
    ) -> list[JobInfo]:
        return await _answer(self._core.jobs(state=state, type=type, resource=resource, limit=limit))

    async def current(self) -> Job | None:
        known = await _answer(self._core.current())
        return None if known is None else await self.job(known)

    async def set_current(self, job: Job | int) -> None:
        await _answer(self._core.set_current(job.id if isinstance(job, Job) else job))

    async def pids(self) -> dict[int, int]:
        return await _answer(self._core.pids())

    async def mask(self, resource: str) -> Mask:
        return await _answer(await asyncio.to_thread(self._core.mask, resource))

    def events(self, *, since: int | None = None, job: int | None = None) -> EventStream:
        return EventStream(self._core.events(since, job))

    async def forget(self, *, before: datetime | None = None) -> int:
        jobs = await _answer(self._core.ended_before(before))
        for each in jobs:
            await _answer(self._core.forget(each))
        return len(jobs)

    async def close(self, *, abort: bool = False) -> None:
        if self._opened is None:
            return
        core = self._opened
        _, interrupted = await _to_the_end(lambda: core.close(abort=abort))
        if interrupted:
            raise interrupted

    @property
    def closed(self) -> bool:
        """True before `open` and after `close`; what asks the supervisor then raises Unreachable."""
        return self._opened is None or self._opened.closed

    @property
    def _core(self) -> Core:
        if self._opened is None:
            raise Unreachable("this supervisor was not opened: use it with `async with`, or await open()")
        return self._opened

    async def __aenter__(self) -> Supervisor:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
