"""The ASGI application: paths to endpoints, and every error to a problem."""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from jobvisor.api import openapi, problems
from jobvisor.api.call import Answer, Call, Endpoint
from jobvisor.api.context import Context
from jobvisor.api.endpoints import endpoints
from jobvisor.api.problems import Refused
from jobvisor.api.routes import json
from jobvisor.errors import JobvisorError


def application(context: Context) -> Starlette:
    """All routes of one API."""
    table = endpoints(context)
    by_path = itertools.groupby(sorted(table, key=lambda each: each.path), key=lambda each: each.path)
    routes = [_route(context, path, {each.method: each for each in group}) for path, group in by_path]

    async def document(request: Request) -> Response:
        async with context.turn(request.state.requester.uid):
            return json(await context.in_thread(lambda: openapi.document(table)))

    routes.append(Route("/v1/openapi.json", document))
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_problem})
    app.router.redirect_slashes = False
    return app


def _route(context: Context, path: str, methods: Mapping[str, Endpoint]) -> Route:
    async def dispatch(request: Request) -> Answer:
        endpoint = methods["GET" if request.method == "HEAD" else request.method]
        try:
            call = Call(request, endpoint, context.core, context.leaving)
            if endpoint.body is None and not endpoint.may_block:
                return await endpoint.handle(call)
            async with context.turn(call.requester.uid):
                await call.read_body()
                return await endpoint.handle(call)
        except JobvisorError as error:
            return problems.of_error(error, request.url.path)
        except Refused as error:
            return problems.answer(error.status, error.code, error.detail, request.url.path, error.headers)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is there to read it
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            text = f"{type(error).__name__}: {error}; this is a defect of jobvisor, its log has the traceback"
            return problems.answer(500, "defect", text, request.url.path)

    return Route(path, dispatch, methods=sorted(methods))


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        detail = f"{request.method} is no method of {path}; Allow says which are"
        return problems.answer(405, "no-such-method", detail, path, error.headers)
    return problems.answer(error.status_code, "not-found", f"there is nothing at {path}; see /v1/openapi.json", path)
