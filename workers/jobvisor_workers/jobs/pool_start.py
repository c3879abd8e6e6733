"""The job type `pool-start`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import jobtype, pooled
from jobvisor_workers.errors import BadArgument
from jobvisor_workers.jobs.pool_build import OVERWRITE
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.worker import Worker


class PoolStart(JobType, tag="pool-start"):
    """Start a pool.

    libvirtd does it: mounts the filesystem, logs in to the server, looks at each volume. It cannot be stopped on the
    way, so an abort waits until it is through.
    """

    pool: Annotated[str, jobtype.pool("pool to start, pool://POOL", WRITE)]
    build: Annotated[bool, Meta(description="make what it consists of first, as pool-build does")] = False
    overwrite: Annotated[bool | None, Meta(description=OVERWRITE)] = None
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"
    can_suspend: ClassVar[bool] = False
    delegated: ClassVar[bool] = True

    def plan(self, worker: Worker) -> None:
        if self.overwrite is not None and not self.build:
            raise BadArgument(f"cannot start {self.pool}: --overwrite and --no-overwrite say nothing without --build")
        pooled.look(worker, self.pool, "start", active=False)

    def run(self, worker: Worker) -> dict[str, Any]:
        import libvirt

        flags = libvirt.VIR_STORAGE_POOL_CREATE_NORMAL
        if self.build:
            flags = {
                None: libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD,
                True: libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD_OVERWRITE,
                False: libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD_NO_OVERWRITE,
            }[self.overwrite]
        pooled.act(worker, self.pool, "start", lambda pool: pool.create(flags), "started", active=False)
        return pooled.result(worker, self.pool)
