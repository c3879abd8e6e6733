"""`jobvisor run TYPE …`: one job, attached to the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from jobvisor_cli import options
from jobvisor_cli.loading import load, one_line
from jobvisor_cli.root import LazyGroup
from jobvisor_workers import registry
from jobvisor_workers.jobtype import JobType, arguments


class RunGroup(LazyGroup):
    """A member for each job type, made from the type's declaration when it is called for."""

    member = "job type"

    def lines(self) -> Mapping[str, str]:
        return {name: one_line(name) for name in registry.names()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return registry.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return RunType(load(cmd_name))
        except registry.UnknownType:
            return None


class RunType(click.Command):
    """`jobvisor run clone`, and its help page."""

    def __init__(self, job_type: type[JobType]) -> None:
        self.job_type = job_type
        self.own = options.of_type(arguments(job_type))
        self.common = options.common(self.own)
        super().__init__(job_type.name(), params=[*self.own, *self.common], callback=self._start, help=job_type.__doc__)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        positional = [each for each in self.own if isinstance(each, click.Argument)]
        named = [each for each in self.own if isinstance(each, click.Option)]
        helps = [each for each in (self.get_help_option(ctx),) if each]
        for title, group in (
            ("Arguments", positional),
            (f"Options of {self.name}", named),
            ("Common options", [*self.common, *helps]),
        ):
            if group:
                with formatter.section(title):
                    formatter.write_dl(options.described(group, ctx), col_max=options.COLUMN)

    def _start(self, **values: Any) -> int:
        own = {parameter.name: values.pop(parameter.name or "") for parameter in self.own}
        given = {name: value for name, value in own.items() if name and value is not None}
        if values.get("json") and values.get("info"):
            raise click.UsageError("--info says nothing more with --json: the last event has the job's info")
        try:
            job = registry.convert(self.job_type.name(), given)
        except msgspec.ValidationError as error:
            raise click.UsageError(self._explained(str(error)))
        from jobvisor_cli.attached import attach

        return attach(job, given, **values)

    def _explained(self, message: str) -> str:
        """Msgspec's words for a value out of bounds, with the name that the user typed."""
        match = re.fullmatch(r"(.*) - at `\$\.(\w+)`", message)
        if not match:
            return message
        name = next((max(each.opts, key=len) for each in self.own if each.name == match[2]), match[2])
        return f"{name if name.startswith('-') else name.upper()}: {match[1][:1].lower()}{match[1][1:]}"


@click.group(cls=RunGroup, subcommand_metavar="TYPE ARGUMENTS…")
def run() -> None:
    """Start a job and stay attached to it until it ends.

    The job belongs to this command: ^C aborts it (a second ^C leaves it to itself), ^Z suspends it, and fg or bg let it
    go on. The exit code is 0 when the job completed, 1 when it failed, 2 for a wrong command line, 3 when it was
    aborted, 6 when a volume is in use.

    `jobvisor run TYPE --help` shows the arguments of a type.
    """
