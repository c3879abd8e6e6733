"""`jobvisor info [ID…]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, as_json, ids
from jobvisor_cli.ids import chosen, each

if TYPE_CHECKING:
    from jobvisor.job import Job


@click.command("info", cls=Command)
@ids("the jobs; without one, the current job")
@click.option("--full", is_flag=True, help="all that is known, with times, owner, what it used, and the end of its log")
@click.option("--raw", is_flag=True, help="only libvirt's typed parameters, as virsh domjobinfo --rawstats prints them")
@as_json()
def command(ids: tuple[int | str, ...], full: bool, raw: bool, as_json: bool) -> int:
    """Show what is known of a job, in the layout of `virsh domjobinfo`.

    Of a job that failed the last line is what to try. The exit code tells only whether there is such a job.
    """
    if full + raw + as_json > 1:
        raise click.UsageError("--full, --raw and --json are three ways to show a job; give one of them")
    shown = 0

    def show(job: Job) -> None:
        nonlocal shown
        info = job.info()
        if as_json:
            streams.json_line(info.to_dict())
            return
        from jobvisor_cli.page import info_page, raw_page

        log = "" if raw or not (full or info.cause) else job.log().decode(errors="replace")
        page = raw_page(info) if raw else info_page(info, log, full=full)
        streams.result(("\n" if shown else "") + page)
        shown += 1

    with reach.client() as client:
        return each(client, chosen(client, ids), show)
