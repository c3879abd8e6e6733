"""The job type `delete`."""

from __future__ import annotations

import os
import stat
import struct
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import jobtype, pool_volume, qcow2
from jobvisor_workers.data import overwrite
from jobvisor_workers.data.passes import PASSES
from jobvisor_workers.errors import BadArgument, JobError, from_os_error
from jobvisor_workers.jobs.wipe import allocation, telling, warn_of_copies
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.output import remove_if_same, sync_directory
from jobvisor_workers.remote import RemoteVolume, refuse
from jobvisor_workers.resources import pools, uri
from jobvisor_workers.worker import Volume, Worker

#: Of a qcow2: magic, version, and where the backing file's name lies, and how long it is.
QCOW2 = struct.Struct(">4sIQI")
LONGEST_NAME = 1023
#: Names of snapshots that an error has.
SHOWN = 5


class Delete(JobType, tag="delete"):
    """Delete a volume.

    With --zeroed its bytes are overwritten with zeroes first. What a VM or another job uses is not deleted, nor what a
    qcow2 in the same directory has as its backing file; overlays in other places nobody can know. A qcow2 with internal
    snapshots is deleted only with --delete-snapshots.
    """

    volume: Annotated[str, jobtype.volume("file to delete, or partition of a pool", WRITE)]
    zeroed: Annotated[bool, Meta(description="overwrite it with zeroes first")] = False
    delete_snapshots: Annotated[bool, Meta(description="also when it is a qcow2 with internal snapshots")] = False
    remote: ClassVar[bool] = True
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        if uri.is_name(self.volume):
            self._plan_remote(worker)
            return
        target = worker.volume(self.volume)
        if self._in_pool(worker):
            self._check_snapshots(target)
            if worker.dry_run:
                worker.expect(writes={self.volume: target.size if self.zeroed else 0}, space=0)
            return
        if target.kind == "block":
            raise BadArgument(f"cannot {self._doing}: it is a block device, not a file; wipe overwrites it")
        if os.path.islink(self.volume):
            raise BadArgument(f"cannot {self._doing}: it is a symbolic link; delete {os.path.realpath(self.volume)}")
        directory = os.path.dirname(self.volume)
        if not os.access(directory, os.W_OK | os.X_OK):
            read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
            why = "the filesystem is read-only" if read_only else f"permission denied in the directory {directory}"
            raise JobError(f"cannot {self._doing}: {why}")
        if overlay := _overlay_of(directory, os.fstat(target.fd)):
            raise JobError(f"cannot {self._doing}: it is the backing file of {overlay}; rebase or delete that first")
        self._check_snapshots(target)
        if self.zeroed:
            warn_of_copies(worker, target)
        elif (links := os.fstat(target.fd).st_nlink) > 1:
            worker.warn(f"{self.volume} has {links} names (hard links): its data stays under the others")
        if worker.dry_run:
            last = os.fstat(target.fd).st_nlink == 1
            written = target.size if self.zeroed else 0
            worker.expect(writes={self.volume: written}, space=-allocation(target) if last else 0)

    def _check_snapshots(self, target: Volume) -> None:
        names = [] if self.delete_snapshots else qcow2.snapshots(target.fd)
        if names:
            shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
            raise JobError(
                f"cannot {self._doing}: it has {len(names)} internal snapshots ({shown}); add --delete-snapshots to "
                "delete them with it"
            )

    def run(self, worker: Worker) -> dict[str, Any]:
        if uri.is_name(self.volume):
            return self._run_remote(worker)
        target = worker.volume(self.volume)
        if name := self._in_pool(worker):
            return self._run_in_pool(worker, target, name)
        directory, last = os.path.split(self.volume)
        facts = os.fstat(target.fd)
        try:
            self._overwrite(worker, target)
            worker.phase("delete")
            holder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                remove_if_same(holder, last, facts)
            finally:
                os.close(holder)
            sync_directory(directory)
        except BaseException as error:
            if os.fstat(target.fd).st_nlink < facts.st_nlink:
                worker.warn(f"{self.volume} is deleted")
            elif worker.abort_effect:
                worker.warn(f"{self.volume} is {worker.abort_effect}")
            if isinstance(error, OSError):
                raise from_os_error(error, self._doing)
            raise
        worker.abort_effect = None
        return {"size": target.size, "zeroed": self.zeroed, "names_left": os.fstat(target.fd).st_nlink}

    def _overwrite(self, worker: Worker, target: Volume) -> None:
        if self.zeroed:
            worker.phase("overwrite", total=target.size)
            advance = telling(worker, "overwriting", max(1, target.size))
            overwrite.run_pass(target.fd, target.size, PASSES["zero"][0], advance=advance)

    def _in_pool(self, worker: Worker) -> str | None:
        """The name of a device that its pool's driver can delete."""
        if worker.pools is None or worker.volume(self.volume).kind != "block":
            return None
        return str(worker.pools.names[self.volume]) if self.volume in worker.pools.names else None

    def _run_in_pool(self, worker: Worker, target: Volume, name: str) -> dict[str, Any]:
        try:
            self._overwrite(worker, target)
        except BaseException as error:
            if worker.abort_effect:
                worker.warn(f"{name} is {worker.abort_effect}")
            if isinstance(error, OSError):
                raise from_os_error(error, f"delete {name}")
            raise
        worker.abort_effect = None
        worker.phase("delete")
        worker.release(self.volume)
        pool_volume.delete(worker, name)
        return {"size": target.size, "zeroed": self.zeroed, "names_left": 0}

    # --- where only libvirtd gets at it ----------------------------------------------------------------------

    def _plan_remote(self, worker: Worker) -> None:
        refuse(self._doing, bandwidth=worker.bandwidth)
        target = RemoteVolume(worker, self.volume, self._doing)
        if self.zeroed and target.has_holes:
            worker.warn(f"{self.volume} has holes: libvirtd gives its blocks back instead of overwriting them")
        worker.expect(writes={self.volume: target.size if self.zeroed else 0}, space=-target.allocation)

    def _run_remote(self, worker: Worker) -> dict[str, Any]:
        target = RemoteVolume(worker, self.volume, self._doing)
        if self.zeroed:
            worker.phase("overwrite")
            target.delegate(worker, lambda: target.handle.wipePattern(0, 0), "overwritten")
        worker.phase("delete")
        flags = pools.load().VIR_STORAGE_VOL_DELETE_WITH_SNAPSHOTS if self.delete_snapshots else 0
        target.delegate(worker, lambda: target.handle.delete(flags), "deleted")
        return {"size": target.size, "zeroed": self.zeroed, "names_left": 0}

    @property
    def _doing(self) -> str:
        return f"delete {self.volume}"


def _overlay_of(directory: str, base: os.stat_result) -> str | None:
    """A qcow2 in `directory` whose backing file is `base`; those that cannot be read are passed over."""
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                name = _backing_name(entry.path) if entry.is_file(follow_symlinks=False) else None
                if name and os.path.samestat(os.stat(os.path.join(os.path.dirname(entry.path), name)), base):
                    return entry.path
            except (OSError, ValueError):  # gone, not ours to read, or a name with a zero byte
                continue
    return None


def _backing_name(path: str) -> str | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head = os.pread(fd, QCOW2.size, 0)
        if len(head) < QCOW2.size or not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        magic, _, offset, length = QCOW2.unpack(head)
        if magic != b"QFI\xfb" or not offset or length > LONGEST_NAME:
            return None
        return os.fsdecode(os.pread(fd, length, offset)).removeprefix("file:")
    finally:
        os.close(fd)
