"""What the job types on pools share: the pool in question, looked at before the work and after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobvisor_workers.delegated import call
from jobvisor_workers.errors import JobError
from jobvisor_workers.resources import pools, uri

if TYPE_CHECKING:
    import libvirt

    from jobvisor_workers.resources.pools import Pools
    from jobvisor_workers.worker import Worker

#: The phase of a job between two tries.
WAITING = "wait for libvirtd"


def look(worker: Worker, resource: str, doing: str, *, active: bool | None) -> None:
    """Raises JobError when there is no such pool, or when it is (not) active as it is to be; None: either way."""
    there = _of(worker)
    pool = there.inactive_pool(uri.parse(resource).pool, resource)
    if active is not None and bool(there.ask(pool.isActive, resource)) is not active:
        state, advice = ("is not active", "start it first") if active else ("is active", "stop it first: pool-destroy")
        raise JobError(f"cannot {doing} {resource}: it {state} at {there.uri}; {advice}")


def act(
    worker: Worker,
    resource: str,
    doing: str,
    action: Callable[[libvirt.virStoragePool], Any],
    done: str,
    *,
    active: bool = True,
) -> None:
    """Let libvirtd do something with the pool, and wait until it has. `doing`: "start"; `done`: "started".

    While libvirtd works on a volume in the pool this is tried again; in one that is not `active` it does not. Raises
    JobError.
    """
    there = _of(worker)
    pool = there.inactive_pool(uri.parse(resource).pool, resource)
    deadline = time.monotonic() + pools.BUSY_TIME
    while True:
        worker.phase(doing)
        try:
            call(worker, lambda: action(pool), f"{resource} is {done}")
            return
        except pools.load().libvirtError as error:
            if not active or error.get_error_code() != pools.BUSY or time.monotonic() > deadline:
                raise there.problem(error, f"{doing} {resource}")
        worker.phase(WAITING)
        time.sleep(pools.BUSY_PAUSE)


def result(worker: Worker, resource: str) -> dict[str, Any]:
    """What is known of the pool afterwards."""
    there, name = _of(worker), uri.parse(resource).pool
    pool = there.inactive_pool(name, resource)
    if not there.ask(pool.isActive, resource):
        return {"pool": name, "active": False}
    _, capacity, allocation, available = there.ask(pool.info, resource)
    volumes = there.ask(pool.numOfVolumes, resource)
    sizes = {"capacity": capacity, "allocation": allocation, "available": available}
    return {"pool": name, "active": True, "volumes": volumes, **sizes}


def _of(worker: Worker) -> Pools:
    assert worker.pools is not None, "a field that names a pool has a value"
    return worker.pools
