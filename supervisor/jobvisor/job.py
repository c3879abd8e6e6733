"""A handle to one job."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from jobvisor.asking import checked_offset, goal_of
from jobvisor.errors import JobAborted, JobFailed, JobvisorError, WaitTimeout
from jobvisor.info import JobInfo
from jobvisor.states import State, Verb

if TYPE_CHECKING:
    from jobvisor.face import Face


class Handle:
    """What the handles for threads and for asyncio have in common."""

    def __init__(self, owner: object, id: int) -> None:
        self._owner, self.id = owner, id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and (other._owner, other.id) == (self._owner, self.id)

    def __hash__(self) -> int:
        return hash(self.id)


class Job(Handle):
    """Made by `start` and `job` of Supervisor and Client; equal to any other handle of the same id."""

    def __init__(self, face: Face, id: int) -> None:
        super().__init__(face, id)
        self._face = face

    def info(self) -> JobInfo:
        """All that is known now. Raises NoSuchJob when it was forgotten."""
        return self._face._answer(self._face._source.info(self.id))

    def wait(self, timeout: float | None = None, *, until: State | str | None = None, check: bool = False) -> JobInfo:
        """Wait for the end, for a state, or until the job is "checked": past its own checks; `timeout` in seconds.

        Raises WaitTimeout; with `check` also JobFailed and JobAborted.
        """
        info = self._face._wait(self.id, timeout, goal_of(until))
        if info is None:
            raise WaitTimeout(self.id, timeout or 0.0)
        return checked(info) if check else info

    def suspend(self, *, wait: bool = True) -> JobInfo:
        """Stop every process of the job; returns when each thread was seen stopped. Raises WrongState."""
        return self._face._verb(Verb.SUSPEND, self.id, wait=wait)

    def resume(self, *, wait: bool = True) -> JobInfo:
        """Let a suspended job go on. Raises WrongState."""
        return self._face._verb(Verb.RESUME, self.id, wait=wait)

    def abort(self, *, wait: bool = True, force: bool = False) -> JobInfo:
        """End the job; returns when its last process is gone. `force`: SIGKILL now. Raises WrongState."""
        return self._face._verb(Verb.ABORT, self.id, wait=wait, force=force)

    def complete(self, *, wait: bool = True) -> JobInfo:
        """Tell a two-phase job that is ready to finish. Raises WrongState."""
        return self._face._verb(Verb.COMPLETE, self.id, wait=wait)

    def retry(self) -> Job:
        """A new job like this failed or aborted one. Raises WrongState, UsageError."""
        return Job(self._face, self._face._answer(self._face._source.retry(self.id)).id)

    def forget(self) -> None:
        """Remove all that is known of an ended job. Raises WrongState."""
        self._face._answer(self._face._source.forget(self.id))

    def log(self, offset: int = 0) -> bytes:
        """What the worker and its children wrote so far, from there on. Raises NoSuchJob, UsageError."""
        return self._face._log(self.id, checked_offset(offset))

    def send(self, file: IO[bytes]) -> int:
        """Give the job the rest of a binary file as its standard input, to the file's end; returns how many bytes went.

        Fewer when the job ended before, and says why. Raises UsageError when its type reads nothing, or somebody else
        sends; WrongState when it is over.
        """
        return self._face._send(self.id, file)

    def receive(self, file: IO[bytes]) -> int:
        """Write the job's standard output to a binary file, to its end; returns how many bytes came.

        Whether that was all, the job's final state tells. Raises UsageError when its type writes nothing, or somebody
        else receives; WrongState when it is over.
        """
        return self._face._receive(self.id, file)

    def __repr__(self) -> str:
        try:
            return describe(self.info())
        except JobvisorError:  # forgotten, or the supervisor was closed
            return f"<Job {self.id}>"


def checked(info: JobInfo) -> JobInfo:
    """Raises JobFailed, JobAborted."""
    if info.state is State.FAILED:
        raise JobFailed(info)
    if info.state is State.ABORTED:
        raise JobAborted(info)
    return info


def describe(info: JobInfo) -> str:
    """<Job 7 clone running>."""
    return f"<Job {info.id} {info.type} {info.state}>"
