"""What commands are made of: help pages with arguments, values in people's notations, options that many share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from jobvisor.errors import JobvisorError
from jobvisor.states import MEANING, State
from jobvisor_cli import sizes
from jobvisor_cli.ids import JobId
from jobvisor_cli.wording import suggestion

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:  # a Protocol takes long to make
    from typing import Protocol

    class Decorator(Protocol):
        """Adds a parameter to a command."""

        def __call__(self, function: F, /) -> F: ...


#: Width of the left column of a help page; "--reflink / --no-reflink" fits.
COLUMN = 24


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """A value in a notation of `sizes`."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = Parsed("size", sizes.parse_size)
RATE = Parsed("rate", sizes.parse_rate)
TIME = Parsed("time", sizes.parse_time)
SPAN = Parsed("time", sizes.parse_span)


class After(click.ParamType):  # type: ignore[type-arg]
    """Jobs to come after: 7,any:8."""

    name = "after"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from jobvisor.asking import after_of

        try:
            return after_of(value)
        except JobvisorError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from jobvisor_cli.glimpse import job_items

        return job_items(None, incomplete)


AFTER = After()


class VolumePath(click.ParamType):  # type: ignore[type-arg]
    """A path as it was typed; the shell completes it, and only the worker looks what is there."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class TypeName(click.ParamType):  # type: ignore[type-arg]
    """The name of a job type; it is not looked up, as a job may be of a type that is not installed any more."""

    name = "type"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from jobvisor_workers import registry

        return [CompletionItem(name) for name in registry.names() if name.startswith(incomplete)]


class StateName(click.ParamType):  # type: ignore[type-arg]
    """A job's state."""

    name = "state"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> State:
        try:
            return State(value)
        except ValueError:
            from difflib import get_close_matches

            close = suggestion(get_close_matches(value, State, 1)) or f" (there are {', '.join(State)})"
            self.fail(f"no state is called {value!r}{close}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(str(name), help=MEANING[name]) for name in State if name.startswith(incomplete)]


class Positional(click.Argument):
    """Click's arguments have no help text of their own."""

    def __init__(self, name: str | list[str], description: str = "", **options: Any) -> None:
        super().__init__([name] if isinstance(name, str) else name, **options)
        self.description = description


class Command(click.Command):
    """A command whose help page also has a line for each argument."""

    def groups(self, ctx: click.Context) -> dict[str, list[click.Parameter]]:
        """Title → parameters, for help and man page."""
        parameters = self.get_params(ctx)
        return {
            "Arguments": [each for each in parameters if isinstance(each, click.Argument)],
            "Options": [each for each in parameters if isinstance(each, click.Option)],
        }

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in self.groups(ctx).items():
            if group:
                with formatter.section(title):
                    formatter.write_dl(described(group, ctx), col_max=COLUMN)


def described(parameters: Iterable[click.Parameter], ctx: click.Context) -> list[tuple[str, str]]:
    """Two columns for a help page."""
    rows = []
    for parameter in parameters:
        if isinstance(parameter, click.Argument):
            rows.append((parameter.make_metavar(ctx), getattr(parameter, "description", "")))
        elif isinstance(parameter, click.Option):
            rows += [row for row in (parameter.get_help_record(ctx),) if row]
    return rows


def ids(description: str, *, verb: str | None = None, required: bool = False) -> Decorator:
    """The argument ID…; `verb`: what is to be done to the jobs."""
    metavar = "ID…" if required else "[ID…]"
    return click.argument(
        "ids", cls=Positional, description=description, nargs=-1, type=JobId(verb), required=required, metavar=metavar
    )


def as_json(description: str = "one JSON object per job and line") -> Decorator:
    return click.option("--json", "as_json", is_flag=True, help=description)


def quiet(description: str = "say nothing but errors") -> Decorator:
    return click.option("-q", "--quiet", is_flag=True, help=description)


def no_wait(description: str) -> Decorator:
    return click.option("--no-wait", is_flag=True, help=description)
