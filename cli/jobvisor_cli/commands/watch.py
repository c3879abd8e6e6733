"""`jobvisor watch [ID…]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobvisor.states import FINAL, State
from jobvisor_cli import display, reach, streams
from jobvisor_cli.command import Command, as_json, ids, quiet
from jobvisor_cli.ids import chosen, each

if TYPE_CHECKING:
    from jobvisor.info import JobInfo
    from jobvisor.job import Job


@click.command("watch", cls=Command)
@ids("the jobs; without one, the current job")
@click.option("-a", "--all", "everything", is_flag=True, help="all your jobs, and those that are started meanwhile")
@as_json("events, one JSON object per line")
@quiet("say nothing but errors")
def command(ids: tuple[int | str, ...], everything: bool, as_json: bool, quiet: bool) -> int:
    """Show bars of jobs until they end; off a terminal, their changes of state. ^C ends the watching, never a job.

    The exit code is 0 when all completed, else that of the first one that did not: 1 failed, 3 aborted, 6 volume in
    use.
    """
    if everything and ids:
        raise click.UsageError("--all goes without ids")
    from jobvisor_cli.watching import Watch

    events = streams.Events() if as_json else None
    found: list[JobInfo] = []

    def look(job: Job) -> None:
        found.append(job.info())

    with reach.client() as client, client.events() as stream:
        if everything:
            found += client.jobs(state=set(State) - FINAL)[::-1]
            code = 0
            if not (found or quiet or as_json):
                streams.note("no jobs now")
        else:
            code = each(client, chosen(client, ids), look)
        watch = Watch(display.choose_many(quiet=quiet or as_json), events, new=everything, quiet=quiet)
        code = watch.run(stream, found) or code
    if events:
        events.finish()
    return code
