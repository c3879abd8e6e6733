"""Where the public classes get their answers: the core of a supervisor in this process, or calls to a daemon."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from jobvisor.config import Setting
    from jobvisor.hold import Hold
    from jobvisor.info import JobInfo
    from jobvisor.remote.calls import Call
    from jobvisor.schedule import Mask
    from jobvisor.states import State, Verb

    T = TypeVar("T")
    #: An answer that is under way, or the description of a call that gets it.
    Asked: TypeAlias = Future[T] | Call[T]


class Source(Protocol):
    """What both can be asked in the same words."""

    def info(self, id: int) -> Asked[JobInfo]: ...

    def jobs(
        self,
        *,
        state: State | str | Iterable[State | str] | None,
        type: str | None,
        resource: str | None,
        limit: int | None,
        since: float | None,
        all_users: bool,
    ) -> Asked[list[JobInfo]]: ...

    def verb(self, verb: Verb, id: int, *, wait: bool, force: bool = False) -> Asked[JobInfo]: ...

    def retry(self, id: int) -> Asked[JobInfo]: ...

    def forget(self, id: int) -> Asked[None]: ...

    def current(self) -> Asked[int | None]: ...

    def set_current(self, id: int) -> Asked[None]: ...

    def pids(self) -> Asked[dict[int, int]]: ...

    def hold(self, reason: str, *, type: str | None, all_users: bool) -> Asked[Hold]: ...

    def release(self, *, type: str | None, all_users: bool) -> Asked[None]: ...

    def config(self) -> Asked[list[Setting]]: ...

    def reload(self) -> Asked[list[Setting]]: ...

    def holds(self) -> Asked[list[Hold]]: ...

    def mask(self, resource: str, connect: str | None) -> Asked[Mask]: ...
