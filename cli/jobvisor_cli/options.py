"""Command lines from declarations: what a job type's fields become, and the options that all types share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from jobvisor_cli import sizes
from jobvisor_cli.command import AFTER, RATE, SIZE, TIME, Positional, VolumePath
from jobvisor_workers.jobtype import Argument


def of_type(arguments: Iterable[Argument]) -> list[click.Parameter]:
    """A required field is a positional argument, one with a default an option, a bool a pair --x/--no-x."""
    return [_positional(field) if field.required else _option(field) for field in arguments]


def common(taken: Iterable[click.Parameter], more: Iterable[click.Option]) -> list[click.Parameter]:
    """The options of every type, and `more`; a name that the type itself has for a field is the type's."""
    names = {parameter.name for parameter in taken}
    return [option for option in [*_common(), *more] if option.name not in names]


def _positional(field: Argument) -> Positional:
    return Positional(field.name, field.description, required=True, type=_kind(field), metavar=field.name.upper())


def _option(field: Argument) -> click.Option:
    flag = field.name.replace("_", "-")
    help_text = field.description
    if field.kind == "bool":
        if field.default:
            help_text += f"  [default: {flag}]"
        # None tells that neither was given: the declaration has the default.
        return click.Option([f"--{flag}/--no-{flag}", field.name], default=None, help=help_text)
    if field.default is not None:
        default = sizes.show_size(field.default) if field.kind == "size" else field.default
        help_text += f"  [default: {default}]"
    return click.Option([f"--{flag}", field.name], type=_kind(field), default=None, help=help_text)


def _kind(field: Argument) -> click.ParamType[Any]:
    if field.choices:
        return click.Choice(field.choices)
    if field.resource:
        return VolumePath()
    return {"str": click.STRING, "int": click.INT, "float": click.FLOAT, "bool": click.BOOL, "size": SIZE}[field.kind]


def _common() -> list[click.Option]:
    return [
        click.Option(
            ["--on-conflict"],
            type=click.Choice(["queue", "wait", "fail"]),
            default="queue",
            help="when a volume is in use: wait behind jobs and flock(1) but refuse when a VM or a mount has it, "
            "wait for anyone, or refuse  [default: queue]",
        ),
        click.Option(["--bandwidth"], type=RATE, metavar="RATE", help="at most so many bytes per second, like 50MiB"),
        click.Option(["--time-limit"], type=TIME, metavar="TIME", help="end the job after 90s, 10m or 2h"),
        click.Option(
            ["--after"],
            type=AFTER,
            metavar="ID,…",
            help="start when these jobs have completed; any:ID: have ended, failed:ID: have not completed",
        ),
        click.Option(
            ["--priority"],
            type=click.IntRange(-100, 100),
            default=0,
            metavar="N",
            help="the higher one goes first, -100 to 100; above 0 for root  [default: 0]",
        ),
        click.Option(["--queue-limit"], type=TIME, metavar="TIME", help="end it if it does not start within that time"),
        click.Option(["--nice"], type=click.IntRange(-20, 19), metavar="N", help="priority of the worker, -20 to 19"),
        click.Option(["--ionice"], type=click.Choice(["idle", "best-effort"]), help="disk priority of the worker"),
        click.Option(
            ["-c", "--connect"],
            metavar="URI",
            help="the libvirt of vol:// and pool://  [default: $LIBVIRT_DEFAULT_URI, or as virsh]",
        ),
        click.Option(["--dry-run"], is_flag=True, help="do all checks and nothing else"),
    ]


def of_run() -> list[click.Option]:
    """What `run` has besides."""
    return [
        click.Option(["--json"], is_flag=True, help="events on stdout, one JSON object per line"),
        click.Option(["--info"], is_flag=True, help="at the end print all that is known of the job"),
        click.Option(["-q", "--quiet"], is_flag=True, help="say nothing but errors and results"),
        click.Option(
            ["--progress"],
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            help="a bar on a terminal, else only changes of state; always: also lines of progress, never: no bar  "
            "[default: auto]",
        ),
        click.Option(["--no-daemon"], is_flag=True, help="the job is this command's own: it stops and dies with it"),
    ]


def of_start() -> list[click.Option]:
    """What `start` has besides."""
    return [
        click.Option(["--json"], is_flag=True, help="the job as a JSON object instead of its id"),
        click.Option(["--no-wait"], is_flag=True, help="do not wait for the job's checks"),
    ]
