"""What a job would do, as a dry run says it: bytes read and written, what is locked and how, the room it takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from jobvisor_workers import room
from jobvisor_workers.jobtype import READ, WRITE, Access

if TYPE_CHECKING:
    from jobvisor_workers.locks import Lock

#: What the kernel's flock and QEMU's lock bytes together come to (locks, qemu_locks).
MEANS: Final[dict[Access, str]] = {
    READ: "others may read it; no job and no VM may write to it",
    WRITE: "nobody else may use it: no job, no VM, nor who takes flock(1)",
}


@dataclass
class Expected:
    """Filled by `worker.expect` in a job type's plan(). Bytes; None where nobody can know before."""

    reads: dict[str, int | None] = field(default_factory=dict)
    writes: dict[str, int | None] = field(default_factory=dict)
    #: By how much the files written to grow on their filesystem; less than 0: it is given back.
    space: int | None = None
    #: What their filesystem, or pool, has free.
    free: int | None = None
    #: False: these are the most that it may come to.
    exact: bool = True

    def add(
        self,
        reads: Mapping[str, int | None],
        writes: Mapping[str, int | None],
        space: int | None,
        free: int | None,
        exact: bool,
    ) -> None:
        self.reads.update(reads)
        self.writes.update(writes)
        self.space = space if self.space is None else self.space + (space or 0)
        self.free = self.free if free is None else free
        self.exact = self.exact and exact

    def told(self, locks: Sequence[Lock]) -> dict[str, Any]:
        """The result of a dry run."""
        return {
            "dry_run": True,
            "reads": _listed(self.reads),
            "writes": _listed(self.writes),
            "locks": [{"path": lock.path, "access": lock.access, "means": MEANS[lock.access]} for lock in locks],
            "space": self.space,
            "free": self._free(),
            "exact": self.exact,
        }

    def _free(self) -> int | None:
        if self.free is not None or self.space is None:
            return self.free
        # Of the first: what several outputs of one job have beyond that, no type needs to say yet.
        where = next((path for path in self.writes if os.path.isabs(path)), None)
        return None if where is None else room.free(os.path.dirname(os.path.realpath(where)))


def _listed(amounts: Mapping[str, int | None]) -> list[dict[str, Any]]:
    return [{"path": path, "bytes": count} for path, count in amounts.items()]
