"""The job type `resize`."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import chain as chains
from jobvisor_workers import jobtype, qemu_img, room
from jobvisor_workers.data import libc
from jobvisor_workers.data.content import content
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.data.zeros import UNSUPPORTED
from jobvisor_workers.errors import BadArgument, JobError, from_os_error
from jobvisor_workers.jobtype import WRITE, JobType, byte_size
from jobvisor_workers.qemu_img import Format, Image
from jobvisor_workers.remote import RemoteVolume, refuse
from jobvisor_workers.resources import pools, uri
from jobvisor_workers.worker import Worker

#: Formats whose size qemu-img can change.
RESIZED = ("qcow2", "qed", "parallels")
#: Bytes that one system call allocates or cuts off: no signal interrupts it.
STEP = 256 << 20
#: What images of other formats than raw count in.
SECTOR = 512


class Resize(JobType, tag="resize"):
    """Change the capacity of a volume.

    The capacity is what a guest sees; with --delta it is what is added, or with --shrink taken away. Less than before
    needs --shrink, and how much data that cuts off is said either way. --allocate gives a raw file all the space that
    it may ever need. A raw file is exact; other formats round up to 512 bytes. Partitions and filesystems inside are
    left as they are. A block device has the size that its owner gave it (lvresize, and the like).
    """

    volume: Annotated[str, jobtype.volume("file to resize", WRITE)]
    capacity: Annotated[int, byte_size("new capacity, or the difference with --delta", least=1)]
    delta: Annotated[bool, Meta(description="the capacity is added, with --shrink taken away")] = False
    shrink: Annotated[bool, Meta(description="less than before is meant, and data may be cut off")] = False
    allocate: Annotated[bool, Meta(description="allocate all of a raw file now")] = False
    format: Annotated[Format | None, Meta(description="the format when the first bytes are not to be trusted")] = None
    remote: ClassVar[bool] = True
    #: A second --delta would be added to the first.
    retry: ClassVar[Literal["never", "restart", "continue"]] = "never"

    def plan(self, worker: Worker) -> None:
        if uri.is_name(self.volume):
            self._plan_remote(worker)
            return
        if worker.volume(self.volume).kind == "block":
            raise BadArgument(
                f"cannot {self._doing}: it is a block device, whose size belongs to what provides it (lvresize, "
                "the disk array); resize it there"
            )
        chain = chains.open_chain(worker, self.volume, self.format, self._doing)
        if not all(worker.is_locked(image.path) for image in chain):
            return
        top = chain[0]
        self._check_kind(worker, top)
        size = self._capacity(top.size, top.format)
        if size < top.size:
            self._check_shrink(worker, chain, size)
        elif self.allocate:
            needed = max(0, size - os.fstat(top.fd).st_blocks * 512)
            room.check_free(os.path.dirname(os.path.realpath(self.volume)), needed, self._doing)
        if worker.dry_run:
            self._expect(worker, top, size)

    def run(self, worker: Worker) -> dict[str, Any]:
        if uri.is_name(self.volume):
            return self._run_remote(worker)
        chain = chains.open_chain(worker, self.volume, self.format, self._doing)
        top = chain[0]
        size = self._capacity(top.size, top.format)
        try:
            if top.format == "raw":
                self._resize_raw(worker, top, size)
            else:
                worker.phase("resize")
                if size < top.size:
                    worker.abort_effect = f"perhaps cut off: what lies beyond byte {size} may be gone, or still there"
                if size != top.size:
                    qemu_img.resize(worker, chain, size, self._doing)
            worker.phase("sync")
            os.fsync(top.fd)
            worker.abort_effect = None
        except BaseException as error:
            if worker.abort_effect:
                worker.warn(f"{self.volume} is {worker.abort_effect}")
            if isinstance(error, OSError):
                raise from_os_error(error, self._doing)
            raise
        space = os.fstat(top.fd).st_blocks * 512
        return {"format": top.format, "capacity": size, "capacity_before": top.size, "allocation": space}

    @property
    def _doing(self) -> str:
        return f"resize {self.volume}"

    # --- before anything is changed --------------------------------------------------------------------------

    def _check_kind(self, worker: Worker, top: Image) -> None:
        if top.format == "raw":
            return
        if top.plain:
            raise JobError(f"cannot {self._doing}: it is encrypted, and its size cannot be changed without its key")
        if top.format not in RESIZED:
            raise JobError(
                f"cannot {self._doing}: qemu-img cannot resize a {top.format}; convert it to qcow2 or raw first"
            )
        if self.allocate:
            raise BadArgument(f"cannot {self._doing}: --allocate is for raw files, and this is a {top.format}")
        qemu_img.sound(worker, top, self._doing)

    def _capacity(self, there: int, form: str) -> int:
        size = self.capacity
        if self.delta:
            size = there - size if self.shrink else there + size
        if size <= 0:
            raise BadArgument(f"cannot {self._doing}: it has {there} bytes, and nothing would be left of it")
        if self.shrink and size > there:
            raise BadArgument(f"cannot {self._doing}: --shrink to {size} bytes, but it has only {there}")
        return size if form == "raw" else -(-size // SECTOR) * SECTOR

    def _expect(self, worker: Worker, top: Image, size: int) -> None:
        if top.format != "raw":
            worker.expect(writes={self.volume: None if size != top.size else 0})
            return
        held = os.fstat(top.fd).st_blocks * 512
        if self.allocate:
            space = max(0, room.in_blocks(size) - held)
        else:
            kept = sum(room.in_blocks(length) for _, length in data_extents(top.fd, 0, min(size, top.size)))
            space = kept - held if size < top.size else 0
        worker.expect(writes={self.volume: 0}, space=space)

    def _check_shrink(self, worker: Worker, chain: list[Image], size: int) -> None:
        top = chain[0]
        if top.format == "raw":
            try:
                lost = content(top.fd, size, top.size, lambda _count: worker.skip(0))
            except OSError as error:
                raise from_os_error(error, self._doing)
        else:
            lost = qemu_img.data_from(worker, chain, size, self._doing)
        if lost:
            what = f"{room.human(lost)} of data ({lost} bytes) beyond byte {size}"
        else:
            what = f"nothing but zeroes beyond byte {size}"
        if not self.shrink:
            sizes = f"from {top.size} to {size} bytes"
            raise BadArgument(f"cannot {self._doing} {sizes}: it would lose {what}; add --shrink if that is meant")
        if lost:
            worker.warn(f"{self.volume} loses {what}")

    # --- where only libvirtd gets at it ----------------------------------------------------------------------

    def _plan_remote(self, worker: Worker) -> None:
        refuse(self._doing, format=self.format, bandwidth=worker.bandwidth)
        top = RemoteVolume(worker, self.volume, self._doing)
        size = self._capacity(top.capacity, top.format)
        if size < top.capacity:
            what = f"what lies beyond byte {size}, which nobody here can look at"
            if not self.shrink:
                sizes = f"from {top.capacity} to {size} bytes"
                raise BadArgument(f"cannot {self._doing} {sizes}: it would lose {what}; add --shrink if that is meant")
            worker.warn(f"{self.volume} loses {what}")
        worker.expect(writes={self.volume: None if size != top.capacity else 0})

    def _run_remote(self, worker: Worker) -> dict[str, Any]:
        module = pools.load()
        top = RemoteVolume(worker, self.volume, self._doing)
        size = self._capacity(top.capacity, top.format)
        flags = module.VIR_STORAGE_VOL_RESIZE_ALLOCATE if self.allocate else 0
        if size < top.capacity:
            flags |= module.VIR_STORAGE_VOL_RESIZE_SHRINK
        worker.phase("resize")
        if size != top.capacity or self.allocate:
            top.delegate(worker, lambda: top.handle.resize(size, flags), "resized")
        after = RemoteVolume(worker, self.volume, self._doing)
        return {
            "format": top.format,
            "capacity": after.capacity,
            "capacity_before": top.capacity,
            "allocation": after.allocation,
        }

    # --- raw -------------------------------------------------------------------------------------------------

    def _resize_raw(self, worker: Worker, top: Image, size: int) -> None:
        if self.allocate:
            self._allocate(worker, top, size)
        worker.phase("resize")
        at = top.size
        if size < at:
            worker.abort_effect = f"cut off somewhere between byte {size} and byte {at}"
        while at > size:
            at = max(size, at - STEP)
            os.ftruncate(top.fd, at)
            worker.skip(0)
        if size > at:
            os.ftruncate(top.fd, size)

    def _allocate(self, worker: Worker, top: Image, size: int) -> None:
        """Space first, and beyond the end of the file: until the one call that sets the size nothing is to be seen."""
        worker.phase("allocate", total=size)
        worker.abort_effect = f"as it was, with {top.size} bytes; space already allocated inside it stays allocated"
        try:
            for offset in range(0, size, STEP):
                length = min(STEP, size - offset)
                libc.fallocate(top.fd, libc.FALLOC_KEEP_SIZE, offset, length)
                worker.advance(length)
        except BaseException as error:
            os.ftruncate(top.fd, top.size)  # gives back what lies beyond the end
            if isinstance(error, OSError) and error.errno in UNSUPPORTED:
                raise JobError(f"cannot {self._doing}: its filesystem cannot allocate space ahead; omit --allocate")
            raise
