"""`jobvisor retry ID…`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, as_json, ids
from jobvisor_cli.ids import chosen, each

if TYPE_CHECKING:
    from jobvisor.job import Job


@click.command("retry", cls=Command)
@ids("the jobs, or the word current", verb="retry", required=True)
@as_json("the new jobs as JSON objects, one per line, instead of their ids")
def command(ids: tuple[int | str, ...], as_json: bool) -> int:
    """Start failed or aborted jobs again, as new ones, and print the new ids."""

    def retry(job: Job) -> None:
        again = job.retry()
        if as_json:
            streams.json_line(again.info().to_dict())
        else:
            streams.result(f"{again.id}\n")

    with reach.client() as client:
        return each(client, chosen(client, ids), retry)
