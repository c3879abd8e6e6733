"""Writes docs/states.md from the tables that the supervisor works with; run it when one of them has changed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from jobvisor import errors
from jobvisor.states import ALLOWED, MEANING, NEXT, Cause, State, Verb

PAGE = Path(__file__).with_name("states.md")

CAUSES = {
    Cause.ERROR: "the worker says what is wrong: with a file, an argument, an image; or a defect of the job type",
    Cause.BUSY: "a volume is in somebody else's use; `holder` says whose",
    Cause.NO_SPACE: "the filesystem, a quota or a file-size limit is at its end",
    Cause.IO_ERROR: "the device or the filesystem reported a defect",
    Cause.TIME_LIMIT: "the job's own time limit was over",
    Cause.QUEUE_LIMIT: "the job was queued for longer than it was to wait",
    Cause.DEPENDENCY: "`failed`: a job that it was to come after did not complete. `aborted`: it was for the case that "
    "another job fails, and that completed",
    Cause.STALLED: "reserved; nothing gives it yet",
    Cause.OOM: "reserved; nothing gives it yet: what the kernel kills for want of memory is `killed`",
    Cause.CRASHED: "the worker died of its own doing (SIGSEGV, SIGABRT…), or left without a word: see its log",
    Cause.KILLED: "the worker got a SIGKILL that jobvisor did not send: from somebody, or from a kernel out of memory",
    Cause.OUTSIDER_SIGNAL: "somebody else's signal. `aborted`: the worker got TERM, INT or HUP; `ended_by` names the "
    "sender where the worker could still say it. `failed`: it died of another one, or one of its programs was ended",
    Cause.WORKER_LOST: "the worker died while nobody watched, or three of them died before they could begin",
    Cause.HOST_REBOOT: "the host was started anew while the job ran",
}

TEMPLATE = """\
<!-- Made by docs/generate_states.py from supervisor/jobvisor/states.py and errors.py: edit those, and run it. -->
# States, verbs, causes, exit codes

## What a state allows

{states}

A verb returns when it is *true*: `suspend` when every thread was seen stopped, `abort` when the last process is gone.
With `wait=False` it returns when it is requested. One that does not fit raises `WrongState`, which says what would.

- `suspend` of a `queued` job holds it in the queue, and only then is there something to `resume`. Of a `starting` job
  it waits for the worker. A job type that a stop would harm (`can_suspend = False`) answers with `UsageError`.
  So does a job while libvirtd does its work (`delegated` in its info): no stop would reach that.
- `abort` of an `aborting` job is there for `force=True`: SIGKILL now. A job whose work libvirtd does stays `aborting`
  until that is done, since nobody can stop it; no grace period ends it before.
- `retry` makes a new job, whose `retry_of` is the old one's id. A job type that is never to be repeated as it was
  (`retry = "never"`) answers with `UsageError`.

## Which state may follow which

{transitions}

Every accepted job reaches exactly one of the last three, and stays there. A suspended job returns to the state that it
was stopped in. One whose checks find further files (a backing chain) goes from `running` back to `waiting` when these
are in use.

## Causes

Why a job is `failed`, or `aborted` by somebody else; null when it completed or was aborted on request.

{causes}

## Errors and exit codes

{errors}

All derive from `JobvisorError` and have `exit_code` and a stable word, `code`.

Of several jobs in one command all that can be done is done, with one line on stderr for each that cannot; the exit
code is that of the first of them.

`jobvisor run`, `wait` and `watch` leave with 0 when the job completed, 1 when it failed, 3 when it was aborted, 6 when
it failed because a volume is in use; `wait` also with 8 when `--timeout` was over, and 7 when the job ended without
getting into the state that was waited for. `start` leaves with 0 once the job's checks were passed or it waits for
something, with 1 or 6 when the checks failed. 2 is a wrong command line: there is no job then.

^C and SIGTERM: `run` aborts its job and then dies of that signal, so that a shell's loop ends: 130 or 143. Other
commands die of it at once, and their jobs go on.
"""


def page() -> str:
    """The whole page."""
    states = [
        [f"`{state}`", MEANING[state], *("✔" if verb in ALLOWED[state] else "–" for verb in Verb)] for state in State
    ]
    transitions = [[f"`{state}`", _names(NEXT[state])] for state in State]
    return TEMPLATE.format(
        states=_table(["state", "meaning", *Verb], states),
        transitions=_table(["from", "to"], transitions),
        causes=_table(["cause", "what happened"], [[f"`{cause}`", CAUSES[cause]] for cause in Cause]),
        errors=_table(["error", "exit code", "word", "meaning", "fields, bases"], _errors()),
    )


def _errors() -> list[list[str]]:
    """One row per line of the tree in the module's docstring, which has to agree with the classes."""
    rows = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.fullmatch(r"[├└]── (\w+) +(\d) +(.+?)(?:  +(.*))?", line):
            name, exit_code, meaning, more = found.groups(default="")
            error: type[errors.JobvisorError] = getattr(errors, name)
            assert error.exit_code == int(exit_code), name
            rows.append([f"`{name}`", exit_code, f"`{error.code}`", meaning, more])
    assert len(rows) == len(errors.JobvisorError.__subclasses__())
    return rows


def _names(states: frozenset[State]) -> str:
    return ", ".join(f"`{state}`" for state in State if state in states) or "–"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
