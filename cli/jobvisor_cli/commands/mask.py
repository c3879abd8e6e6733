"""`jobvisor mask RESOURCE`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jobvisor.errors import NoSuchJob
from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, Positional, VolumePath
from jobvisor_cli.page import LABEL

if TYPE_CHECKING:
    from jobvisor_workers.protocol import Holder


@click.command("mask", cls=Command)
@click.argument(
    "resource",
    cls=Positional,
    description="the file or block device, vol://POOL/VOLUME or pool://POOL",
    type=VolumePath(),
    metavar="RESOURCE",
)
@click.option("-c", "--connect", metavar="URI", help="the libvirt of vol:// and pool://")
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
def command(resource: str, connect: str | None, as_json: bool) -> None:
    """Show what may start on a volume now, who has it, and which jobs wait for it.

    What may start is told of the jobs of one daemon. Beside these, locks of VMs and other programs are shown as far as
    the kernel tells cheaply; --dry-run of a job finds all.
    """
    with reach.client() as client:
        mask = client.mask(resource, connect=connect)
        if as_json:
            import msgspec

            streams.json_line(msgspec.to_builtins(mask))
            return
        from jobvisor_cli.table import named

        def job(holder: Holder) -> str:
            if holder.kind != "job":
                return str(holder)
            try:
                info = client.job(holder.job or 0).info()
            except NoSuchJob:  # somebody else's, or forgotten just now
                return str(holder)
            return f"{named(info)}, {info.state}"

        rows = [("Resource", mask.resource), ("May start", ", ".join(mask.may_start) or "nothing")]
        blocking = list(dict.fromkeys(mask.forbidden.values()))
        for holder in blocking:
            names = ", ".join(name for name, other in mask.forbidden.items() if other == holder)
            rows.append(("Not now", f"{names}: job {holder.job} is in the way"))
        rows += [("Held by", job(holder)) for holder in mask.held_by]
        rows += [("Waiting", job(holder)) for holder in mask.waiting]
    streams.result("".join(f"{label + ':':<{LABEL}} {streams.printable(text)}\n" for label, text in rows))
