"""`jobvisor suspend [ID…]`."""

from __future__ import annotations

import click

from jobvisor.states import Verb
from jobvisor_cli import verbs
from jobvisor_cli.command import Command, as_json, ids, no_wait, quiet


@click.command("suspend", cls=Command)
@ids("the jobs; without one, the current job", verb="suspend")
@verbs.everything("all your jobs that run or wait")
@no_wait("return when it is asked for, not when it is true")
@as_json()
@quiet()
def command(ids: tuple[int | str, ...], no_wait: bool, **options: bool) -> int:
    """Stop jobs where they are.

    It returns when every thread of every process was seen stopped. A job that is still queued keeps its place and does
    not start.
    """
    return verbs.apply(Verb.SUSPEND, ids, lambda job: job.suspend(wait=not no_wait), None, no_wait=no_wait, **options)
