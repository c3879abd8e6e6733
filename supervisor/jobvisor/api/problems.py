"""Errors as answers: RFC 9457 problems with a stable code, from which a client makes the same error again."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response

from jobvisor import errors
from jobvisor.api.wire import Problem

MEDIA_TYPE = "application/problem+json"

#: Error → status. What is not here is a 500.
STATUS: Mapping[type[errors.JobvisorError], int] = {
    errors.KeyReused: 409,
    errors.UsageError: 400,
    errors.NotPermitted: 403,
    errors.NoSuchJob: 404,
    errors.Busy: 409,
    errors.WrongHold: 409,
    errors.WrongState: 409,
    errors.JobFailed: 409,
    errors.JobAborted: 409,
    errors.ConfigError: 422,
    errors.JournalError: 507,
    errors.Unreachable: 503,
}
FIELDS = ("id", "state", "verb", "allowed", "resource", "holder", "hold", "path", "line", "key")


class Refused(Exception):
    """A request that HTTP itself or a limit forbids. `headers`: those that the status calls for."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.code, self.detail, self.headers = status, code, detail, headers
        super().__init__(detail)


def of_error(error: errors.JobvisorError, instance: str) -> Response:
    """The answer for an error of the library."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    fields = {name: getattr(error, name) for name in FIELDS if getattr(error, name, None) is not None}
    return answer(status, error.code, str(error), instance, **msgspec.to_builtins(fields))


def answer(
    status: int, code: str, detail: str, instance: str = "", headers: Mapping[str, str] | None = None, **fields: Any
) -> Response:
    problem = Problem(
        type=f"urn:jobvisor:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=instance,
        code=code,
        **fields,
    )
    return Response(msgspec.json.encode(problem), status, headers, MEDIA_TYPE)
