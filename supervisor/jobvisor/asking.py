"""What can be asked, checked before anybody is asked; cheap to load."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import get_args

import msgspec
from msgspec import Struct

from jobvisor.errors import NoSuchJob, UsageError
from jobvisor.states import Goal, State, goal
from jobvisor_workers.protocol import OnConflict

ON_CONFLICT: tuple[str, ...] = get_args(OnConflict)
#: Characters of a hold's reason.
REASON_MAX = 200
IONICE = ("idle", "best-effort")


#: A job, its id, "any:7", "7,failed:8", or several of these.
After = object
#: What a job may wait for another one to do: to complete, to end, or to end otherwise.
WHEN = ("ok", "any", "failed")
AFTER_MAX = 100
PRIORITY_MAX = 100


class Options(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What can be said of a job of any type. bandwidth: bytes/s; time_limit: seconds from the worker's start.

    after: jobs to come after, as [WHEN:]ID; priority: the higher one goes first; queue_limit: seconds in the queue.
    connect: where the names vol:// and pool:// are looked up, as virsh's.
    """

    on_conflict: str = "queue"
    bandwidth: int | None = None
    time_limit: float | None = None
    dry_run: bool = False
    nice: int | None = None
    ionice: str | None = None
    connect: str | None = None
    after: list[str] | None = None
    priority: int = 0
    queue_limit: float | None = None


def check_options(name: str, options: Options) -> None:
    """For a job of this type. Raises UsageError."""
    try:
        msgspec.convert(msgspec.structs.asdict(options), Options)
    except msgspec.ValidationError as error:
        raise UsageError(f"cannot start {name}: {error}")
    if options.on_conflict not in ON_CONFLICT:
        raise UsageError(f"on_conflict is one of {', '.join(ON_CONFLICT)}, not {options.on_conflict!r}")
    if options.bandwidth is not None and not 0 < options.bandwidth < 1 << 63:
        raise UsageError(f"bandwidth is to be more than 0 bytes/s, not {options.bandwidth}")
    if options.time_limit is not None and not 0 < options.time_limit < 1e9:
        raise UsageError(f"time limit is to be more than 0 seconds, not {options.time_limit:g}")
    if options.queue_limit is not None and not 0 < options.queue_limit < 1e9:
        raise UsageError(f"queue limit is to be more than 0 seconds, not {options.queue_limit:g}")
    if not -PRIORITY_MAX <= options.priority <= PRIORITY_MAX:
        raise UsageError(f"priority is to be from -{PRIORITY_MAX} to {PRIORITY_MAX}, not {options.priority}")
    dependencies(options.after)
    if options.nice is not None and not -20 <= options.nice <= 19:
        raise UsageError(f"nice is to be from -20 to 19, not {options.nice}")
    if options.ionice not in (None, *IONICE):
        raise UsageError(f"ionice is one of {', '.join(IONICE)}, not {options.ionice!r}")
    if options.connect is not None and (not options.connect or "\0" in options.connect):
        raise UsageError(f"connect is a URI of libvirt's, like qemu:///system, not {options.connect!r}")


def after_of(others: object) -> list[str] | None:
    """Dependencies as they are written: of a job, its id, "any:7", "7,failed:8", or several of these.

    Raises UsageError.
    """
    if others is None:
        return None
    named = others if isinstance(others, list | tuple | set | frozenset) else [others]
    words = [word.strip() for each in named for word in str(getattr(each, "id", each)).split(",")]
    found = dependencies(words)
    return [f"{when}:{job}" for job, when in found] or None


def dependencies(after: Iterable[str] | None) -> list[tuple[int, str]]:
    """(job, when) of each; the same job is named once. Raises UsageError, NoSuchJob."""
    found: dict[int, str] = {}
    for word in after or ():
        when, _, job = word.rpartition(":")
        if (when or "ok") not in WHEN or not (job.isascii() and job.isdigit()) or len(job) > 19:
            raise UsageError(f"after is a job's id, any:ID or failed:ID, not {word!r}")
        if found.setdefault(checked_id(int(job)), when or "ok") != (when or "ok"):
            raise UsageError(f"after names job {job} twice, for two different ends")
    if len(found) > AFTER_MAX:
        raise UsageError(f"after names {len(found)} jobs; at most {AFTER_MAX} are possible")
    return list(found.items())


def connect_of(named: Iterable[object], connect: str | None, uid: int | None = None) -> str | None:
    """Where these resources are looked up: a URI, if one of them is a name of libvirt's and not a path.

    `uid`: the user who asked for it from elsewhere; None: this process, whose environment counts.
    """
    from jobvisor_workers.resources import uri  # loads what a list of jobs can do without

    if not any(isinstance(each, str) and uri.is_name(each) for each in named):
        return None
    if connect is not None:
        return connect
    own = os.environ.get("LIBVIRT_DEFAULT_URI") if uid is None else None
    return own or uri.default_uri(os.getuid() if uid is None else uid)


def checked_id(id: int) -> int:
    """Ids are positive, and small enough for the journal. Raises UsageError, NoSuchJob."""
    if isinstance(id, bool) or not isinstance(id, int):
        raise UsageError(f"a job id is a number, not {id!r}")
    if not 0 < id < 1 << 63:
        raise NoSuchJob(id)
    return id


def states_of(state: State | str | Iterable[State | str] | None) -> list[State]:
    """One or several, or none at all. Raises UsageError."""
    if state is None:
        return []
    try:
        return [State(state)] if isinstance(state, str) else [State(each) for each in state]
    except ValueError as error:
        raise UsageError(f"{error}; states are {', '.join(State)}")


def goal_of(until: State | str | None) -> Goal | None:
    """What to wait for; None: the end. Raises UsageError."""
    try:
        return None if until is None else goal(until)
    except ValueError as error:
        raise UsageError(f"{error}; what can be waited for is {', '.join(State)}, checked")


def checked_reason(reason: str) -> str:
    """What others are told: one line. Raises UsageError."""
    if not isinstance(reason, str) or not reason.strip() or len(reason) > REASON_MAX or not reason.isprintable():
        raise UsageError(f"a reason is one line of 1 to {REASON_MAX} printable characters, not {reason!r}")
    return reason.strip()


def checked_offset(offset: int) -> int:
    """Raises UsageError."""
    if isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset < 1 << 63:
        raise UsageError(f"an offset is a number of bytes, not {offset!r}")
    return offset


def umask() -> int:
    """The process's umask, without the race of setting it to read it."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077
