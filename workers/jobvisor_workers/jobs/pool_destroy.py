"""The job type `pool-destroy`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from jobvisor_workers import jobtype, pooled
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.resources import uri
from jobvisor_workers.worker import Worker


class PoolDestroy(JobType, tag="pool-destroy"):
    """Stop a pool, and delete nothing.

    Its volumes stay what they are; a filesystem is unmounted. libvirtd does it, and cannot be stopped on the way, so
    an abort waits until it is through. Of a pool without a definition (made by pool-create) nothing remains known.
    """

    pool: Annotated[str, jobtype.pool("pool to stop, pool://POOL", WRITE)]
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"
    can_suspend: ClassVar[bool] = False
    delegated: ClassVar[bool] = True

    def plan(self, worker: Worker) -> None:
        pooled.look(worker, self.pool, "stop", active=True)

    def run(self, worker: Worker) -> dict[str, Any]:
        pooled.act(worker, self.pool, "stop", lambda pool: pool.destroy(), "stopped")
        return {"pool": uri.parse(self.pool).pool, "active": False}
