"""`jobvisor current [ID]`."""

from __future__ import annotations

import click

from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, Positional, as_json
from jobvisor_cli.ids import JobId, chosen


@click.command("current", cls=Command)
@click.argument("id", cls=Positional, description="the job to choose", required=False, type=JobId(), metavar="[ID]")
@as_json("the job as a JSON object instead of its id")
def command(id: int | str | None, as_json: bool) -> None:
    """Show or choose the job that commands without an id are about.

    It is the one that you started last, until you choose another one; your next start makes the new job the current
    one.
    """
    with reach.client() as client:
        (number,) = chosen(client, [] if id is None else [id])
        if id is not None:
            client.set_current(number)
        if as_json:
            streams.json_line(client.job(number).info().to_dict())
        elif id is None:
            streams.result(f"{number}\n")
