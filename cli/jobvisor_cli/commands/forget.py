"""`jobvisor forget ID…`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from jobvisor_cli import reach, streams
from jobvisor_cli.command import SPAN, Command, ids, quiet
from jobvisor_cli.ids import chosen, each

if TYPE_CHECKING:
    from jobvisor.job import Job


@click.command("forget", cls=Command)
@ids("the jobs, or the word current", verb="forget")
@click.option("-a", "--all", "everything", is_flag=True, help="all your jobs that have ended")
@click.option("--before", type=SPAN, metavar="TIME", help="those that ended more than 12h, 30m or 7d ago")
@quiet()
def command(ids: tuple[int | str, ...], everything: bool, before: float | None, quiet: bool) -> int:
    """Remove all that is known of ended jobs: their info, and their logs.

    Nothing happens to the files that they worked on; what --keep-partial kept for a retry is removed.
    """
    if bool(ids) + everything + (before is not None) != 1:
        raise click.UsageError("name the jobs by their ids, or the word current, or give --all or --before 7d")

    def forget(job: Job) -> None:
        job.forget()
        if not quiet:
            streams.note(f"job {job.id} forgotten")

    with reach.client() as client:
        if ids:
            return each(client, chosen(client, ids), forget)
        moment = None if before is None else datetime.now(UTC) - timedelta(seconds=before)
        count = client.forget(before=moment)
    if not quiet:
        streams.note(f"{count} job{'' if count == 1 else 's'} forgotten")
    return 0
