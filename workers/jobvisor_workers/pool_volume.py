"""New volumes that only their pool's driver can make: partitions, logical volumes.

They have a name from the first byte on; one whose job does not complete is deleted again. A worker that is killed
cannot do that.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobvisor_workers.delegated import call
from jobvisor_workers.errors import JobError, NoSpace
from jobvisor_workers.jobtype import WRITE
from jobvisor_workers.locks import acquire
from jobvisor_workers.protocol import Made
from jobvisor_workers.resources import pools, uri
from jobvisor_workers.room import compare

if TYPE_CHECKING:
    import libvirt

    from jobvisor_workers.worker import Volume, Worker


def check_name(worker: Worker, target: str, doing: str) -> None:
    """Raises JobError when there is such a volume. `doing` begins the sentence."""
    assert worker.pools is not None
    if worker.pools.exists(uri.parse(target)):
        raise JobError(f"cannot {doing}: it exists already; choose another name")


def available(worker: Worker, target: str) -> int:
    """Bytes that the pool of this volume has left."""
    assert worker.pools is not None
    free: int = worker.pools.ask(worker.pools.pool(uri.parse(target).pool, target).info, target)[3]
    return free


def check_room(worker: Worker, target: str, needed: int, doing: str) -> None:
    """Raises NoSpace. `doing` begins the sentence, like "clone /v/a to vol://disk/sda1"."""
    there = available(worker, target)
    if needed > there:
        raise NoSpace(f"cannot {doing}: {compare(needed, 'the pool', there, ' free')}")


def make(worker: Worker, target: str, capacity: int) -> Volume:
    """The new volume `target`, vol://POOL/VOLUME, of at least `capacity` bytes: locked, open, with unknown content.

    It is deleted again if the job does not complete. Raises JobError.
    """
    there = worker.pools
    assert there is not None
    wanted = described(target, capacity)
    worker.phase("make the volume")
    volume, made = ask_for(worker, target, lambda pool: pool.createXML(wanted, 0))
    path: str = there.ask(made.path, target)
    there.close()
    if not os.access(path, os.R_OK | os.W_OK):
        raise JobError(f"cannot fill {target}: it was made as {path}, which you may not write to")
    worker.locks += acquire([(path, WRITE)], on_conflict="wait", waiting=lambda *_: None, doing="fill")
    volume.path = path
    opened = worker.volume(path)
    if opened.size < capacity:
        raise NoSpace(f"cannot fill {target}: {compare(capacity, 'it', opened.size)}")
    return opened


def described(
    target: str,
    capacity: int,
    allocation: int | None = None,
    form: str | None = None,
    *,
    backing: tuple[str, str] | None = None,
    cluster_size: int | None = None,
    nocow: bool = False,
) -> str:
    """A volume in libvirt's XML. `backing`: path and format, as libvirtd sees them."""
    root = ElementTree.Element("volume")

    def add(parent: ElementTree.Element, tag: str, text: str | int = "", **attributes: str) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, tag, attributes)
        element.text = str(text) or None
        return element

    add(root, "name", uri.parse(target).volume or "")
    add(root, "capacity", capacity, unit="bytes")
    if allocation is not None:
        add(root, "allocation", allocation, unit="bytes")
    if form or nocow or cluster_size:
        there = add(root, "target")
        if form:
            add(there, "format", type=form)
        if nocow:
            add(there, "nocow")
        if cluster_size:
            add(there, "clusterSize", cluster_size, unit="B")
    if backing:
        below = add(root, "backingStore")
        add(below, "path", backing[0])
        add(below, "format", type=backing[1])
    return ElementTree.tostring(root, encoding="unicode")


def ask_for(
    worker: Worker,
    target: str,
    create: Callable[[libvirt.virStoragePool], libvirt.virStorageVol],
    tick: Callable[[], None] = lambda: None,
) -> tuple[PoolVolume, libvirt.virStorageVol]:
    """Let libvirtd make a volume, in the phase that has begun; it is deleted again if the job does not complete.

    `tick` is called from time to time meanwhile. Raises JobError.
    """
    there = worker.pools
    assert there is not None
    pool = there.pool(uri.parse(target).pool, target)
    volume = PoolVolume(target)

    def ask() -> libvirt.virStorageVol:
        made = create(pool)
        # Not before: one that was refused may be somebody else's, of the same name.
        worker.made.append(volume)
        return made

    worker.record(Made(target, there.uri))
    try:
        return volume, call(worker, ask, f"{target} is made", tick)
    except pools.load().libvirtError as error:
        if error.get_error_domain() == pools.load().VIR_FROM_RPC:
            worker.warn(
                f"libvirtd may go on and make {target}, of which this job then knows nothing; look, and delete it"
            )
        raise there.problem(error, f"make {target}")


class PoolVolume:
    """One that was made for this job."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.path: str | None = None

    def discard(self, worker: Worker) -> None:
        """Let the driver delete it; a warning says when it cannot."""
        assert worker.pools is not None
        if self.path:
            worker.release(self.path)
        worker.pools.close()  # what carried the connection may have been ended with the job
        try:
            volume = worker.pools.volume(uri.parse(self.target))
            worker.pools.ask(lambda: volume.delete(0), self.target)
        except JobError as error:
            worker.warn(f"{self.target} is left, and holds nothing of use: {error}")


def delete(worker: Worker, target: str) -> None:
    """Let the driver delete a volume, which nobody may have open, and wait for it. Raises JobError."""
    assert worker.pools is not None
    volume = worker.pools.volume(uri.parse(target))
    worker.pools.ask(lambda: call(worker, lambda: volume.delete(0), f"{target} is deleted"), target)
