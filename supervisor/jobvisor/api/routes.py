"""What each endpoint does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse

from jobvisor.api import pipes, wire
from jobvisor.api.call import Answer, Call
from jobvisor.api.context import Context
from jobvisor.api.fanout import Stream
from jobvisor.api.problems import Refused
from jobvisor.asking import Options
from jobvisor.errors import NoSuchJob, NotPermitted, UsageError
from jobvisor.info import JobInfo
from jobvisor.states import Goal, State, Verb, goal
from jobvisor_workers import registry
from jobvisor_workers.jobtype import describe

#: Bytes of a log that are read at a time, and seconds between two looks at one that is followed.
LOG_PIECE, LOG_PERIOD = 1 << 16, 0.2


class Routes:
    """The handlers. What may touch files runs on a thread: they may be on a server that does not answer."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def start(self, call: Call) -> Response:
        body: wire.Start = call.body
        fields = dict(body.job)
        name = fields.pop("type", None)
        if not isinstance(name, str):
            raise UsageError("job: it is to have a `type`, one of those that GET /v1/types lists")
        options = Options(**{field: getattr(body, field) for field in Options.__struct_fields__})
        accepted = await self._context.in_thread(
            lambda: call.core.start(name, options, fields, umask=body.umask, key=call.key)
        )
        return created(await asyncio.wrap_future(accepted))

    async def retry(self, call: Call) -> Response:
        job, key = call.id, call.key
        return created(await asyncio.wrap_future(call.core.retry(job, key=key)))

    async def jobs(self, call: Call) -> Response:
        query: wire.ListQuery = call.query
        states = None if query.state is None else query.state.split(",")
        infos = await asyncio.wrap_future(
            call.core.jobs(
                state=states,
                type=query.type,
                resource=query.resource,
                limit=query.limit,
                all_users=query.all_users,
                since=query.since,
            )
        )
        return json({"jobs": [info.to_dict() for info in infos]})

    async def forget_all(self, call: Call) -> Response:
        query: wire.ForgetQuery = call.query
        before = None if query.before is None else datetime.fromtimestamp(query.before)
        ended = await asyncio.wrap_future(call.core.ended_before(before))
        for job in ended:
            await asyncio.wrap_future(call.core.forget(job))
        return json(wire.Forgotten(len(ended)))

    async def info(self, call: Call) -> Response:
        return json((await asyncio.wrap_future(call.core.info(call.id))).to_dict())

    async def forget(self, call: Call) -> Response:
        await asyncio.wrap_future(call.core.forget(call.id))
        return Response(status_code=204)

    async def verb(self, call: Call) -> Response:
        verb = Verb(call.request.url.path.rpartition("/")[2])
        query: wire.VerbQuery = call.query
        force = isinstance(query, wire.AbortQuery) and query.force
        doing = asyncio.wrap_future(call.core.verb(verb, call.id, wait=query.wait, force=force))
        info = await call.unless_gone(doing)
        return json(info.to_dict(), 200 if query.wait else 202)

    async def wait(self, call: Call) -> Response:
        query: wire.WaitQuery = call.query
        job = call.id
        future, waiter = call.core.wait(job, None if query.until is None else _goal(query.until))
        try:
            waiting = asyncio.wait_for(asyncio.wrap_future(future), query.timeout or 0.001)
            info = await call.unless_gone(waiting)
        except TimeoutError:
            info = await asyncio.wrap_future(call.core.info(job))
        finally:
            call.core.unwait(job, waiter)
        return json(info.to_dict())

    async def log(self, call: Call) -> Response:
        info = await asyncio.wrap_future(call.core.info(call.id))
        return StreamingResponse(self._log(call, info), media_type="text/plain")

    async def _log(self, call: Call, info: JobInfo) -> AsyncIterator[bytes]:
        offset: int = call.query.offset
        while True:
            final = info.final
            while piece := await asyncio.to_thread(_read, info.log, offset):
                offset += len(piece)
                yield piece
            if final or not call.query.follow or self._context.leaving.is_set():
                return
            await asyncio.sleep(LOG_PERIOD)
            try:
                info = await asyncio.wrap_future(call.core.info(info.id))
            except NoSuchJob:  # forgotten meanwhile
                return

    async def stdin(self, call: Call) -> Response:
        return await pipes.put_input(self._context, call)

    async def stdout(self, call: Call) -> Response:
        return await pipes.get_output(self._context, call)

    async def events(self, call: Call) -> Answer:
        query: wire.EventsQuery = call.query
        since = query.since
        last = call.request.headers.get("last-event-id")
        if last is not None:
            if not last.isascii() or not last.isdigit() or len(last) > 19:
                raise UsageError("Last-Event-ID is to be the number of an event")
            since = int(last)
        uid = call.core.uid
        if query.all_users and not call.core.sees_all:
            raise NotPermitted("only root may see the jobs of all users")
        jobs = None if query.jobs is None else frozenset(int(job) for job in query.jobs.split(","))
        # Who asks for certain jobs may name those of others, if they may see them.
        anybodys = call.core.sees_all and (query.all_users or jobs is not None)
        stream = Stream(None if anybodys else uid, jobs, query.progress)
        return self._context.events(stream, since, uid)

    async def types(self, call: Call) -> Response:
        return json({"types": await self._context.in_thread(lambda: [_described(name) for name in registry.names()])})

    async def type(self, call: Call) -> Response:
        name = call.request.path_params["type"]
        known = await self._context.in_thread(registry.names)
        if name not in known:
            raise Refused(404, "no-such-type", f"no job type is called {name[:100]!r}; there are {', '.join(known)}")
        return json(await self._context.in_thread(lambda: _described(name)))

    async def mask(self, call: Call) -> Response:
        query: wire.MaskQuery = call.query
        future = await self._context.in_thread(lambda: call.core.mask(query.resource, query.connect))
        return json(await asyncio.wrap_future(future))

    async def config(self, call: Call) -> Response:
        return json(wire.Settings(await asyncio.wrap_future(call.core.config())))

    async def reload(self, call: Call) -> Response:
        settings = await self._context.in_thread(call.core.reload)
        return json(wire.Settings(await asyncio.wrap_future(settings)))

    async def holds(self, call: Call) -> Response:
        return json(wire.Holds(await asyncio.wrap_future(call.core.holds())))

    async def hold(self, call: Call) -> Response:
        body: wire.MakeHold = call.body
        made = await self._context.in_thread(
            lambda: call.core.hold(body.reason, type=body.type, all_users=body.all_users)
        )
        return json(await asyncio.wrap_future(made), 201)

    async def release(self, call: Call) -> Response:
        query: wire.ReleaseQuery = call.query
        await asyncio.wrap_future(call.core.release(type=query.type, all_users=query.all_users))
        return Response(status_code=204)

    async def current(self, call: Call) -> Response:
        return json(wire.Current(await asyncio.wrap_future(call.core.current())))

    async def set_current(self, call: Call) -> Response:
        await asyncio.wrap_future(call.core.set_current(call.body.id))
        return json(wire.Current(call.body.id))

    async def pids(self, call: Call) -> Response:
        pids = await asyncio.wrap_future(call.core.pids())
        return json(wire.Pids({str(job): pid for job, pid in pids.items()}))

    async def daemon(self, call: Call) -> Response:
        return json(await self._context.about())


def json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def created(info: JobInfo) -> Response:
    response = json(info.to_dict(), 201)
    response.headers["location"] = f"/v1/jobs/{info.id}"
    return response


def _goal(word: str) -> Goal:
    """Raises UsageError."""
    try:
        return goal(word)
    except ValueError:
        raise UsageError(f"for: {word!r} is no state; states are {', '.join(State)}, and there is `checked`")


def _read(path: str, offset: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return os.pread(file.fileno(), LOG_PIECE, offset)
    except FileNotFoundError:  # no worker yet
        return b""


def _described(name: str) -> dict[str, Any]:
    try:
        return describe(registry.get(name))
    except Exception as error:  # whatever somebody else's module does while it is imported
        return {"type": name, "error": f"{type(error).__name__}: {error}"}
