"""Which job may start now: masks per resource, first come first served.

A resource is told by what it is (its key), not by its path. READ goes with READ; WRITE goes with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from jobvisor_workers.jobtype import READ, WRITE, Access
from jobvisor_workers.protocol import Holder

Needs = Mapping[str, Access]


class Mask(Struct, frozen=True):
    """What may start on a resource now, which jobs have it, and which wait for it (in their order).

    Of other people's jobs only id, type and user are told.
    """

    resource: str
    may_start: list[str]
    held_by: list[Holder]
    waiting: list[Holder]


class Schedule:
    """The jobs that have resources, and behind them those that wait."""

    def __init__(self) -> None:
        self._active: dict[str, dict[int, Access]] = {}
        self._needs: dict[int, Needs] = {}
        self._queue: dict[int, bool] = {}

    def enter(self, job: int, needs: Needs) -> None:
        """Take a place at the end of the queue."""
        self._needs[job] = needs
        self._queue[job] = False

    def release(self, job: int) -> None:
        """The queued job may start on its turn (it is durable, and not held)."""
        self._queue[job] = True

    def hold(self, job: int) -> None:
        """The queued job keeps its place but does not start."""
        self._queue[job] = False

    def replace(self, job: int, needs: Needs) -> None:
        """A queued job was resolved again."""
        self._needs[job] = needs

    def queued(self) -> list[int]:
        """The jobs that wait, in their order."""
        return list(self._queue)

    def startable(self) -> list[int]:
        """The released jobs that nothing active and nobody before them is in the way of."""
        found: list[int] = []
        before: dict[str, Access] = {}
        for job, released in self._queue.items():
            needs = self._needs[job]
            free = all(
                _fits(access, [*self._active.get(key, {}).values(), *_one(before, key)])
                for key, access in needs.items()
            )
            if free and released:
                found.append(job)
            for key, access in needs.items():
                before[key] = WRITE if WRITE in (access, before.get(key)) else READ
        return found

    def begin(self, job: int) -> None:
        """The job leaves the queue and has its resources."""
        del self._queue[job]
        for key, access in self._needs[job].items():
            self._active.setdefault(key, {})[job] = access

    def leave(self, job: int) -> None:
        """The job is over, or was never to be."""
        self._queue.pop(job, None)
        for key in self._needs.pop(job, {}):
            holders = self._active.get(key)
            if holders:
                holders.pop(job, None)
                if not holders:
                    del self._active[key]

    def in_the_way(self, needs: Needs, of: int | None = None) -> tuple[str, int] | None:
        """(key, job) of the first job that keeps `needs` from starting now; `of`: a queued job, seen from its place."""
        for key, access in needs.items():
            for job, held in self._active.get(key, {}).items():
                if not _fits(access, [held]):
                    return key, job
        for job in self._queue:
            if job == of:
                break
            for key, access in needs.items():
                if key in self._needs[job] and not _fits(access, [self._needs[job][key]]):
                    return key, job
        return None

    def needs(self, job: int) -> Needs:
        return self._needs[job]

    def users(self, key: str) -> tuple[list[int], list[int]]:
        """The jobs that have a resource, and those that wait for it."""
        return sorted(self._active.get(key, {})), [job for job in self._queue if key in self._needs[job]]

    def may_start(self, key: str, types: Mapping[str, Iterable[Access]]) -> list[str]:
        """The job types that fit now. `types`: job type → the accesses that it declares."""
        held, waiting = self.users(key)
        taken = [self._needs[job][key] for job in (*held, *waiting)]
        return sorted(name for name, accesses in types.items() if any(_fits(access, taken) for access in accesses))


def _fits(access: Access, taken: Iterable[Access]) -> bool:
    return all(access is READ and other is READ for other in taken)


def _one(table: Mapping[str, Access], key: str) -> list[Access]:
    return [table[key]] if key in table else []
