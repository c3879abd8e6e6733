"""What the API says is wrong, as the error that the library raises for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from jobvisor.errors import (
    Busy,
    ConfigError,
    JobvisorError,
    JournalError,
    KeyReused,
    NoSuchJob,
    NotPermitted,
    Unreachable,
    UsageError,
    WrongHold,
    WrongState,
)
from jobvisor_workers.protocol import Holder


class Problem(Struct):
    """The body of an answer that is an error (RFC 9457), with the fields that a code brings along."""

    code: str = ""
    detail: str = ""
    id: int | str = 0
    state: str = ""
    verb: str = ""
    allowed: list[str] = []
    resource: str = ""
    holder: Holder | None = None
    hold: dict[str, Any] | None = None
    path: str = ""
    line: int = 0
    key: str = ""


def _wrong_hold(problem: Problem) -> WrongHold:
    from jobvisor.hold import Hold

    return WrongHold(problem.detail, None if problem.hold is None else msgspec.convert(problem.hold, Hold))


_ERRORS: dict[str, Callable[[Problem], JobvisorError]] = {
    KeyReused.code: lambda problem: KeyReused(problem.key),
    UsageError.code: lambda problem: UsageError(problem.detail),
    NoSuchJob.code: lambda problem: NoSuchJob(problem.id),
    NotPermitted.code: lambda problem: NotPermitted(problem.detail),
    Busy.code: lambda problem: Busy(problem.resource, problem.holder),
    WrongState.code: lambda problem: WrongState(int(problem.id), problem.state, problem.verb, problem.allowed),
    WrongHold.code: _wrong_hold,
    Unreachable.code: lambda problem: Unreachable(problem.detail),
    ConfigError.code: lambda problem: ConfigError(problem.path, problem.line, problem.detail),
    JournalError.code: lambda problem: JournalError(problem.path, problem.detail),
}


def error_of(status: int, body: bytes) -> JobvisorError:
    """Its message is the daemon's, word by word; a code that is not known here is a plain JobvisorError."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return JobvisorError(f"the daemon answered with status {status}: {body[:200].decode(errors='replace')}")
    detail = problem.detail or f"the daemon answered with status {status}"
    known = _ERRORS.get(problem.code)
    error = known(problem) if known else JobvisorError(detail)
    error.args = (detail,)
    return error
