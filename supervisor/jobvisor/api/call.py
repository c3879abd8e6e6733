"""One request to the API, taken apart: who asks, for what, with which arguments."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from jobvisor.api.problems import Refused
from jobvisor.api.wire import INT_MAX, Empty
from jobvisor.core import Core
from jobvisor.errors import NoSuchJob, Unreachable, UsageError
from jobvisor_workers.protocol import Requester

#: Bytes of a JSON body.
BODY_MAX = 1 << 20
#: Seconds in which it must have come.
BODY_TIME = 10.0
#: What is left of a body that was refused is not read.
CLOSE = {"connection": "close"}
T = TypeVar("T")
#: Starlette's answers, and others that write for themselves.
Answer = Response | ASGIApp


class Endpoint(Struct):
    """A method of a path: what it takes, what it answers, and who handles it."""

    method: str
    path: str
    handle: Callable[[Call], Awaitable[Answer]]
    summary: str
    query: type[Struct] = Empty
    body: type[Struct] | None = None
    #: None: no JSON (an octet stream, a page of text, events, nothing).
    reply: Any = None
    media: str = "application/json"
    status: int = 200
    #: Codes of problems beyond those that anything may answer with.
    problems: tuple[int, ...] = ()
    takes_stream: bool = False
    #: It may take a thread for long.
    may_block: bool = False
    takes_key: bool = False


class Call:
    """A request, checked as far as its endpoint's declaration goes."""

    def __init__(self, request: Request, endpoint: Endpoint, core: Core, leaving: asyncio.Event) -> None:
        self.request, self.endpoint = request, endpoint
        self._leaving = leaving
        self.requester: Requester = request.state.requester
        #: The supervisor as the requester may see it.
        self.core = core.seen_by(self.requester)
        self.query: Any = _query(request, endpoint.query)
        self.body: Any = None

    @property
    def id(self) -> int:
        """The job's id in the path. Raises NoSuchJob: what is no id names no job."""
        text = self.request.path_params["id"]
        if not re.fullmatch(r"[1-9][0-9]{0,18}", text) or int(text) > INT_MAX:
            raise NoSuchJob(int(text) if re.fullmatch("-?[0-9]{1,30}", text) else text[:30])
        return int(text)

    @property
    def key(self) -> str | None:
        """The request's Idempotency-Key. Raises UsageError."""
        key = self.request.headers.get("idempotency-key")
        if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,100}", key):
            raise UsageError("Idempotency-Key is to be 1 to 100 printable ASCII characters")
        return key

    async def read_body(self) -> None:
        """The JSON body, as its type. Raises Refused, UsageError."""
        declared = self.endpoint.body
        if declared is None:
            return
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "not-json", "the body is to be application/json; say so in Content-Type")
        try:
            content = await asyncio.wait_for(self._all_of_it(), BODY_TIME)
        except TimeoutError:
            raise Refused(408, "too-slow", f"the body did not come within {BODY_TIME:g} s", CLOSE)
        self.body = decoded(content, declared)

    async def _all_of_it(self) -> bytes:
        content = bytearray()
        async for piece in self.request.stream():
            content += piece
            if len(content) > BODY_MAX:
                raise Refused(413, "too-large", f"the body is larger than {BODY_MAX} bytes", CLOSE)
        return bytes(content)

    async def unless_gone(self, answer: Awaitable[T]) -> T:
        """Await something that may take long, as long as the client is there to hear it, and the daemon to say it.

        Raises ClientDisconnect, Unreachable.
        """
        working = asyncio.ensure_future(answer)
        gone = asyncio.ensure_future(self._gone())
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({working, gone, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ClientDisconnect if gone.done() else Unreachable("the daemon leaves; the job goes on, ask again")
        finally:
            for task in (working, gone, leaving):
                task.cancel()

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


def decoded(content: bytes, declared: type[Struct]) -> Any:
    """JSON as its type. Raises UsageError."""
    try:
        return msgspec.convert(whole(msgspec.json.decode(content)), declared)
    except msgspec.DecodeError as error:
        raise UsageError(f"the body is not what it is to be: {error}")
    except UnicodeDecodeError:
        raise UsageError("the body is not valid UTF-8")
    except RecursionError:
        raise UsageError("the body is nested too deeply")


def whole(value: Any) -> Any:
    """Integral floats as integers: for JSON Schema 12.0 is one, for msgspec it is not."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: whole(each) for key, each in value.items()}
        case list():
            return [whole(each) for each in value]
    return value


def _query(request: Request, declared: type[Struct]) -> Any:
    try:
        pairs = parse_qsl(
            request.scope["query_string"].decode("ascii"), keep_blank_values=True, strict_parsing=False, errors="strict"
        )
    except UnicodeDecodeError:
        raise UsageError("the query is not valid UTF-8")
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice!r} is given twice")
    empty = next((name for name, value in pairs if value.lower() == "null"), None)
    if empty is not None:  # msgspec would take it as None
        raise UsageError(f"{empty}: what is not wanted is left out, null is no value")
    try:
        return msgspec.convert(dict(pairs), declared, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"the query is not what it is to be: {error}")
