"""The job type `pool-build`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import jobtype, pooled
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.worker import Worker

#: What libvirt does when neither is said depends on the kind of the pool.
OVERWRITE = "give up what the pool's devices hold, or fail when they hold something"


class PoolBuild(JobType, tag="pool-build"):
    """Make what a pool consists of.

    That is a directory, a filesystem, a partition table, or a volume group. libvirtd does it, and cannot be stopped on
    the way, so an abort waits until it is through. With --overwrite what the pool's devices hold is lost.
    """

    pool: Annotated[str, jobtype.pool("pool to build, pool://POOL", WRITE)]
    overwrite: Annotated[bool | None, Meta(description=OVERWRITE)] = None
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"
    can_suspend: ClassVar[bool] = False
    delegated: ClassVar[bool] = True

    def plan(self, worker: Worker) -> None:
        pooled.look(worker, self.pool, "build", active=False)

    def run(self, worker: Worker) -> dict[str, Any]:
        import libvirt

        flags = {
            None: libvirt.VIR_STORAGE_POOL_BUILD_NEW,
            True: libvirt.VIR_STORAGE_POOL_BUILD_OVERWRITE,
            False: libvirt.VIR_STORAGE_POOL_BUILD_NO_OVERWRITE,
        }[self.overwrite]
        pooled.act(worker, self.pool, "build", lambda pool: pool.build(flags), "built", active=False)
        return pooled.result(worker, self.pool)
