"""Which job may start now: masks per resource, limits, and the order of those that wait.

A resource is told by what it is (its key), not by its path. READ goes with READ; WRITE goes with nothing. Jobs wait in
the order of their priority, and of their ids where that is the same. A job starts when nobody who has one of its
resources, or is before it in the line for one, is in its way, and no limit is reached: it takes all at once or nothing.

What happens is looked at only by the jobs that it may have freed, so that ten thousand may wait.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct

from jobvisor_workers.jobtype import READ, WRITE, Access
from jobvisor_workers.protocol import Holder

Needs = Mapping[str, Access]
#: (-priority, job): the smallest is the first in line.
Rank = tuple[int, int]
ENDLESS = 1 << 62


class Mask(Struct, frozen=True):
    """What may start on a resource now, who has it, and which jobs wait for it (in their order).

    `forbidden`: each other job type → the job in its way. Of other people's jobs only id, type, user and whether they
    are suspended is told. `held_by` has others than jobs too, as far as the kernel's tables show their locks.
    """

    resource: str
    may_start: list[str]
    held_by: list[Holder]
    waiting: list[Holder]
    forbidden: dict[str, Holder] = {}


class _Entry:
    """A job that is not over. `line`: the list in which it waits to be looked at again."""

    __slots__ = ("active", "aside", "counts_in", "line", "needs", "rank", "released")

    def __init__(self, rank: Rank, needs: Needs, counts_in: tuple[str, ...]) -> None:
        self.rank, self.needs, self.counts_in = rank, needs, counts_in
        self.released = self.aside = self.active = False
        self.line: list[Rank] | None = None


class Schedule:
    """The jobs that have resources, and behind them those that wait."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._active: dict[str, dict[int, Access]] = {}
        #: Key → the places in its line, and those of them that will write.
        self._standing: dict[str, list[Rank]] = {}
        self._writers: dict[str, list[Rank]] = {}
        #: Key → whom it keeps from starting; limited classes → who has all resources, and at most a limit in the way.
        self._blocked: dict[str, list[Rank]] = {}
        self._clear: dict[tuple[str, ...], list[Rank]] = {}
        self._limits: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._moved: dict[int, None] = {}

    def enter(self, job: int, needs: Needs, priority: int = 0, counts_in: Iterable[str] = ()) -> None:
        """Take a place in the queue. `counts_in`: what limits may be set on, see `limit`."""
        entry = _Entry((-priority, job), needs, tuple(counts_in))
        self._entries[job] = entry
        self._stand(entry)

    def release(self, job: int) -> None:
        """The queued job may start on its turn (it is durable, and not held)."""
        entry = self._entries[job]
        entry.released = True
        self._park(entry)
        self._moved[job] = None

    def hold(self, job: int) -> None:
        """The queued job keeps its place but does not start."""
        entry = self._entries[job]
        entry.released = False
        self._unpark(entry)

    def step_aside(self, job: int) -> None:
        """The queued job does not start, and stands in nobody's way until it steps back in."""
        entry = self._entries[job]
        if not entry.aside:
            self._unpark(entry)
            self._unstand(entry)
            entry.aside = True
            self._wake(entry.needs)

    def step_in(self, job: int) -> None:
        """The queued job has its place again."""
        entry = self._entries[job]
        if entry.aside:
            entry.aside = False
            self._stand(entry)
            self._park(entry)

    def replace(self, job: int, needs: Needs, counts_in: Iterable[str] = ()) -> None:
        """A queued job was resolved again."""
        entry = self._entries[job]
        before = entry.needs
        self._unpark(entry)
        if not entry.aside:
            self._unstand(entry)
        entry.needs, entry.counts_in = needs, tuple(counts_in)
        if not entry.aside:
            self._stand(entry)
        self._wake(before)
        self._park(entry)

    def limit(self, limits: Mapping[str, int]) -> None:
        """So many jobs of a class may be active at once. "kind:*" is for each "kind:…" that is not named itself."""
        self._limits = dict(limits)
        waiting = [job for line in self._clear.values() for _, job in line]
        for job in waiting:
            self._unpark(self._entries[job])
        self._clear.clear()
        for job in waiting:
            self._park(self._entries[job])

    def next(self) -> int | None:
        """The first job that may start now: to begin, or to be held, before the next is asked for."""
        while True:
            heads = [line[0] for classes, line in self._clear.items() if line and not self._full(classes)]
            if not heads:
                return None
            entry = self._entries[min(heads)[1]]
            if self._obstacle(entry.needs, entry.rank) is None:
                return entry.rank[1]
            self._unpark(entry)  # a job of higher priority came meanwhile
            self._park(entry)

    def begin(self, job: int) -> None:
        """The job leaves the queue and has its resources."""
        entry = self._entries[job]
        self._unpark(entry)
        if not entry.aside:
            self._unstand(entry)
        entry.active, entry.aside = True, False
        self._counts.update(entry.counts_in)
        for key, access in entry.needs.items():
            self._active.setdefault(key, {})[job] = access

    def leave(self, job: int) -> None:
        """The job is over, or was never to be."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return
        if entry.active:
            self._counts.subtract(entry.counts_in)
            for key in entry.needs:
                holders = self._active[key]
                del holders[job]
                if not holders:
                    del self._active[key]
        else:
            self._unpark(entry)
            if not entry.aside:
                self._unstand(entry)
        self._wake(entry.needs)

    def moved(self) -> list[int]:
        """Since the last call: the queued jobs that may wait for something else now."""
        found = [job for job in self._moved if job in self._entries and not self._entries[job].active]
        self._moved.clear()
        return found

    def queued(self) -> list[int]:
        """The jobs that wait, in their order."""
        return [job for _, job in sorted(entry.rank for entry in self._entries.values() if not entry.active)]

    def in_the_way(self, needs: Needs, of: int | None = None, priority: int = 0) -> tuple[str, int] | None:
        """(key, job) of the first job that keeps `needs` from starting now.

        `of`: a queued job, seen from its place; None: a job of that priority that is still to come.
        """
        last = max(self._entries, default=0) + 1
        return self._obstacle(needs, (-priority, last) if of is None else self._entries[of].rank)

    def limit_of(self, counted: str) -> int | None:
        """How many of a class may be active at once; None: any number."""
        return self._limits.get(counted) or self._limits.get(f"{counted.partition(':')[0]}:*")

    def full(self, job: int) -> str | None:
        """The limit that keeps a queued job from starting now."""
        return self._full(self._entries[job].counts_in)

    def place(self, job: int, key: str) -> int:
        """The queued job's number in the line for a resource, from 1 on."""
        return bisect_left(self._standing.get(key, []), self._entries[job].rank) + 1

    def place_at(self, job: int, limit: str) -> int:
        """The queued job's number in the line for a limit, from 1 on."""
        rank = self._entries[job].rank
        return sum(bisect_left(line, rank) for classes, line in self._clear.items() if limit in classes) + 1

    def needs(self, job: int) -> Needs:
        return self._entries[job].needs

    def active(self, job: int) -> bool:
        """True when it has its resources."""
        return self._entries[job].active

    def users(self, key: str) -> tuple[list[int], list[int]]:
        """The jobs that have a resource, and those that wait for it."""
        waiting = [job for job in self.queued() if key in self._entries[job].needs]
        return sorted(self._active.get(key, {})), waiting

    def forbidden(self, key: str, types: Mapping[str, Iterable[Access]]) -> dict[str, int]:
        """The job types that do not fit now → which job is in their way. `types`: → the accesses that it declares."""
        found = {}
        for name, accesses in sorted(types.items()):
            blocked = [self.in_the_way({key: access}) for access in accesses]
            first = next(iter(blocked), None)
            if first is not None and None not in blocked:
                found[name] = first[1]
        return found

    def _obstacle(self, needs: Needs, rank: Rank) -> tuple[str, int] | None:
        for key, access in needs.items():
            for job, held in self._active.get(key, {}).items():
                if WRITE in (access, held):
                    return key, job
        for key, access in needs.items():
            before = self._before(key, access, rank)
            if before is not None:
                return key, before
        return None

    def _before(self, key: str, access: Access, rank: Rank) -> int | None:
        """Who is before that place in the line for a resource, and does not go with this access to it."""
        line = (self._writers if access is READ else self._standing).get(key)
        return line[0][1] if line and line[0] < rank else None

    def _full(self, classes: Iterable[str]) -> str | None:
        return next((each for each in classes if self._counts[each] >= (self.limit_of(each) or ENDLESS)), None)

    def _park(self, entry: _Entry) -> None:
        """Have it looked at again when what is in its way has changed."""
        if entry.active or entry.aside or not entry.released or entry.line is not None:
            return
        obstacle = self._obstacle(entry.needs, entry.rank)
        if obstacle:
            entry.line = self._blocked.setdefault(obstacle[0], [])
        else:
            classes = tuple(each for each in entry.counts_in if self.limit_of(each))
            entry.line = self._clear.setdefault(classes, [])
        insort(entry.line, entry.rank)
        self._moved[entry.rank[1]] = None

    def _unpark(self, entry: _Entry) -> None:
        if entry.line is not None:
            _remove(entry.line, entry.rank)
            entry.line = None

    def _stand(self, entry: _Entry) -> None:
        for key, access in entry.needs.items():
            insort(self._standing.setdefault(key, []), entry.rank)
            if access is WRITE:
                insort(self._writers.setdefault(key, []), entry.rank)

    def _unstand(self, entry: _Entry) -> None:
        for key, access in entry.needs.items():
            for lines in (self._standing, self._writers) if access is WRITE else (self._standing,):
                _remove(lines[key], entry.rank)
                if not lines[key]:
                    del lines[key]

    def _wake(self, keys: Iterable[str]) -> None:
        """Something of these resources is free. In each line all behind the first that is still blocked are so too."""
        for key in keys:
            line = self._blocked.get(key, [])
            while line:
                entry = self._entries[line[0][1]]
                obstacle = self._obstacle({key: entry.needs[key]}, entry.rank)
                if obstacle:
                    self._moved[entry.rank[1]] = None
                    break
                self._unpark(entry)
                self._park(entry)
            else:
                self._blocked.pop(key, None)


def _remove(line: list[Rank], rank: Rank) -> None:
    del line[bisect_left(line, rank)]
