"""A command that starts a job: a member for each job type, made from the type's declaration."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import click
import msgspec

from jobvisor_cli import options
from jobvisor_cli.command import Command
from jobvisor_cli.loading import load, one_line
from jobvisor_cli.root import LazyGroup
from jobvisor_workers import registry
from jobvisor_workers.jobtype import JobType, arguments

#: What is done with a valid job: (job, arguments as they were typed, **options) → exit code.
Begin = Callable[..., int]


class TypeGroup(LazyGroup):
    """`jobvisor run`, `jobvisor start`."""

    member = "job type"

    def __init__(self, name: str, begin: Begin, more: Callable[[], list[click.Option]], *, help: str) -> None:
        """`more`: the options besides those of all types."""
        super().__init__(name, help=inspect.cleandoc(help), subcommand_metavar="TYPE ARGUMENTS…")
        self._begin, self.more = begin, more

    def lines(self) -> Mapping[str, str]:
        return {name: one_line(name) for name in registry.names()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return registry.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return TypeCommand(load(cmd_name), self._begin, self.more())
        except registry.UnknownType:
            return None


class TypeCommand(Command):
    """`jobvisor run clone`, and its help page."""

    def __init__(self, job_type: type[JobType], begin: Begin, more: list[click.Option]) -> None:
        self.job_type, self._begin = job_type, begin
        self.own = options.of_type(arguments(job_type))
        self.common = options.common(self.own, more)
        super().__init__(
            job_type.name(), params=[*self.own, *self.common], callback=self._called, help=job_type.__doc__
        )

    def groups(self, ctx: click.Context) -> dict[str, list[click.Parameter]]:
        helps = [each for each in (self.get_help_option(ctx),) if each]
        return {
            "Arguments": [each for each in self.own if isinstance(each, click.Argument)],
            f"Options of {self.name}": [each for each in self.own if isinstance(each, click.Option)],
            "Common options": [*self.common, *helps],
        }

    def _called(self, **values: Any) -> int:
        own = {parameter.name: values.pop(parameter.name or "") for parameter in self.own}
        given = {name: value for name, value in own.items() if name and value is not None}
        try:
            job = registry.convert(self.job_type.name(), given)
        except msgspec.ValidationError as error:
            raise click.UsageError(self._explained(str(error)))
        return self._begin(job, given, **values)

    def _explained(self, message: str) -> str:
        """Msgspec's words for a value out of bounds, with the name that the user typed."""
        match = re.fullmatch(r"(.*) - at `\$\.(\w+)`", message)
        if not match:
            return message
        name = next((max(each.opts, key=len) for each in self.own if each.name == match[2]), match[2])
        return f"{name if name.startswith('-') else name.upper()}: {match[1][:1].lower()}{match[1][1:]}"
