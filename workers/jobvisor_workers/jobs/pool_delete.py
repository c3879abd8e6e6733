"""The job type `pool-delete`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from jobvisor_workers import jobtype, pooled
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.worker import Worker


class PoolDelete(JobType, tag="pool-delete"):
    """Delete what a pool consists of.

    That is its directory if that is empty, or its volume group. The pool must not be active; its definition stays.
    libvirtd does it, and cannot be stopped on the way, so an abort waits until it is through.
    """

    pool: Annotated[str, jobtype.pool("pool to delete, pool://POOL", WRITE)]
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"
    can_suspend: ClassVar[bool] = False
    delegated: ClassVar[bool] = True

    def plan(self, worker: Worker) -> None:
        pooled.look(worker, self.pool, "delete", active=False)

    def run(self, worker: Worker) -> dict[str, Any]:
        pooled.act(worker, self.pool, "delete", lambda pool: pool.delete(0), "deleted", active=False)
        return pooled.result(worker, self.pool)
