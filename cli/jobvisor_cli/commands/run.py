"""`jobvisor run TYPE …`: one job, attached to the terminal."""

from __future__ import annotations

from typing import Any

import click

from jobvisor_cli import options, piped
from jobvisor_cli.type_group import TypeGroup
from jobvisor_workers.jobtype import JobType


def _run(job: JobType, typed: dict[str, Any], **values: Any) -> int:
    if values.get("json") and values.get("info"):
        raise click.UsageError("--info says nothing more with --json: the last event has the job's info")
    if not values.get("dry_run"):
        piped.check(job, json=bool(values.get("json")), info=bool(values.get("info")))
    if values.get("no_daemon") and values.get("after"):
        raise click.UsageError("--after is about jobs of a daemon: it goes without --no-daemon")
    from jobvisor_cli.attached import attach

    return attach(job, typed, **values)


command = TypeGroup(
    "run",
    _run,
    options.of_run,
    help="""Start a job and stay attached to it until it ends.

    ^C aborts the job (a second ^C leaves it to itself), ^Z suspends it, and fg or bg let it go on. When the terminal
    is closed it goes on. The exit code is 0 when the job completed, 1 when it failed, 2 for a wrong command line, 3
    when it was aborted, 6 when a volume is in use.

    `jobvisor run TYPE --help` shows the arguments of a type.
    """,
)
