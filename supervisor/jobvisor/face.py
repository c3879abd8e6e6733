"""The public interface for threads: methods that block until they have their answer, wherever that comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from jobvisor.asking import After, Options, after_of
from jobvisor.job import Job

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from jobvisor.config import Setting
    from jobvisor.hold import Hold
    from jobvisor.info import JobInfo
    from jobvisor.schedule import Mask
    from jobvisor.source import Asked, Source
    from jobvisor.states import Goal, State, Verb
    from jobvisor.stream import EventStream
    from jobvisor_workers.jobtype import JobType

T = TypeVar("T")


class Face(ABC):
    """What Supervisor and Client have in common."""

    @property
    @abstractmethod
    def home(self) -> str:
        """The directory of journal and jobs."""

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
        connect: str | None = None,
        after: After = None,
        priority: int = 0,
        queue_limit: float | None = None,
        **args: Any,
    ) -> Job:
        """Accept a job and return its handle once it is durable. bandwidth: bytes/s; time_limit: seconds.

        `connect`: where the names vol:// and pool:// are looked up; by default as virsh does. `after`: a job, or its
        id, or several, that are to complete before this one starts; "any:7" is to end, "failed:7" not to complete.
        `priority`: -100 to 100, the higher one goes first. `queue_limit`: seconds that it waits for its turn at most.

        Raises UsageError, Busy (with on_conflict="fail"), NoSuchJob (of `after`), NotPermitted (a priority above 0 is
        root's to give), JournalError. What is wrong with files is the job's failure.
        """
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
        return Job(self, self._start(job, options, args).id)

    def job(self, id: int) -> Job:
        """A handle. Raises NoSuchJob."""
        return Job(self, self._answer(self._source.info(id)).id)

    def jobs(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        type: str | None = None,
        resource: str | None = None,
        limit: int | None = None,
        since: datetime | None = None,
        all_users: bool = False,
    ) -> list[JobInfo]:
        """Newest first, from one moment. `since`: those that were live then or later; `all_users`: not only your own.

        Raises UsageError, NotPermitted.
        """
        return self._answer(
            self._source.jobs(
                state=state,
                type=type,
                resource=resource,
                limit=limit,
                all_users=all_users,
                since=since.timestamp() if since else None,
            )
        )

    def current(self) -> Job | None:
        """The job started last, or the one that was set since."""
        known = self._answer(self._source.current())
        return None if known is None else Job(self, known)

    def set_current(self, job: Job | int) -> None:
        """Raises NoSuchJob."""
        self._answer(self._source.set_current(job.id if isinstance(job, Job) else job))

    def pids(self) -> dict[int, int]:
        """The pid pool: job id → worker pid."""
        return self._answer(self._source.pids())

    def mask(self, resource: str, *, connect: str | None = None) -> Mask:
        """Which job types may start on a resource now, who has it, who waits. `connect`: as in start."""
        return self._answer(self._source.mask(resource, connect))

    def hold(self, reason: str, *, type: str | None = None, all_users: bool = False) -> Hold:
        """From now on none of your jobs starts, or none of that type, or of everybody's, until it is released.

        What has a worker goes on. Who waits is told the reason. Raises WrongHold, UsageError, NotPermitted.
        """
        return self._answer(self._source.hold(reason, type=type, all_users=all_users))

    def release(self, *, type: str | None = None, all_users: bool = False) -> None:
        """Undo the hold that was made with the same words. Raises WrongHold, NotPermitted."""
        self._answer(self._source.release(type=type, all_users=all_users))

    def holds(self) -> list[Hold]:
        """What keeps your jobs from starting, the oldest first; root is told of everybody's."""
        return self._answer(self._source.holds())

    def config(self) -> list[Setting]:
        """The configuration that is in effect, each value with its source."""
        return self._answer(self._source.config())

    def reload(self) -> list[Setting]:
        """Read the configuration again, and tell what is in effect now. Raises ConfigError; the old one stays then."""
        return self._answer(self._source.reload())

    @abstractmethod
    def events(self, *, since: int | None = None, job: int | None = None, all_users: bool = False) -> EventStream:
        """Changes of state and progress from now on, or from behind the numbered event `since`.

        Raises NotPermitted: `all_users` is for root.
        """

    @abstractmethod
    def forget(self, *, before: datetime | None = None) -> int:
        """Remove all ended jobs, or those that ended before a moment; returns how many."""

    @abstractmethod
    def close(self, *, abort: bool = False) -> None:
        """The end of its use. Jobs run on, and can be had again by another one, unless they are to be aborted."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """True after `close`; every other method then raises Unreachable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    @abstractmethod
    def _source(self) -> Source: ...

    @abstractmethod
    def _answer(self, asked: Asked[T]) -> T: ...

    @abstractmethod
    def _start(self, job: JobType | str, options: Options, args: dict[str, Any]) -> JobInfo: ...

    @abstractmethod
    def _wait(self, id: int, timeout: float | None, until: Goal | None) -> JobInfo | None:
        """None when the time was over."""

    @abstractmethod
    def _log(self, id: int, offset: int) -> bytes: ...

    @abstractmethod
    def _send(self, id: int, file: IO[bytes]) -> int: ...

    @abstractmethod
    def _receive(self, id: int, file: IO[bytes]) -> int: ...

    def _verb(self, verb: Verb, id: int, *, wait: bool, force: bool = False) -> JobInfo:
        return self._answer(self._source.verb(verb, id, wait=wait, force=force))
