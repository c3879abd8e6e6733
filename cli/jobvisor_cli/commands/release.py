"""`jobvisor release`."""

from __future__ import annotations

import click

from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, TypeName, quiet


@click.command("release", cls=Command)
@click.option("--type", type=TypeName(), metavar="TYPE", help="the hold on this type")
@click.option("--all", "--all-users", "all_users", is_flag=True, help="the hold on everybody's jobs; for root")
@quiet()
def command(type: str | None, all_users: bool, quiet: bool) -> None:
    """Undo a hold: exactly the one that was made with the same words."""
    with reach.client() as client:
        client.release(type=type, all_users=all_users)
    if not quiet:
        streams.note("released")
