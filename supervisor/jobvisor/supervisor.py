"""The supervisor's face for threads: methods that block until they have their answer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import datetime
from types import TracebackType
from typing import Any

from jobvisor.core import Core
from jobvisor.events import EventStream
from jobvisor.info import JobInfo
from jobvisor.job import Job
from jobvisor.request import Options
from jobvisor.schedule import Mask
from jobvisor.states import Goal, State, Verb
from jobvisor_workers.jobtype import JobType


class Supervisor:
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
        """The directory of journal and jobs."""
        return str(self._core.home.path)

    def start(
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
        """Accept a job and return its handle once it is durable. bandwidth: bytes/s; time_limit: seconds.

        Raises UsageError, Busy (with on_conflict="fail"), JournalError. What is wrong with files is the job's failure.
        """
        options = Options(
            on_conflict=on_conflict,
            bandwidth=bandwidth,
            time_limit=time_limit,
            dry_run=dry_run,
            nice=nice,
            ionice=ionice,
        )
        return Job(self, self._core.start(job, options, args).result().id)

    def job(self, id: int) -> Job:
        """A handle. Raises NoSuchJob."""
        return Job(self, self._core.info(id).result().id)

    def jobs(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        type: str | None = None,
        resource: str | None = None,
        limit: int | None = None,
    ) -> list[JobInfo]:
        """Newest first, from one moment."""
        return self._core.jobs(state=state, type=type, resource=resource, limit=limit).result()

    def current(self) -> Job | None:
        """The job started last, or the one that was set since."""
        known = self._core.current().result()
        return None if known is None else Job(self, known)

    def set_current(self, job: Job | int) -> None:
        """Raises NoSuchJob."""
        self._core.set_current(job.id if isinstance(job, Job) else job).result()

    def pids(self) -> dict[int, int]:
        """The pid pool: job id → worker pid."""
        return self._core.pids().result()

    def mask(self, resource: str) -> Mask:
        """Which job types may start on a resource now, who has it, who waits."""
        return self._core.mask(resource).result()

    def events(self, *, since: int | None = None, job: int | None = None) -> EventStream:
        """Changes of state and progress from now on, or from behind the numbered event `since`."""
        return self._core.events(since, job)

    def forget(self, *, before: datetime | None = None) -> int:
        """Remove all ended jobs, or those that ended before a moment; returns how many."""
        jobs = self._core.ended_before(before).result()
        for job in jobs:
            self._core.forget(job).result()
        return len(jobs)

    def close(self, *, abort: bool = False) -> None:
        """Stop supervising. Jobs run on and a later Supervisor adopts them, unless they are to be aborted."""
        self._core.close(abort=abort)

    @property
    def closed(self) -> bool:
        """True after `close`; every other method then raises Unreachable."""
        return self._core.closed

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- for Job ---------------------------------------------------------------------------------------------

    def _info(self, id: int) -> JobInfo:
        return self._core.info(id).result()

    def _wait(self, id: int, timeout: float | None, until: Goal | None) -> JobInfo | None:
        """None when the time was over."""
        future, waiter = self._core.wait(id, until)
        try:
            return future.result(timeout)
        except FutureTimeout:
            self._core.unwait(id, waiter)
            return None

    def _verb(self, verb: Verb, id: int, *, wait: bool, force: bool = False) -> JobInfo:
        return self._core.verb(verb, id, wait=wait, force=force).result()

    def _retry(self, id: int) -> Job:
        return Job(self, self._core.retry(id).result().id)

    def _forget(self, id: int) -> None:
        self._core.forget(id).result()
