"""`jobvisor hold`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, TypeName, as_json, quiet
from jobvisor_cli.sizes import show_age

if TYPE_CHECKING:
    from jobvisor.hold import Hold


@click.command("hold", cls=Command)
@click.option("--reason", metavar="TEXT", help="why: whoever waits is told")
@click.option("--type", type=TypeName(), metavar="TYPE", help="only jobs of this type")
@click.option("--all", "--all-users", "all_users", is_flag=True, help="everybody's jobs, not only yours; for root")
@as_json("one JSON object per hold and line")
@quiet()
def command(reason: str | None, type: str | None, all_users: bool, as_json: bool, quiet: bool) -> None:
    """Let no new job start until `jobvisor release`; without --reason, show what is held.

    Jobs are still accepted, and wait in the queue; those that have begun go on. It lasts beyond the end of the daemon.
    Jobs with --no-daemon know nothing of it. A single queued job is held by `jobvisor suspend ID`.
    """
    if reason is None and (type is not None or all_users):
        raise click.UsageError("say why, with --reason: whoever waits is told")
    with reach.client() as client:
        holds = client.holds() if reason is None else [client.hold(reason, type=type, all_users=all_users)]
    if as_json:
        import msgspec

        for hold in holds:
            streams.json_line(msgspec.to_builtins(hold))
    elif reason is None:
        streams.result("".join(f"{streams.printable(_line(hold))}\n" for hold in holds))
        if not (holds or quiet):
            streams.note("nothing is held")
    elif not quiet:
        streams.note(f"{holds[0].about} are held; {_release(holds[0])} lets them start")


def _line(hold: Hold) -> str:
    return f"{hold.about} are held by {hold.user} for {show_age(time.time() - hold.since)}: {hold.reason}"


def _release(hold: Hold) -> str:
    return " ".join(
        ["jobvisor release", *(["--type", hold.type] if hold.type else []), *(["--all"] if hold.all_users else [])]
    )
