"""Writes docs/states.md from the tables that the supervisor works with; a test compares the two.

    python docs/generate_states.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jobvisor import errors
from jobvisor.states import ALLOWED, FINAL, MEANING, NEXT, Cause, State, Verb

PAGE = Path(__file__).with_name("states.md")

CAUSES = {
    Cause.ERROR: "the worker says what is wrong: with a file, an argument, an image; or a defect of the job type",
    Cause.BUSY: "a volume is in somebody else's use; `holder` says whose",
    Cause.NO_SPACE: "the filesystem, a quota or a file-size limit is at its end",
    Cause.IO_ERROR: "the device or the filesystem reported a defect",
    Cause.TIME_LIMIT: "the job's own time limit was over",
    Cause.STALLED: "reserved: nothing gives it yet",
    Cause.OOM: "reserved: nothing gives it yet; a worker that the kernel kills for want of memory is `killed`",
    Cause.CRASHED: "the worker died of its own doing (SIGSEGV, SIGABRT…), or left without a word; its log may tell more",
    Cause.KILLED: "the worker got a SIGKILL that jobvisor did not send: from a person, or the kernel out of memory",
    Cause.OUTSIDER_SIGNAL: "somebody else's signal: `aborted` when the worker got TERM, INT or HUP (`ended_by` names the "
    "sender); `failed` when it got another one, or when one of its programs was ended",
    Cause.WORKER_LOST: "the worker died while neither supervisor nor zygote lived, or three workers died before they began",
    Cause.HOST_REBOOT: "the host was started anew while the job ran",
}

VERBS = f"""\
Each verb returns when it is *true*, not when it was requested: `suspend` when every thread was seen stopped, `abort`
when the last process is gone. `wait=False` returns at once.

- `suspend` of a `{State.QUEUED}` job holds it there, and `resume` releases it; resume of one that is not held is refused. A job
  type with `can_suspend = False` answers with a UsageError.
- `suspend` of a `{State.STARTING}` job waits for the worker's claim.
- `abort` of an `{State.ABORTING}` job is how `force=True` (SIGKILL now) follows a polite one.
- `retry` starts a new job with `retry_of`; a job type with `retry = "never"` answers with a UsageError.
- A verb that does not fit is a WrongState error with the job's id, its state, the verb and what is allowed instead."""


def page() -> str:
    """The whole page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "<!-- Made by docs/generate_states.py from supervisor/jobvisor/states.py and errors.py; edit those. -->"
    yield from ("# States, verbs, causes, exit codes", "", "## States and what they allow", "")
    rows = [[f"`{state}`", MEANING[state], *("✔" if verb in ALLOWED[state] else "–" for verb in Verb)] for state in State]
    yield from _table(["state", "meaning", *Verb], rows)
    yield from ("", VERBS, "", "## Which state may follow which", "")
    yield from _table(["from", "to"], [[f"`{state}`", _names(NEXT[state]) or "– (final)"] for state in State])
    yield from ("", "Back to `queued` or `starting`, and to `waiting` from `running`, goes only a job whose worker is another")
    yield "one than before (it died before it could claim the job), or that has to lock again what its `plan` found."
    yield from ("", "## Causes", "", f"`cause` says why a job is {_names(FINAL - {State.COMPLETED}, ' or ')}; it is null")
    yield from ("when it completed, and when it was aborted on request.", "")
    yield from _table(["cause", "what happened"], [[f"`{cause}`", CAUSES[cause]] for cause in Cause])
    yield from ("", "## Errors and exit codes", "", "Every error of the library has an `exit_code` and a stable word, `code`.", "")
    yield from _table(["error", "exit code", "code", "meaning"], [*map(_error_row, _errors())])
    yield from ("", "`jobvisor run` leaves with 0 when the job completed, 1 failed, 2 wrong command line (no job was made), 3")
    yield "aborted, 6 failed because a volume is in use; after ^C or SIGTERM it dies of that signal (130, 143 in a shell)."


def _errors() -> list[type[errors.JobvisorError]]:
    """In the order of the exit codes."""
    return sorted(errors.JobvisorError.__subclasses__(), key=lambda error: error.exit_code)


def _error_row(error: type[errors.JobvisorError]) -> list[str]:
    also = "".join(f" (also {base.__name__})" for base in error.__bases__[1:])
    summary = (error.__doc__ or "").split("\n")[0]
    return [f"`{error.__name__}`{also}", str(error.exit_code), f"`{error.code}`", summary]


def _names(states: frozenset[State], between: str = ", ") -> str:
    return between.join(f"`{state}`" for state in State if state in states)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
