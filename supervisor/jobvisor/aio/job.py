"""A handle to one job, for asyncio."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from jobvisor import job
from jobvisor.aio.documented import documented_by
from jobvisor.asking import checked_offset, goal_of
from jobvisor.errors import WaitTimeout
from jobvisor.info import JobInfo
from jobvisor.states import State, Verb

if TYPE_CHECKING:
    from jobvisor.aio.face import Face


@documented_by(job.Job)
class Job(job.Handle):
    """Made by `start` and `job` of Supervisor and Client; equal to any other handle of the same id.

    Its repr shows the state that was seen last.
    """

    def __init__(self, face: Face, info: JobInfo) -> None:
        super().__init__(face, info.id)
        self._face, self._seen = face, info

    async def info(self) -> JobInfo:
        self._seen = await self._face._answer(self._face._source.info(self.id))
        return self._seen

    async def wait(
        self, timeout: float | None = None, *, until: State | str | None = None, check: bool = False
    ) -> JobInfo:
        info = await self._face._wait(self.id, timeout, goal_of(until))
        if info is None:
            raise WaitTimeout(self.id, timeout or 0.0)
        self._seen = info
        return job.checked(info) if check else info

    async def suspend(self, *, wait: bool = True) -> JobInfo:
        return await self._verb(Verb.SUSPEND, wait)

    async def resume(self, *, wait: bool = True) -> JobInfo:
        return await self._verb(Verb.RESUME, wait)

    async def abort(self, *, wait: bool = True, force: bool = False) -> JobInfo:
        return await self._verb(Verb.ABORT, wait, force)

    async def complete(self, *, wait: bool = True) -> JobInfo:
        return await self._verb(Verb.COMPLETE, wait)

    async def retry(self) -> Job:
        return Job(self._face, await self._face._answer(self._face._source.retry(self.id)))

    async def forget(self) -> None:
        await self._face._answer(self._face._source.forget(self.id))

    async def log(self, offset: int = 0) -> bytes:
        return await self._face._log(self.id, checked_offset(offset))

    async def send(self, file: IO[bytes]) -> int:
        return await self._face._send(self.id, file)

    async def receive(self, file: IO[bytes]) -> int:
        return await self._face._receive(self.id, file)

    async def _verb(self, verb: Verb, wait: bool, force: bool = False) -> JobInfo:
        self._seen = await self._face._answer(self._face._source.verb(verb, self.id, wait=wait, force=force))
        return self._seen

    def __repr__(self) -> str:
        return job.describe(self._seen)
