"""Jobs on a command line: their ids, the word `current`, and one verb for several of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from jobvisor.errors import JobvisorError, Unreachable
from jobvisor_cli import streams
from jobvisor_cli.wording import explained

if TYPE_CHECKING:
    from jobvisor.client import Client
    from jobvisor.job import Job

CURRENT = "current"
#: Longer ones are no ids; Python would even refuse to read them.
_ID = r"[0-9]{1,30}"


class NoCurrentJob(click.ClickException):
    """Nothing was started yet, or it was forgotten."""

    exit_code = 4

    def __init__(self) -> None:
        super().__init__("there is no current job; name one by its id, see jobvisor list --all")


class JobId(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    """An id, or `current`. `verb`: only jobs that allow it are offered for completion; None: all."""

    name = "id"

    def __init__(self, verb: str | None = None) -> None:
        self._verb = verb

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int) or value == CURRENT:
            return CURRENT if value == CURRENT else int(value)
        if not re.fullmatch(_ID, value):
            self.fail(f"{value!r} is no job id; an id is a number, or the word current", param, ctx)
        return int(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from jobvisor_cli.glimpse import job_items

        return job_items(self._verb, incomplete)


def chosen(client: Client, ids: Sequence[int | str]) -> list[int]:
    """The ids that are meant, each once; without any the current job. Raises NoCurrentJob."""
    found: dict[int, None] = {}
    for word in ids or [CURRENT]:
        if isinstance(word, int):
            found[word] = None
        elif current := client.current():
            found[current.id] = None
        else:
            raise NoCurrentJob
    return list(found)


def each(client: Client, ids: Iterable[int], do: Callable[[Job], int | None]) -> int:
    """All that can be done is done: one line of error for each that cannot, and the code of the first.

    `do` may return a code of its own.
    """
    code = 0
    for number in ids:
        try:
            done = do(client.job(number))
        except Unreachable:
            raise
        except JobvisorError as error:
            streams.complain(explained(error))
            done = error.exit_code
        code = code or done or 0
    return code
