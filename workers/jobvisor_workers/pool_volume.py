"""New volumes that only their pool's driver can make: partitions, logical volumes.

They have a name from the first byte on; one whose job does not complete is deleted again. A worker that is killed
cannot do that.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
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
    name = uri.parse(target)
    pool = there.pool(name.pool, target)
    root = ElementTree.Element("volume")
    ElementTree.SubElement(root, "name").text = name.volume
    ElementTree.SubElement(root, "capacity", unit="bytes").text = str(capacity)
    wanted = ElementTree.tostring(root, encoding="unicode")
    volume = PoolVolume(target)

    def ask() -> libvirt.virStorageVol:
        made = pool.createXML(wanted, 0)
        # Not before: one that was refused may be somebody else's, of the same name.
        worker.made.append(volume)
        return made

    worker.phase("make the volume")
    worker.record(Made(target, there.uri))
    try:
        made = call(worker, ask, f"{target} is made")
    except pools.load().libvirtError as error:
        raise there.problem(error, f"make {target}")
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
