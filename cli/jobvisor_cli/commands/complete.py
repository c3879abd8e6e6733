"""`jobvisor complete ID…`."""

from __future__ import annotations

import click

from jobvisor.states import Verb
from jobvisor_cli import verbs
from jobvisor_cli.command import Command, as_json, ids, no_wait, quiet


@click.command("complete", cls=Command)
@ids("the jobs, or the word current", verb="complete", required=True)
@no_wait("return when it is asked for, not when it is true")
@as_json()
@quiet()
def command(ids: tuple[int | str, ...], no_wait: bool, **options: bool) -> int:
    """Tell jobs that are ready to finish.

    A job with two phases converges, and then goes on until it is told to complete. Of the types that come with
    jobvisor none has two phases yet.
    """
    return verbs.apply(Verb.COMPLETE, ids, lambda job: job.complete(wait=not no_wait), None, no_wait=no_wait, **options)
