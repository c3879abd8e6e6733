"""The top of the command line: its commands by name, each loaded when it is called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from jobvisor import __version__
from jobvisor_cli.wording import unknown

#: name → (module and object, one line of help), so that help and completion import no command.
COMMANDS = {
    "run": ("jobvisor_cli.commands.run:run", "Start a job and stay attached to it until it ends."),
    "types": ("jobvisor_cli.commands.types:types", "Show the job types, or all about one of them."),
}

EXAMPLES = """\
Examples:
  jobvisor run clone base.qcow2 vm1.qcow2
  jobvisor run checksum --algorithm sha512 /dev/vg0/web1

For completion of words in bash:
  eval "$(_JOBVISOR_COMPLETE=bash_source jobvisor)"
"""


class LazyGroup(click.Group):
    """A group that knows its members' names and one line about each, and loads a member only to run it."""

    #: What a member is called in "no … is called x".
    member = "command"

    def lines(self) -> Mapping[str, str]:
        """Name → one line of help, for the help page."""
        raise NotImplementedError

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.lines())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing:
            raise unknown(self.member, args[0], self.list_commands(ctx), ctx)
        return args[0], command, args[1:]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            _show_help(ctx)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(f"{self.member.capitalize()}s"):
            formatter.write_dl(sorted(self.lines().items()), col_max=20)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name) for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


class Root(LazyGroup):
    def lines(self) -> Mapping[str, str]:
        return {name: text for name, (_, text) in COMMANDS.items()}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("\n" + EXAMPLES)


def _show_help(ctx: click.Context) -> NoReturn:
    """A command that was given nothing at all: its help, as an error."""
    click.echo(ctx.get_help(), err=True)
    ctx.exit(2)


def _set_home(_ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        os.environ["JOBVISOR_HOME"] = os.path.abspath(value)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="jobvisor %(version)s", help="Show the version.")
@click.option(
    "--home", metavar="DIR", expose_value=False, callback=_set_home, help="Keep everything there.  [env: JOBVISOR_HOME]"
)
def cli() -> None:
    """Job control for storage: long operations on disk images and block devices as jobs.

    A job shows its progress, stops and goes on (^Z, fg), ends cleanly when it is aborted (^C), and leaves nothing
    half-made behind, whatever is killed.
    """
