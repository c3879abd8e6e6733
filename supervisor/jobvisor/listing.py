"""What is seen of many jobs at once: lists, and the mask of a resource. On the pump."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from msgspec import Struct

from jobvisor import store
from jobvisor.engine import Engine
from jobvisor.errors import NotPermitted, Unreachable, UsageError
from jobvisor.info import JobInfo
from jobvisor.record import Record
from jobvisor.schedule import Mask
from jobvisor.states import State
from jobvisor_workers import holders, registry
from jobvisor_workers.jobtype import READ, Access
from jobvisor_workers.protocol import Holder, Named, Requester, Seen


class Wanted(Struct, frozen=True, kw_only=True):
    """Which jobs a list is about. `owner`: a uid; `since`: epoch seconds at which they were not over."""

    states: Sequence[State] = ()
    type: str | None = None
    resource: str | None = None
    owner: int | None = None
    since: float | None = None
    limit: int | None = None

    def covers(self, live: Record) -> bool:
        notes = live.notes
        fits = (not self.states or live.state in self.states) and self.type in (None, live.request.type)
        return fits and self.owner in (None, notes.owner_uid) and self.resource in (None, *notes.resources)


def jobs(engine: Engine, wanted: Wanted) -> Future[list[JobInfo]]:
    """Live jobs from memory, ended ones from the journal; newest first."""
    newest = sorted((record for record in engine.records.values() if wanted.covers(record)), key=lambda each: -each.id)
    live = [engine.info_of(record) for record in newest[: wanted.limit]]
    known = {info.id for info in live}
    query: dict[str, Any] = {name: getattr(wanted, name) for name in ("type", "resource", "owner", "since", "limit")}

    def merge(final: list[JobInfo]) -> list[JobInfo]:
        both = [*live, *(info for info in final if info.id not in known)]
        return sorted(both, key=lambda info: -info.id)[: wanted.limit]

    return engine.journal.post(lambda db: merge(store.final(db, states=[str(each) for each in wanted.states], **query)))


def mask(
    engine: Engine, path: str, key: str, uid: int, types: dict[str, list[Access]], others: Sequence[Holder] = ()
) -> Mask:
    """As this user may see it. `types`: job type → the accesses that it declares; `others`: who has locks on it."""
    held, waiting = ([engine.holder(job, uid) for job in each] for each in engine.schedule.users(key))
    ours = {holder.job for holder in held}
    # A program of a job of ours is known by the job's mark; another supervisor's job of the same id is lost by that.
    held += [other for other in others if other.kind != "job" or other.job not in ours]
    forbidden = engine.schedule.forbidden(key, types)
    may_start = sorted(types.keys() - forbidden.keys())
    return Mask(path, may_start, held, waiting, {name: engine.holder(job, uid) for name, job in forbidden.items()})


def lockers(path: str) -> list[Holder]:
    """Who has locks on a file, by the kernel's tables: flock(1), a QEMU, jobs of other supervisors.

    The file is not opened, since a close would take away the locks that the host program may have on it. Without that
    nobody is found on a filesystem that shows another device than it has (btrfs, overlayfs).
    """
    try:
        status = os.stat(path)
    except OSError:
        return []
    name = b"%02x:%02x:%d" % (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    found = [holders.flock_holder_of(name), holders.byte_holder_of(name, holders.QEMU_BYTES)]
    known = {holder.pid: holder for holder in found if holder}
    return list(known.values())


def mask_for(engine: Engine, requester: Requester, path: str, types: dict[str, list[Access]]) -> Future[Mask]:
    """As another user may see it, if that user may open the resource. Raises NotPermitted, UsageError, Unreachable."""

    def told(found: dict[str, Seen]) -> Mask:
        seen = found.get(path)
        if seen is None:
            raise Unreachable(f"cannot look at the mask of {path}: its filesystem does not answer")
        if seen.key is None:
            raise NotPermitted(seen.error) if seen.denied else UsageError(seen.error)
        return mask(engine, path, seen.key, requester.uid, types)

    return engine.pump.then(engine.errands.look(requester, [Named(path, "any", new=True)]), told)


def declared_accesses(to_pool: bool) -> dict[str, list[Access]]:
    """Of all job types that can be loaded: what they do to a pool, or to a volume. Who uses a volume reads its pool."""
    found = {}
    for name in registry.names():
        try:
            resources = registry.get(name).resources().values()
            accesses = [each.access for each in resources if (each.kind == "pool") is to_pool]
            if to_pool and any(each.kind == "volume" for each in resources):
                accesses.append(READ)
            if accesses:
                found[name] = accesses
        except Exception:  # of another package, which is broken: who starts one is told
            continue
    return found
