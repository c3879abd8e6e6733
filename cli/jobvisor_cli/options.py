"""Command lines from declarations: what a job type's fields become, and the options that all types share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from jobvisor_cli import sizes
from jobvisor_workers.jobtype import Argument


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """A value in a notation of `sizes`."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class VolumePath(click.ParamType):  # type: ignore[type-arg]
    """A path as it was typed; the shell completes it, and only the worker looks what is there."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


#: Width of the left column of a help page; "--reflink / --no-reflink" fits.
COLUMN = 24

SIZE = Parsed("size", sizes.parse_size)
RATE = Parsed("rate", sizes.parse_rate)
TIME = Parsed("time", sizes.parse_time)


def of_type(arguments: Iterable[Argument]) -> list[click.Parameter]:
    """A required field is a positional argument, one with a default an option, a bool a pair --x/--no-x."""
    return [_positional(field) if field.required else _option(field) for field in arguments]


def common(taken: Iterable[click.Parameter]) -> list[click.Parameter]:
    """The options of every type; a name that the type itself has for a field is the type's."""
    names = {parameter.name for parameter in taken}
    return [option for option in _common() if option.name not in names]


def described(parameters: Iterable[click.Parameter], ctx: click.Context) -> list[tuple[str, str]]:
    """Two columns for a help page."""
    rows = []
    for parameter in parameters:
        if isinstance(parameter, click.Argument):
            rows.append((parameter.make_metavar(ctx), getattr(parameter, "description", "")))
        elif isinstance(parameter, click.Option):
            rows += [row for row in (parameter.get_help_record(ctx),) if row]
    return rows


class Positional(click.Argument):
    """Click's arguments have no help text of their own."""

    def __init__(self, name: str, description: str, **options: Any) -> None:
        super().__init__([name], **options)
        self.description = description


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
        click.Option(["--nice"], type=click.IntRange(-20, 19), metavar="N", help="priority of the worker, -20 to 19"),
        click.Option(["--ionice"], type=click.Choice(["idle", "best-effort"]), help="disk priority of the worker"),
        click.Option(["--dry-run"], is_flag=True, help="do all checks and nothing else"),
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
        click.Option(
            ["--no-daemon"], is_flag=True, help="run the job in this command's own process, as it is always done yet"
        ),
    ]
