"""`jobvisor log [ID]`."""

from __future__ import annotations

import click

from jobvisor.errors import WaitTimeout
from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, Positional
from jobvisor_cli.ids import JobId, chosen

#: Seconds between two looks at a log that grows.
LOOK = 0.3


@click.command("log", cls=Command)
@click.argument(
    "id",
    cls=Positional,
    description="the job; without one, the current job",
    required=False,
    type=JobId(),
    metavar="[ID]",
)
@click.option("-f", "--follow", is_flag=True, help="go on with what is written, until the job ends")
def command(id: int | str | None, follow: bool) -> None:
    """Print what a job's worker and its programs wrote.

    Of a long log only the end is kept. ^C ends the printing, never the job.
    """
    with reach.client() as client:
        (number,) = chosen(client, [] if id is None else [id])
        job = client.job(number)
        offset = 0
        while True:
            ended = not follow or job.info().final  # asked first: what it wrote until then is in the log
            piece = job.log(offset)
            streams.raw(piece)
            offset += len(piece)
            if ended:
                return
            try:
                job.wait(LOOK)
            except WaitTimeout:
                pass
