"""The errors of the library, each with fields, an exit code of the command line, and a stable word.

JobvisorError
├── JobFailed          1  the job ended failed                     .info
├── UsageError         2  a request that makes no sense            (also ValueError)
│   └── KeyReused      2  its idempotency key means another start  .key
├── JobAborted         3  the job was aborted                      .info
├── NoSuchJob          4  no job of this id, or not yours          .id  (also LookupError)
├── NotPermitted       5  somebody else's job or home              (also PermissionError)
├── Busy               6  the resource is in use                   .resource .holder
├── WrongState         7  the verb does not fit the job's state    .id .state .verb .allowed
├── WrongHold          7  it is held already, or not held         .hold
├── WaitTimeout        8  the wait was over before the job         .id .timeout  (also TimeoutError)
├── Unreachable        9  no supervisor answers                    (also ConnectionError)
├── HomeInUse          1  another supervisor has this home         .home .pid .command
├── HomeUnusable       1  the home cannot be used                  .home
├── ConfigError        1  the configuration is wrong               .path .line
└── JournalError       1  the journal cannot be written or read    .path
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobvisor.hold import Hold
    from jobvisor.info import JobInfo
    from jobvisor_workers.protocol import Holder


class JobvisorError(Exception):
    """Base of all errors raised by the library."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"


class JobFailed(JobvisorError):
    """Raised by `wait(check=True)`."""

    code = "job-failed"

    def __init__(self, info: JobInfo) -> None:
        self.info = info
        super().__init__(info.errmsg or f"job {info.id} failed ({info.cause})")


class UsageError(JobvisorError, ValueError):
    """Nothing was started: the request itself is wrong."""

    exit_code = 2
    code = "usage"


class KeyReused(UsageError):
    """Nothing was started: a repetition is to ask for the same."""

    code = "key-reused"

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"the idempotency key {key!r} was used for another request; take a new one")


class JobAborted(JobvisorError):
    """Raised by `wait(check=True)`."""

    exit_code = 3
    code = "job-aborted"

    def __init__(self, info: JobInfo) -> None:
        self.info = info
        super().__init__(f"job {info.id} was aborted")


class NoSuchJob(JobvisorError, LookupError):
    """Also what is said of other people's jobs."""

    exit_code = 4
    code = "no-such-job"

    def __init__(self, id: int | str) -> None:
        """`id`: as it was asked for, which may be no number."""
        self.id = id
        super().__init__(f"there is no job {id}")


class NotPermitted(JobvisorError, PermissionError):
    """The kernel or the owner of the job does not allow it."""

    exit_code = 5
    code = "not-permitted"


class Busy(JobvisorError):
    """With on_conflict="fail": somebody has the resource."""

    exit_code = 6
    code = "busy"

    def __init__(self, resource: str, holder: Holder | None) -> None:
        self.resource, self.holder = resource, holder
        super().__init__(
            f"{resource} is in use by {holder or 'another process'}; wait for it, or leave out --on-conflict fail"
        )


class WrongState(JobvisorError):
    """The verb is not allowed now."""

    exit_code = 7
    code = "wrong-state"

    def __init__(self, id: int, state: str, verb: str, allowed: Iterable[str]) -> None:
        self.id, self.state, self.verb, self.allowed = id, str(state), str(verb), sorted(map(str, allowed))
        possible = f"it allows {', '.join(self.allowed)}" if self.allowed else "nothing can be done to it any more"
        super().__init__(f"cannot {verb} job {id}: it is {state}; {possible}")


class WrongHold(JobvisorError):
    """What is to be held is held already, by `hold`; or there is no such hold to release."""

    exit_code = 7
    code = "wrong-hold"

    def __init__(self, message: str, hold: Hold | None = None) -> None:
        self.hold = hold
        super().__init__(message)


class WaitTimeout(JobvisorError, TimeoutError):
    """The job itself goes on."""

    exit_code = 8
    code = "timeout"

    def __init__(self, id: int, timeout: float) -> None:
        self.id, self.timeout = id, timeout
        super().__init__(f"job {id} did not get there within {timeout:g} s; it goes on")


class Unreachable(JobvisorError, ConnectionError):
    """No supervisor answers, or this one was closed."""

    exit_code = 9
    code = "unreachable"


class HomeInUse(JobvisorError):
    """One home, one supervisor."""

    code = "home-in-use"

    def __init__(self, home: str, pid: int | None, command: str) -> None:
        self.home, self.pid, self.command = home, pid, command
        super().__init__(f"{home} is in use by pid {pid} ({command}); use that one, or another --home")


class HomeUnusable(JobvisorError):
    """The home is somebody else's, on NFS, or cannot be written."""

    code = "home-unusable"

    def __init__(self, home: str, why: str) -> None:
        self.home = home
        super().__init__(f"cannot use {home} as home: {why}")


class JournalError(JobvisorError):
    """Nothing is overwritten; running jobs go on."""

    code = "journal"

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        super().__init__(f"journal {path}: {why}")


class ConfigError(JobvisorError):
    """What was in effect before stays so."""

    code = "config"

    def __init__(self, path: str, line: int, why: str) -> None:
        """`line`: 0 when it is not known."""
        self.path, self.line = path, line
        super().__init__(f"{path}:{line}: {why}" if line else f"{path}: {why}")
