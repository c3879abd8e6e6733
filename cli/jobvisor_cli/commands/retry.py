"""`jobvisor retry ID…`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobvisor.errors import UsageError
from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, as_json, ids, quiet
from jobvisor_cli.ids import chosen, each
from jobvisor_cli.sizes import show_size
from jobvisor_workers import registry

if TYPE_CHECKING:
    from jobvisor.info import JobInfo
    from jobvisor.job import Job


@click.command("retry", cls=Command)
@ids("the jobs, or the word current", verb="retry", required=True)
@as_json("the new jobs as JSON objects, one per line, instead of their ids")
@quiet()
def command(ids: tuple[int | str, ...], as_json: bool, quiet: bool) -> int:
    """Start failed or aborted jobs again, as new ones, and print the new ids.

    A job that was run with --keep-partial goes on where it ended, if both ends are still what they were; others begin
    anew.
    """

    def retry(job: Job) -> None:
        info = job.info()
        _check_pipes(info)
        kept = info.partial
        again = job.retry()
        if not quiet:
            how = f"goes on from the {show_size(kept.done)} that are done" if kept else "begins anew"
            streams.note(f"job {again.id} {how}")
        if as_json:
            streams.json_line(again.info().to_dict())
        else:
            streams.result(f"{again.id}\n")

    with reach.client() as client:
        return each(client, chosen(client, ids), retry)


def _check_pipes(info: JobInfo) -> None:
    """Raises UsageError for a job whose data came, or went, through a pipe."""
    try:
        job = registry.convert(info.type, info.args)
    except Exception:  # of another package, which is not installed here, or not as it was: the daemon knows better
        return
    if job.has_stdin or job.has_stdout:
        which = "input" if job.has_stdin else "output"
        raise UsageError(f"cannot retry job {info.id}: its standard {which} is gone; use jobvisor run again")
