"""`jobvisor completion SHELL`."""

from __future__ import annotations

import click

from jobvisor_cli import streams
from jobvisor_cli.command import Command, Positional

SHELLS = ("bash", "zsh", "fish")


HELP = """\
Print what makes a shell complete jobvisor's words: commands, options, job types, jobs, states and files.

\b
bash  eval "$(jobvisor completion bash)"  in ~/.bashrc
zsh   eval "$(jobvisor completion zsh)"   in ~/.zshrc, behind compinit
fish  jobvisor completion fish | source   in ~/.config/fish/config.fish
"""


@click.command("completion", cls=Command, help=HELP)
@click.argument("shell", cls=Positional, description=", ".join(SHELLS), type=click.Choice(SHELLS), metavar="SHELL")
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    from click.shell_completion import get_completion_class

    program = ctx.find_root().info_name or "jobvisor"
    made = get_completion_class(shell)
    assert made is not None
    script = made(ctx.find_root().command, {}, program, "_JOBVISOR_COMPLETE")
    streams.result(script.source_template % script.source_vars() + "\n")
