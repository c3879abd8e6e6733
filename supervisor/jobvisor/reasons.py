"""Why a queued job does not start, and where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobvisor import holding
from jobvisor.record import user_name

if TYPE_CHECKING:
    from jobvisor.engine import Engine
    from jobvisor.record import Notes, Record

#: Of a job that was suspended in the queue.
HELD = "held"


def explain(engine: Engine, record: Record) -> tuple[str | None, int | None]:
    """The reason, and the number in the line for what it waits for; nothing when it is about to start."""
    if record.notes.held:
        return HELD, None
    hold = holding.over(engine, record)
    if hold:
        return str(hold), None
    if record.after:
        job, when = next(iter(record.after.items()))
        return f"job {job} has not {'completed' if when == 'ok' else 'ended'} yet", None
    schedule = engine.schedule
    blocked = schedule.in_the_way(schedule.needs(record.id), record.id)
    if blocked:
        key, other = blocked
        how = "in use by" if schedule.active(other) else "wanted before by"
        return f"{path_of(record.notes, key)} is {how} job {other}", schedule.place(record.id, key)
    limit = schedule.full(record.id)
    if limit:
        return f"{_words(limit, schedule.limit_of(limit) or 0)} is reached", schedule.place_at(record.id, limit)
    return None, None


def _words(limit: str, number: int) -> str:
    kind, _, which = limit.partition(":")
    jobs = "job" if number == 1 else "jobs"
    match kind:
        case "type":
            return f"the limit of {number} {which} {jobs} at once"
        case "user":
            return f"the limit of {number} {jobs} of {user_name(int(which))} at once"
        case "pool":
            return f"the limit of {number} {jobs} at once in pool {which}"
        case "device":
            return f"the limit of {number} {jobs} at once on disk {which}"
    return f"the limit of {number} {jobs} at once"


def path_of(notes: Notes, key: str) -> str:
    """What the job calls a resource."""
    return next(path for path, (known, _) in notes.keys.items() if known == key)
