"""`jobvisor abort ID…`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobvisor.states import Verb
from jobvisor_cli import verbs
from jobvisor_cli.command import Command, as_json, ids, no_wait, quiet

if TYPE_CHECKING:
    from jobvisor.info import JobInfo
    from jobvisor.job import Job


@click.command("abort", cls=Command)
@ids("the jobs, or the word current", verb="abort")
@verbs.everything("all your jobs that have not ended")
@click.option("--force", is_flag=True, help="kill at once what does not end by itself")
@no_wait("return when it is asked for, not when the last process is gone")
@as_json()
@quiet()
def command(ids: tuple[int | str, ...], force: bool, no_wait: bool, **options: bool) -> int:
    """End jobs; they clean up, and nothing half-made is left.

    It returns when the last process of each job is gone. What does not end within ten seconds is killed.
    """
    if not (ids or options["everything"] or options["all_users"]):
        raise click.UsageError("name the jobs by their ids, or the word current, or give --all")

    def ask(job: Job) -> JobInfo:
        return job.abort(wait=False, force=force)

    return verbs.apply(Verb.ABORT, ids, ask, None if no_wait else lambda job: job.wait(), no_wait=no_wait, **options)
