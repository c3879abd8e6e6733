"""The table of all that can be asked: the application and the OpenAPI document are made from it."""

from __future__ import annotations

from typing import Any

from jobvisor.api import pipes, wire
from jobvisor.api.call import Endpoint
from jobvisor.api.context import Context
from jobvisor.api.routes import Routes
from jobvisor.hold import Hold
from jobvisor.info import DaemonInfo, JobInfo
from jobvisor.schedule import Mask
from jobvisor.states import Verb


def endpoints(context: Context) -> list[Endpoint]:
    """Of one API."""
    routes = Routes(context)
    one = "/v1/jobs/{id}"
    return [
        Endpoint(
            "POST",
            "/v1/jobs",
            routes.start,
            "Start a job",
            body=wire.Start,
            reply=JobInfo,
            status=201,
            problems=(409, 507),
            takes_key=True,
        ),
        Endpoint("GET", "/v1/jobs", routes.jobs, "List jobs, newest first", query=wire.ListQuery, reply=wire.Jobs),
        Endpoint(
            "DELETE", "/v1/jobs", routes.forget_all, "Forget ended jobs", query=wire.ForgetQuery, reply=wire.Forgotten
        ),
        Endpoint("GET", one, routes.info, "All that is known of a job", reply=JobInfo),
        Endpoint("DELETE", one, routes.forget, "Forget an ended job", status=204, problems=(409,)),
        *(
            Endpoint(
                "POST",
                f"{one}/{verb}",
                routes.verb,
                f"{verb.capitalize()} a job",
                query=wire.AbortQuery if verb is Verb.ABORT else wire.VerbQuery,
                reply=JobInfo,
                problems=(409,),
            )
            for verb in (Verb.SUSPEND, Verb.RESUME, Verb.ABORT, Verb.COMPLETE)
        ),
        Endpoint(
            "POST",
            f"{one}/retry",
            routes.retry,
            "Start a new job like this one, which failed or was aborted",
            reply=JobInfo,
            status=201,
            problems=(409, 507),
            takes_key=True,
        ),
        Endpoint(
            "GET",
            f"{one}/wait",
            routes.wait,
            "Wait for the end of a job, or for a state",
            query=wire.WaitQuery,
            reply=JobInfo,
        ),
        Endpoint(
            "GET",
            f"{one}/log",
            routes.log,
            "What the worker wrote",
            query=wire.LogQuery,
            media="text/plain; charset=utf-8",
        ),
        Endpoint(
            "PUT",
            f"{one}/stdin",
            routes.stdin,
            "Send what a job reads; a body that is cut off fails the job",
            status=204,
            problems=(409, 429),
            takes_stream=True,
        ),
        Endpoint(
            "GET",
            f"{one}/stdout",
            routes.stdout,
            "Receive what a job writes; the answer ends well only if the job completes",
            media=pipes.MEDIA_TYPE,
            problems=(409, 429),
        ),
        Endpoint(
            "GET",
            "/v1/events",
            routes.events,
            "Events",
            query=wire.EventsQuery,
            media="text/event-stream",
            problems=(429,),
        ),
        Endpoint("GET", "/v1/types", routes.types, "The job types", reply=wire.Types, may_block=True),
        Endpoint("GET", "/v1/types/{type}", routes.type, "A job type", reply=dict[str, Any], may_block=True),
        Endpoint(
            "GET",
            "/v1/mask",
            routes.mask,
            "What may start on a resource now",
            query=wire.MaskQuery,
            reply=Mask,
            may_block=True,
        ),
        Endpoint("GET", "/v1/holds", routes.holds, "What keeps jobs from starting", reply=wire.Holds),
        Endpoint(
            "POST",
            "/v1/holds",
            routes.hold,
            "Let nothing new start",
            body=wire.MakeHold,
            reply=Hold,
            status=201,
            problems=(409, 507),
        ),
        Endpoint(
            "DELETE",
            "/v1/holds",
            routes.release,
            "Undo a hold",
            query=wire.ReleaseQuery,
            status=204,
            problems=(409, 507),
        ),
        Endpoint("GET", "/v1/config", routes.config, "The configuration in effect", reply=wire.Settings),
        Endpoint(
            "POST",
            "/v1/config/reload",
            routes.reload,
            "Read the configuration again",
            reply=wire.Settings,
            problems=(422,),
            may_block=True,
        ),
        Endpoint("GET", "/v1/current", routes.current, "The current job", reply=wire.Current),
        Endpoint(
            "PUT",
            "/v1/current",
            routes.set_current,
            "Make a job the current one",
            body=wire.SetCurrent,
            reply=wire.Current,
        ),
        Endpoint("GET", "/v1/pids", routes.pids, "The pid pool: job id to worker pid", reply=wire.Pids),
        Endpoint("GET", "/v1/daemon", routes.daemon, "Who answers", reply=DaemonInfo),
    ]
