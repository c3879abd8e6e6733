"""The public interface for asyncio: coroutines in place of methods that block."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from jobvisor import face
from jobvisor.aio.documented import documented_by
from jobvisor.aio.job import Job
from jobvisor.aio.stream import EventStream
from jobvisor.asking import After, Options, after_of
from jobvisor.config import Setting
from jobvisor.hold import Hold
from jobvisor.info import JobInfo
from jobvisor.schedule import Mask
from jobvisor.states import Goal, State
from jobvisor_workers.jobtype import JobType

if TYPE_CHECKING:
    from jobvisor.source import Asked, Source

T = TypeVar("T")


@documented_by(face.Face)
class Face(ABC):
    """What Supervisor and Client have in common."""

    @abstractmethod
    async def open(self) -> Self:
        """Must be awaited before anything else, unless `async with` does."""

    @property
    @abstractmethod
    def home(self) -> str: ...

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
        connect: str | None = None,
        after: After = None,
        priority: int = 0,
        queue_limit: float | None = None,
        **args: Any,
    ) -> Job:
        options = Options(
            on_conflict=on_conflict,
            bandwidth=bandwidth,
            time_limit=time_limit,
            dry_run=dry_run,
            nice=nice,
            ionice=ionice,
            connect=connect,
            after=after_of(after),
            priority=priority,
            queue_limit=queue_limit,
        )
        return Job(self, await self._start(job, options, args))

    async def job(self, id: int) -> Job:
        return Job(self, await self._answer(self._source.info(id)))

    async def jobs(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        type: str | None = None,
        resource: str | None = None,
        limit: int | None = None,
        since: datetime | None = None,
        all_users: bool = False,
    ) -> list[JobInfo]:
        return await self._answer(
            self._source.jobs(
                state=state,
                type=type,
                resource=resource,
                limit=limit,
                all_users=all_users,
                since=since.timestamp() if since else None,
            )
        )

    async def current(self) -> Job | None:
        known = await self._answer(self._source.current())
        return None if known is None else await self.job(known)

    async def set_current(self, job: Job | int) -> None:
        await self._answer(self._source.set_current(job.id if isinstance(job, Job) else job))

    async def pids(self) -> dict[int, int]:
        return await self._answer(self._source.pids())

    async def mask(self, resource: str, *, connect: str | None = None) -> Mask:
        # On a thread: it looks at files, which may be on a server that does not answer.
        return await self._answer(await asyncio.to_thread(self._source.mask, resource, connect))

    async def hold(self, reason: str, *, type: str | None = None, all_users: bool = False) -> Hold:
        # On a thread: it looks for the job type, whose module may have to be loaded.
        asked = await asyncio.to_thread(self._source.hold, reason, type=type, all_users=all_users)
        return await self._answer(asked)

    async def release(self, *, type: str | None = None, all_users: bool = False) -> None:
        await self._answer(self._source.release(type=type, all_users=all_users))

    async def holds(self) -> list[Hold]:
        return await self._answer(self._source.holds())

    async def config(self) -> list[Setting]:
        return await self._answer(self._source.config())

    async def reload(self) -> list[Setting]:
        # On a thread: it reads files.
        return await self._answer(await asyncio.to_thread(self._source.reload))

    @abstractmethod
    def events(self, *, since: int | None = None, job: int | None = None, all_users: bool = False) -> EventStream: ...

    @abstractmethod
    async def forget(self, *, before: datetime | None = None) -> int: ...

    @abstractmethod
    async def close(self, *, abort: bool = False) -> None: ...

    @property
    @abstractmethod
    def closed(self) -> bool: ...

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    @abstractmethod
    def _source(self) -> Source: ...

    @abstractmethod
    async def _answer(self, asked: Asked[T]) -> T: ...

    @abstractmethod
    async def _start(self, job: JobType | str, options: Options, args: dict[str, Any]) -> JobInfo: ...

    @abstractmethod
    async def _wait(self, id: int, timeout: float | None, until: Goal | None) -> JobInfo | None:
        """None when the time was over."""

    @abstractmethod
    async def _log(self, id: int, offset: int) -> bytes: ...

    @abstractmethod
    async def _send(self, id: int, file: IO[bytes]) -> int: ...

    @abstractmethod
    async def _receive(self, id: int, file: IO[bytes]) -> int: ...
