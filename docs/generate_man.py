"""Writes docs/jobvisor.1 from what --help is made of; run it when a command, an option or a job type has changed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from jobvisor import __version__, errors
from jobvisor_cli import options
from jobvisor_cli.command import Command, described
from jobvisor_cli.root import EXAMPLES, SECTIONS, cli
from jobvisor_cli.type_group import TypeGroup
from jobvisor_workers import registry
from jobvisor_workers.jobtype import JobType, arguments

PAGE = Path(__file__).with_name("jobvisor.1")

#: Beside those of errors.
EXITS = [
    ("0", "done; of a job: it completed"),
    ("130, 143", "ended by ^C or SIGTERM; run aborts its job first"),
]
ENVIRONMENT = [
    ("JOBVISOR_HOME", "as --home"),
    ("JOBVISOR_SOCKET", "as --socket"),
    ("XDG_STATE_HOME", "where a user's home lies, ~/.local/state by default"),
]
FILES = [
    ("/var/lib/jobvisor", "home of the system's daemon"),
    ("/run/jobvisor/api.sock", "its socket"),
    ("/etc/jobvisor/config.toml", "its configuration; config.toml in a home is that of the home's daemon"),
    ("~/.local/state/jobvisor", "home of a user's daemon; its socket is run/api.sock below it, its log daemon.log"),
]


def page() -> str:
    """The whole page."""
    return "\n".join([*_lines(), ""])


def _lines() -> Iterator[str]:
    root = click.Context(cli, info_name="jobvisor", **cli.context_settings)
    yield r".\" Made by docs/generate_man.py from what --help is made of: edit that, and run it."
    yield f'.TH JOBVISOR 1 "" "jobvisor {__version__}" "User Commands"'
    yield from (".ad l", ".nh")
    yield from (".SH NAME", r"jobvisor \- job control for storage")
    yield from (".SH SYNOPSIS", r"\fBjobvisor\fR [\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]")
    yield ".SH DESCRIPTION"
    yield from _text(cli.help or "")
    yield ".SH OPTIONS"
    yield from _table(described(cli.get_params(root), root))
    for title, names in SECTIONS.items():
        yield f".SH {title.upper()}"
        for name in names:
            yield from _command(name, root)
    yield from _types(root)
    yield ".SH EXIT STATUS"
    yield from _table(sorted([*EXITS, *_exit_codes()], key=lambda row: int(row[0].partition(",")[0])))
    yield ".SH ENVIRONMENT"
    yield from _table(ENVIRONMENT)
    yield ".SH FILES"
    yield from _table(FILES)
    yield ".SH EXAMPLES"
    yield from _verbatim(inspect.cleandoc(EXAMPLES.partition("\n")[2]))
    yield from (".SH SEE ALSO", r"\fBvirsh\fR(1), \fBqemu\-img\fR(1), \fBflock\fR(1)")


def _command(name: str, root: click.Context) -> Iterator[str]:
    command = cli.get_command(root, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=root)
    yield f".SS {_roff(' '.join([context.command_path, *command.collect_usage_pieces(context)]))}"
    yield from _text(command.help or "")
    if isinstance(command, TypeGroup):
        yield from (".PP", "Options besides those of the job type:")
        yield from _table(described(options.common([], command.more()), context))
        return
    assert isinstance(command, Command)
    for group in command.groups(context).values():
        yield from _table(row for row in described(group, context) if "--help" not in row[0])


def _types(root: click.Context) -> Iterator[str]:
    yield from (".SH JOB TYPES", "Packages may bring more of them: \\fBjobvisor types\\fR lists what there is.")
    for name in registry.BUILT_IN:
        job_type: type[JobType] = registry.get(name)
        own = options.of_type(arguments(job_type))
        words = [each.make_metavar(root) for each in own if isinstance(each, click.Argument)]
        yield f".SS {_roff(' '.join([name, *words]))}"
        yield from _text(inspect.getdoc(job_type) or "")
        yield from _table(described(own, root))


def _exit_codes() -> Iterator[tuple[str, str]]:
    meanings: dict[str, list[str]] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.fullmatch(r"[├└]── \w+ +(\d) +(.+?)(?:  +.*)?", line):
            meanings.setdefault(found[1], []).append(found[2])
    return ((code, "; ".join(texts)) for code, texts in meanings.items())


def _text(text: str) -> Iterator[str]:
    """Paragraphs; `words` in bold, and what click is told not to wrap as it is."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield from _verbatim(paragraph.removeprefix("\b\n"))
        else:
            yield ".PP"
            yield re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _roff(" ".join(paragraph.split())))


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for left, right in rows:
        yield from (".TP", rf"\fB{_roff(left)}\fR", _roff(" ".join(right.split())) or r"\&")


def _verbatim(text: str) -> Iterator[str]:
    yield from (".PP", ".nf", ".RS 2", *map(_roff, text.splitlines()), ".RE", ".fi")


def _roff(text: str) -> str:
    """No character of it means anything to roff, which is told of others than ASCII by number."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("|", r"|\:")
    text = "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in text)
    return rf"\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="ascii")
