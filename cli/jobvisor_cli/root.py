"""The top of the command line: its commands by name, each loaded when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from jobvisor import __version__
from jobvisor_cli import reach
from jobvisor_cli.wording import unknown

#: Section → command → one line of help, so that help and completion import no command.
SECTIONS = {
    "Start jobs": {
        "run": "Start a job and stay attached to it until it ends.",
        "start": "Start a job in the background and print its id.",
    },
    "Look at jobs": {
        "list": "List jobs, the newest first.",
        "info": "Show all about a job.",
        "watch": "Show bars of jobs until they end.",
        "wait": "Wait until jobs end, or get into a state.",
        "log": "Print what a job's programs wrote.",
        "mask": "Show what may start on a volume now, and who has it.",
    },
    "Control jobs": {
        "suspend": "Stop jobs where they are.",
        "resume": "Let suspended jobs go on.",
        "abort": "End jobs; they clean up.",
        "complete": "Tell jobs that are ready to finish.",
        "retry": "Start failed or aborted jobs again, as new ones.",
        "forget": "Remove all that is known of ended jobs.",
        "hold": "Let no new job start for a while, or show what is held.",
        "release": "Undo a hold.",
        "current": "Show or choose the job that commands without an id are about.",
    },
    "About jobvisor": {
        "types": "Show the job types, or all about one of them.",
        "config": "Show the daemon's configuration, or let it be read again.",
        "daemon": "Run the daemon in the foreground, or see to the one that runs.",
        "completion": "Print what makes a shell complete jobvisor's words.",
    },
}
COMMANDS = {name: line for section in SECTIONS.values() for name, line in section.items()}

#: What is meant by names that others have for it.
ELSEWHERE = {
    ("abort",): {"cancel", "kill", "domjobabort"},
    ("abort", "suspend"): {"stop"},
    ("suspend",): {"pause"},
    ("resume",): {"continue", "unpause", "bg"},
    ("list",): {"ls", "ps", "jobs"},
    ("info", "list"): {"status"},
    ("info",): {"show", "domjobinfo", "blockjob"},
    ("forget",): {"rm", "remove", "delete"},
    ("watch",): {"attach", "fg", "top", "progress"},
    ("run clone", "start clone"): {"clone", "vol-clone", "copy", "cp", "convert"},
    ("run wipe", "start wipe"): {"wipe", "vol-wipe", "scrub", "shred"},
    ("run checksum", "start checksum"): {"checksum", "sha256sum"},
    ("--help",): {"help"},
    ("--version",): {"version"},
}

EXAMPLES = """\
Examples:
  jobvisor run clone base.qcow2 vm1.qcow2
  jobvisor start wipe /dev/vg0/old
  jobvisor list
  jobvisor suspend 12
"""


class LazyGroup(click.Group):
    """A group that knows its members' names and one line about each, and loads a member only to run it."""

    #: What a member is called in "no … is called x".
    member = "command"

    def lines(self) -> Mapping[str, str]:
        """Name → one line of help, for the help page."""
        raise NotImplementedError

    def meant(self, name: str) -> list[str]:
        """What members do for which other programs, or people, have this name."""
        return []

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.lines())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing:
            raise unknown(self.member, args[0], self.list_commands(ctx), ctx, self.meant(args[0]))
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
    """`jobvisor` itself."""

    def lines(self) -> Mapping[str, str]:
        return COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"jobvisor_cli.commands.{cmd_name}").command
        return command

    def meant(self, name: str) -> list[str]:
        return next((list(meant) for meant, names in ELSEWHERE.items() if name in names), [])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, lines in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<10}", line) for name, line in lines.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("\n" + EXAMPLES)


class Directory(click.ParamType):  # type: ignore[type-arg]
    """Completed by the shell; what is wrong with it the daemon says."""

    name = "directory"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir")]


def _show_help(ctx: click.Context) -> NoReturn:
    """A command that was given nothing at all: its help, as an error."""
    click.echo(ctx.get_help(), err=True)
    ctx.exit(2)


@click.group(
    cls=Root,
    subcommand_metavar="COMMAND ARGUMENTS…",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="jobvisor %(version)s", help="Show the version.")
@click.option("--user", is_flag=True, help="Ask your own daemon (for everybody but root the default).")
@click.option("--system", is_flag=True, help="Ask the system's daemon (for root the default).")
@click.option("--home", metavar="DIR", type=Directory(), help="Ask the daemon that keeps everything there.")
@click.option(
    "--socket", metavar="PATH", type=click.Path(), help="Ask the daemon that listens there, and never start one."
)
def cli(user: bool, system: bool, home: str | None, socket: str | None) -> None:
    """Job control for storage: long operations on disk images and block devices as jobs.

    A job shows its progress, stops and goes on, ends cleanly when it is aborted, and leaves nothing half-made behind,
    whatever is killed. The first command starts a daemon in the background; it leaves when it has no more to do.

    JOBVISOR_HOME and JOBVISOR_SOCKET in the environment are like --home and --socket.
    """
    reach.choose(user=user, system=system, home=home, socket=socket)
