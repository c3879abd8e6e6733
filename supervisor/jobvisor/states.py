"""States, verbs and causes of a job: the tables from which the supervisor works and the docs page is made."""

from __future__ import annotations

import enum
from typing import Literal


class State(enum.StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    STARTING = "starting"
    WAITING = "waiting"
    RUNNING = "running"
    SUSPENDED = "suspended"
    READY = "ready"
    ABORTING = "aborting"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"

    @property
    def final(self) -> bool:
        """True when the job has ended for good."""
        return self in FINAL


#: What can be waited for besides the end: a state, or that the checks were passed (or are not to come soon).
Goal = State | Literal["checked"]


def goal(word: str) -> Goal:
    """Raises ValueError."""
    return "checked" if word == "checked" else State(word)


def is_met(goal: Goal | None, state: State, phase: str | None) -> bool:
    """True when a job is where somebody wants it; an ended one always is, since nothing more will come."""
    if goal == "checked":
        from jobvisor_workers.protocol import CHECKS  # loads what a completion can do without

        return state is not State.STARTING and (state, phase) != (State.RUNNING, CHECKS)
    return state.final or state is goal


class Verb(enum.StrEnum):
    """What can be asked of a job."""

    SUSPEND = "suspend"
    RESUME = "resume"
    ABORT = "abort"
    COMPLETE = "complete"
    RETRY = "retry"
    FORGET = "forget"


class Cause(enum.StrEnum):
    """Why a job did not complete; None when it did, or when it was aborted on request."""

    ERROR = "error"
    BUSY = "busy"
    NO_SPACE = "no-space"
    IO_ERROR = "io-error"
    TIME_LIMIT = "time-limit"
    QUEUE_LIMIT = "queue-limit"
    DEPENDENCY = "dependency"
    STALLED = "stalled"
    OOM = "oom"
    CRASHED = "crashed"
    KILLED = "killed"
    OUTSIDER_SIGNAL = "outsider-signal"
    WORKER_LOST = "worker-lost"
    HOST_REBOOT = "host-reboot"


_S, _V = State, Verb

FINAL = frozenset({_S.COMPLETED, _S.FAILED, _S.ABORTED})

MEANING = {
    _S.QUEUED: "accepted, no worker yet; the reason says what it waits for",
    _S.STARTING: "a worker was forked and has not claimed the job yet (milliseconds)",
    _S.WAITING: "the worker waits for a lock, whose holder is shown, or for the other end of its pipe",
    _S.RUNNING: "working; the phase says on what",
    _S.SUSPENDED: "every thread of every process of the job was seen stopped",
    _S.READY: "a two-phase job converged and goes on until it is told to complete",
    _S.ABORTING: "told to end, and cleaning up",
    _S.COMPLETED: "all was done",
    _S.FAILED: "it ended by itself or by somebody else; the cause says why",
    _S.ABORTED: "it ended because somebody asked for it",
}

#: Which verbs a state allows. Resume of a queued job releases one that was suspended while it was queued.
ALLOWED: dict[State, frozenset[Verb]] = {
    _S.QUEUED: frozenset({_V.SUSPEND, _V.RESUME, _V.ABORT}),
    _S.STARTING: frozenset({_V.SUSPEND, _V.ABORT}),
    _S.WAITING: frozenset({_V.SUSPEND, _V.ABORT}),
    _S.RUNNING: frozenset({_V.SUSPEND, _V.ABORT}),
    _S.SUSPENDED: frozenset({_V.RESUME, _V.ABORT}),
    _S.READY: frozenset({_V.ABORT, _V.COMPLETE}),
    _S.ABORTING: frozenset({_V.ABORT}),
    _S.COMPLETED: frozenset({_V.FORGET}),
    _S.FAILED: frozenset({_V.RETRY, _V.FORGET}),
    _S.ABORTED: frozenset({_V.RETRY, _V.FORGET}),
}

_ENDS = FINAL | {_S.ABORTING}
#: Which state may follow which; anything else is a defect, and refused. Reports are snapshots, so that one may jump.
NEXT: dict[State, frozenset[State]] = {
    _S.QUEUED: frozenset({_S.STARTING}) | _ENDS,
    _S.STARTING: frozenset({_S.WAITING, _S.RUNNING, _S.SUSPENDED, _S.READY}) | _ENDS,
    _S.WAITING: frozenset({_S.RUNNING, _S.SUSPENDED, _S.READY}) | _ENDS,
    _S.RUNNING: frozenset({_S.WAITING, _S.SUSPENDED, _S.READY}) | _ENDS,
    _S.SUSPENDED: frozenset({_S.STARTING, _S.WAITING, _S.RUNNING, _S.READY}) | _ENDS,
    _S.READY: frozenset({_S.RUNNING, _S.SUSPENDED}) | _ENDS,
    _S.ABORTING: FINAL,
    _S.COMPLETED: frozenset(),
    _S.FAILED: frozenset(),
    _S.ABORTED: frozenset(),
}
