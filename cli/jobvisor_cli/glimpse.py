"""A look at the jobs for completion: never starts a daemon, and gives up before anybody notices."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from click.shell_completion import CompletionItem

from jobvisor import autostart
from jobvisor.errors import JobvisorError, Unreachable
from jobvisor.states import ALLOWED, State
from jobvisor_cli import reach

#: Seconds from the first call to the last byte.
DEADLINE = 0.08
#: Newest jobs that are offered where ended ones do.
MOST = 50


def job_items(verb: str | None, incomplete: str) -> list[CompletionItem]:
    """Ids with type and state, newest first; `verb`: only jobs that allow it.

    None when there is no daemon, or none that answers at once.
    """
    states = ",".join(state for state in State if verb is None or verb in ALLOWED[state])
    try:
        jobs = _ask(f"/v1/jobs?state={states}&limit={MOST}")
        offered = [CompletionItem(str(job["id"]), help=_described(job)) for job in jobs]
    except (JobvisorError, OSError, LookupError, TypeError, ValueError):
        return []
    offered += [CompletionItem("current")] if offered else []
    return [item for item in offered if item.value.startswith(incomplete)]


def _described(job: dict[str, Any]) -> str:
    names = [os.path.basename(name) or name for name in job.get("resources", [])[-1:]]
    return " ".join([job["type"], *names, job["state"]])


def _ask(path: str) -> list[dict[str, Any]]:
    """Raises ValueError for what is no answer of a daemon."""
    import json

    head, _, body = _talk(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()).partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError(head)
    jobs: list[dict[str, Any]] = json.loads(body)["jobs"]
    return jobs


def _talk(request: bytes) -> bytes:
    end = time.monotonic() + DEADLINE
    answer = bytearray()
    connection = autostart.try_connect(reach.socket(), DEADLINE)
    if connection is None:
        raise Unreachable("no daemon listens")
    with connection:
        connection.sendall(request, socket.MSG_NOSIGNAL)
        while True:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            piece = connection.recv(65536)
            if not piece:
                return bytes(answer)
            answer += piece
            if time.monotonic() > end:
                raise TimeoutError
