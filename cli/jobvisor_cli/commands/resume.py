"""`jobvisor resume [ID…]`."""

from __future__ import annotations

import click

from jobvisor.states import Verb
from jobvisor_cli import verbs
from jobvisor_cli.command import Command, as_json, ids, no_wait, quiet


@click.command("resume", cls=Command)
@ids("the jobs; without one, the current job", verb="resume")
@verbs.everything("all your jobs that are suspended")
@no_wait("return when it is asked for, not when it is true")
@as_json()
@quiet()
def command(ids: tuple[int | str, ...], no_wait: bool, **options: bool) -> int:
    """Let suspended jobs go on."""
    return verbs.apply(Verb.RESUME, ids, lambda job: job.resume(wait=not no_wait), None, no_wait=no_wait, **options)
