"""`jobvisor start TYPE …`: one job, left to the daemon."""

from __future__ import annotations

from typing import Any

import click

from jobvisor_cli import exits, options, reach, streams
from jobvisor_cli.table import named
from jobvisor_cli.type_group import TypeGroup
from jobvisor_workers.jobtype import JobType


def _start(job: JobType, _typed: dict[str, Any], *, json: bool = False, no_wait: bool = False, **values: Any) -> int:
    if (job.has_stdin or job.has_stdout) and not values.get("dry_run"):
        what = "send its standard input" if job.has_stdin else "take its standard output"
        raise click.UsageError(f"start {job.name()}: nobody would {what}; use jobvisor run, or the API")
    with reach.client() as client:
        started = client.start(job, **values)
        info = started.info() if no_wait else started.wait(until="checked")
    failed = info.final and not info.ok
    if json:
        streams.json_line(info.to_dict())
    elif not failed:
        streams.result(f"{info.id}\n")
    if failed:
        streams.complain(f"{exits.why(info, named(info))} (job {info.id})")
    return exits.code(info) if failed else 0


command = TypeGroup(
    "start",
    _start,
    options.of_start,
    help="""Start a job in the background and print its id.

    It returns once the job's checks are done, or the job waits for something: what is wrong with the arguments or with
    the files is said at once. The exit code is then 1, or 6 when a volume is in use.

    `jobvisor start TYPE --help` shows the arguments of a type.
    """,
)
