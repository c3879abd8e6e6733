"""`jobvisor list`."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

import click

from jobvisor.states import FINAL, State
from jobvisor_cli import reach, streams
from jobvisor_cli.command import SPAN, Command, StateName, TypeName, VolumePath, as_json, quiet


@click.command("list", cls=Command)
@click.option("-a", "--all", "ended", is_flag=True, help="also jobs that have ended")
@click.option("--failed", is_flag=True, help="only jobs that failed")
@click.option("--state", type=StateName(), multiple=True, help="only jobs in this state; may be given several times")
@click.option("--type", type=TypeName(), metavar="TYPE", help="only jobs of this type")
@click.option("--resource", type=VolumePath(), metavar="PATH", help="only jobs on this volume")
@click.option("--since", type=SPAN, metavar="TIME", help="jobs that were there in the last 12h, 30m or 7d")
@click.option("-n", "limit", type=click.IntRange(min=1), metavar="NUMBER", help="only the newest so many")
@click.option("--all-users", is_flag=True, help="everybody's jobs; for root")
@as_json()
@quiet("print the ids alone")
def command(
    ended: bool,
    failed: bool,
    state: tuple[State, ...],
    since: float | None,
    as_json: bool,
    quiet: bool,
    all_users: bool,
    **filters: Any,
) -> None:
    """List your jobs that have not ended, the newest first.

    On a terminal names are shortened to fit; in a pipe they are whole paths.
    """
    if failed and state:
        raise click.UsageError("--failed is --state failed; give one of them")
    states = {State.FAILED} if failed else set(state) or set(State)
    if not (ended or failed or state or since is not None):
        states -= FINAL
    now = time.time()
    with reach.client() as client:
        jobs = client.jobs(
            state=None if states == set(State) else states,
            since=None if since is None else datetime.fromtimestamp(now - since, UTC),
            all_users=all_users,
            **filters,
        )
    if as_json:
        for job in jobs:
            streams.json_line(job.to_dict())
    elif quiet:
        streams.result("".join(f"{job.id}\n" for job in jobs))
    elif jobs:
        from jobvisor_cli.table import table

        streams.result(table(jobs, now, _width(), users=all_users))
    elif sys.stdout is not None and sys.stdout.isatty():
        streams.note(_none(ended, bool(failed or state or since is not None or any(filters.values()))))


def _width() -> int | None:
    """Of the terminal; None off a terminal."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) else os.get_terminal_size(1).columns or 80


def _none(ended: bool, filtered: bool) -> str:
    if filtered:
        return "no such jobs"
    return "no jobs yet" if ended else "no jobs now; --all also lists those that have ended"
