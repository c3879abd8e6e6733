"""The job type `pool-refresh`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from jobvisor_workers import jobtype, pooled
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.worker import Worker


class PoolRefresh(JobType, tag="pool-refresh"):
    """Let libvirt look anew at a pool's volumes.

    libvirtd does it, looking at each of them, and cannot be stopped on the way, so an abort waits until it is through.
    While it works on a volume of the pool it refuses; then the job tries again, for half a minute.
    """

    pool: Annotated[str, jobtype.pool("pool to look at, pool://POOL", WRITE)]
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"
    can_suspend: ClassVar[bool] = False
    delegated: ClassVar[bool] = True

    def plan(self, worker: Worker) -> None:
        pooled.look(worker, self.pool, "refresh", active=True)

    def run(self, worker: Worker) -> dict[str, Any]:
        pooled.act(worker, self.pool, "refresh", lambda pool: pool.refresh(0), "refreshed")
        return pooled.result(worker, self.pool)
