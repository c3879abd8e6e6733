"""`jobvisor wait [ID…]`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from jobvisor.errors import WaitTimeout
from jobvisor.states import State
from jobvisor_cli import exits, reach, streams
from jobvisor_cli.command import SPAN, Command, StateName, as_json, ids, quiet
from jobvisor_cli.ids import chosen, each

if TYPE_CHECKING:
    from jobvisor.job import Job


@click.command("wait", cls=Command)
@ids("the jobs; without one, the current job")
@click.option("--for", "state", type=StateName(), help="wait for this state instead of the end")
@click.option("--timeout", type=SPAN, metavar="TIME", help="wait no longer than 90s, 10m or 2h; 0 only looks")
@as_json()
@quiet("say nothing but errors")
def command(ids: tuple[int | str, ...], state: State | None, timeout: float | None, as_json: bool, quiet: bool) -> int:
    """Wait until jobs end, or get into a state. ^C ends the waiting, never a job.

    The exit code is 0 when they completed (or are in the state), 1 when one failed, 3 when one was aborted, 6 when one
    found its volume in use, 7 when one ended without getting into the state, 8 when the time was over.
    """
    deadline = None if timeout is None else time.monotonic() + timeout

    def wait(job: Job) -> int:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            info = job.wait(left, until=state)
        except WaitTimeout:
            raise WaitTimeout(job.id, timeout or 0.0)
        if as_json:
            streams.json_line(info.to_dict())
        return exits.tell(info, state, quiet=quiet or as_json)

    with reach.client() as client:
        return each(client, chosen(client, ids), wait)
