"""Errors of the command line in one line: what is wrong, what may have been meant, where the help is."""

from __future__ import annotations

from collections.abc import Iterable

import click

from jobvisor.errors import JobvisorError, NoSuchJob


def explained(error: JobvisorError) -> str:
    """The library's error, with what only the command line can add."""
    if isinstance(error, NoSuchJob):
        return f"{error}; jobvisor list --all shows those that there are"
    return str(error)


def sentence(error: click.ClickException) -> str:
    """Click's error in this program's style."""
    match error:
        case click.NoSuchOption():
            text = f"no such option: {error.option_name}"
            if error.possibilities:
                text += suggestion(error.possibilities)
            elif error.option_name[1:].isdecimal():
                text = f"{error.option_name} is no job id, which is a number above 0"
            elif not error.option_name.startswith("--"):
                text += " (a file whose name begins with - is given as ./-NAME)"
        case click.MissingParameter(param=click.Argument() as argument):
            text = f"missing argument {argument.make_metavar(error.ctx) if error.ctx else argument.name}"
        case click.BadParameter(param=click.Argument() as argument):
            text = f"{(argument.metavar or argument.name or 'argument').strip('[]….').upper()}: {_plain(error.message)}"
        case click.BadParameter(param=click.Parameter() as option):
            text = f"{max(option.opts, key=len)}: {_plain(error.message)}"
        case _:
            text = _plain(error.format_message())
    if isinstance(error, click.UsageError) and error.ctx:
        text += f"; see {error.ctx.command_path} --help"
    return text


def unknown(
    what: str, name: str, known: Iterable[str], ctx: click.Context, meant: Iterable[str] = ()
) -> click.UsageError:
    """A name that nothing is called by. `meant`: what is meant by it elsewhere."""
    import difflib

    known = sorted(known)
    close = list(meant) or difflib.get_close_matches(name, known, 3)
    return click.UsageError(
        f"no {what} is called {name!r}" + (suggestion(close) or f" (there are {', '.join(known)})"), ctx
    )


def suggestion(names: Iterable[str]) -> str:
    """What may have been meant; empty when nothing comes close."""
    text = " or ".join(names)
    return f" (did you mean {text}?)" if text else ""


def _plain(message: str) -> str:
    """As the middle of a sentence."""
    message = message.strip().removesuffix(".")
    return message[:1].lower() + message[1:] if message[1:2].islower() else message
