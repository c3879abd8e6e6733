"""One verb for several jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from jobvisor.errors import NoSuchJob, WrongState
from jobvisor.states import ALLOWED, State, Verb
from jobvisor_cli import reach, streams
from jobvisor_cli.ids import chosen, each

if TYPE_CHECKING:
    from jobvisor.client import Client
    from jobvisor.info import JobInfo
    from jobvisor.job import Job
    from jobvisor_cli.command import Decorator, F

DONE = {Verb.SUSPEND: "suspended", Verb.RESUME: "resumed", Verb.ABORT: "aborted", Verb.COMPLETE: "told to finish"}
#: Reason of a queued job that was suspended before it had a worker.
HELD = "held"

Do = Callable[["Job"], "JobInfo"]


def everything(description: str) -> Decorator:
    """The options --all and --all-users."""

    def add(function: F) -> F:
        function = click.option("--all-users", is_flag=True, help="the same of everybody; for root")(function)
        return click.option("-a", "--all", "everything", is_flag=True, help=description)(function)

    return add


def apply(
    verb: Verb,
    ids: Sequence[int | str],
    do: Do,
    settle: Do | None = None,
    /,
    *,
    everything: bool = False,
    all_users: bool = False,
    no_wait: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Returns the exit code. `settle`: what makes it true after all were asked, so that they do it side by side."""
    unnamed = everything or all_users
    if unnamed and ids:
        raise click.UsageError("--all goes without ids")
    done: dict[int, JobInfo] = {}

    def ask(job: Job) -> None:
        try:
            done[job.id] = do(job)
        except (WrongState, NoSuchJob) as error:
            # What ended by itself since the list was made was not named by anybody.
            if not unnamed or (isinstance(error, WrongState) and not State(error.state).final):
                raise

    def tell(job: Job) -> None:
        info = settle(job) if settle else done[job.id]
        if settle and verb is Verb.ABORT and info.state is not State.ABORTED:
            raise WrongState(job.id, info.state, verb, ALLOWED[info.state])
        if as_json:
            streams.json_line(info.to_dict())
        elif not quiet:
            streams.note(_said(verb, info, no_wait))

    with reach.client() as client:
        numbers = _meant(client, verb, all_users) if unnamed else chosen(client, ids)
        if not (numbers or quiet or as_json):
            streams.note(f"no job to {verb}")
        code = each(client, numbers, ask)
        return each(client, done, tell) or code


def _meant(client: Client, verb: Verb, all_users: bool) -> list[int]:
    """The jobs that --all is about."""
    states = {state for state in State if verb in ALLOWED[state]}
    if verb is Verb.ABORT:
        states -= {State.ABORTING}
    return [
        info.id
        for info in client.jobs(state=states, all_users=all_users)
        if info.state is not State.QUEUED or verb is Verb.ABORT or (info.reason == HELD) == (verb is Verb.RESUME)
    ]


def _said(verb: Verb, info: JobInfo, no_wait: bool) -> str:
    from jobvisor_cli.table import named

    if info.state is State.QUEUED:
        return f"{named(info)} {'is held in the queue' if info.reason == HELD else 'may start on its turn'}"
    return f"{named(info)} {'is being ' if no_wait else ''}{DONE[verb]}"
