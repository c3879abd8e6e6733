"""Why a queued job does not start, and where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobvisor import holding

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
    return None, None


def path_of(notes: Notes, key: str) -> str:
    """What the job calls a resource."""
    return next(path for path, (known, _) in notes.keys.items() if known == key)
