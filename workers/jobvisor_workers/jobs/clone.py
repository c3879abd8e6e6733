"""The job type `clone`."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import chain as chains
from jobvisor_workers import making, pool_volume, qemu_img, remote_clone, room
from jobvisor_workers.data import copy
from jobvisor_workers.data.extents import allocated
from jobvisor_workers.data.window import Window
from jobvisor_workers.errors import BadArgument, NoSpace
from jobvisor_workers.jobtype import READ, JobType, new_volume, volume
from jobvisor_workers.qemu_img import STREAM, Format, Image
from jobvisor_workers.remote import concerns
from jobvisor_workers.resources import uri
from jobvisor_workers.worker import Volume, Worker


class Clone(JobType, tag="clone"):
    """Copy a volume to a new one of the same format.

    A raw volume is copied byte by byte; where the filesystem can share blocks (xfs, btrfs) that is done instead. Other
    formats are written anew by qemu-img: what a guest sees is the same, internal snapshots and bitmaps stay behind, and
    compressed clusters are stored uncompressed. A qcow2 keeps its backing file, its cluster size and its other
    properties. An encrypted image is copied byte by byte. Nothing is visible under the target's name before it is
    complete and on the disk.
    """

    source: Annotated[str, volume("file or block device to copy", READ)]
    target: Annotated[str, new_volume("file to make, or with --replace a file or block device to give up")]
    sparse: Annotated[
        bool | None,
        Meta(
            description="leave out zeroes also where the source stores them, or store them also where it has holes "
            "(default: raw keeps the source's holes, other formats leave out zeroes)"
        ),
    ] = None
    reflink: Annotated[
        bool | None,
        Meta(
            description="share the blocks of the source or fail (of a qcow2 the whole container, with its snapshots), "
            "or never share (default: a raw volume shares where it can)"
        ),
    ] = None
    replace: Annotated[bool, Meta(description="give up what the target holds")] = False
    format: Annotated[
        Format | None, Meta(description="the source's format when its first bytes are not to be trusted")
    ] = None
    keep_partial: Annotated[
        bool,
        Meta(description="of a raw volume: if the job fails or is aborted, keep what is copied; retry goes on there"),
    ] = False
    fills: ClassVar[bool] = True
    remote: ClassVar[bool] = True
    retry: ClassVar[Literal["never", "restart", "continue"]] = "continue"

    def plan(self, worker: Worker) -> None:
        """Everything that can be known before the first byte: chain, health of the image, room."""
        if self.reflink and self.sparse is not None:
            other = "--sparse" if self.sparse else "--no-sparse"
            raise BadArgument(f"cannot {self._doing} with --reflink and {other}: what is shared keeps its layout")
        if concerns(worker, self):
            remote_clone.plan(worker, self, self._doing)
            return
        chain = chains.open_chain(worker, self.source, self.format, self._doing)
        making.refuse_own_chain(chain, self.target, self._doing)
        if not all(worker.is_locked(image.path) for image in chain):
            return
        top, device = chain[0], making.device_of(worker, self.target)
        if not top.plain:
            data = qemu_img.sound(worker, top, self._doing)
        elif self.sparse is False:
            data = top.container
        else:
            data = allocated(top.fd, top.container)
        if uri.is_name(self.target):
            pool_volume.check_room(worker, self.target, self._capacity(worker, top), f"{self._doing} to {self.target}")
        elif device:
            self._check_device(worker, top, device, data)
        else:
            self._check_directory(worker, top, data)
        self._warn(worker, chain)
        if self.keep_partial and (not self._own(top) or uri.is_name(self.target)):
            worker.warn(f"nothing is kept of {self.target} but the whole: only a copy byte by byte goes on from a part")
        if worker.dry_run:
            self._expect(worker, chain, data)

    def run(self, worker: Worker) -> dict[str, Any]:
        if concerns(worker, self):
            return remote_clone.run(worker, self, self._doing)
        chain = chains.open_chain(worker, self.source, self.format, self._doing)
        method, space = making.make(
            worker,
            self.target,
            self.replace,
            lambda target, directory: self._fill(worker, chain, target, directory),
            what="the clone",
            doing=self._doing,
            capacity=lambda: self._capacity(worker, chain[0]),
            keep=self._own(chain[0]),
        )
        return {
            "source": self.source,
            "target": self.target,
            "format": chain[0].format,
            "method": method,
            "size": chain[0].size,
            "allocated": space,
        }

    @property
    def _doing(self) -> str:
        return f"clone {self.source}"

    def _own(self, top: Image) -> bool:
        """Copied byte by byte from the first to the last, by us."""
        return top.plain and not self.reflink

    # --- before the first byte -------------------------------------------------------------------------------

    def _capacity(self, worker: Worker, top: Image) -> int:
        """Bytes of a partition to be made: a qcow2 has room for all that a guest may write."""
        self._check_lives_on_device(top)
        return top.container if top.plain else top.size + qemu_img.overhead(worker, top, self._doing)

    def _check_lives_on_device(self, top: Image) -> None:
        if not top.plain and top.format != "qcow2":
            raise BadArgument(f"cannot {self._doing} to {self.target}: on a device only raw and qcow2 images can live")

    def _check_device(self, worker: Worker, top: Image, device: Volume, data: int) -> None:
        self._check_lives_on_device(top)
        if top.plain or self.reflink:
            needed = top.container
        else:
            needed = (top.size if self.sparse is False else data) + qemu_img.overhead(worker, top, self._doing)
        if needed > device.size:
            short = room.compare(needed, "the device", device.size)
            raise NoSpace(f"cannot {self._doing} to {self.target}: {short}")
        if top.format == "raw" and needed < device.size:
            worker.warn(
                f"{self.target} is larger than {self.source}: its last {device.size - needed} bytes stay as they were"
            )

    def _check_directory(self, worker: Worker, top: Image, data: int) -> None:
        directory = making.directory_of(self.target, self.replace)
        room.check_writable(self.target, directory)
        sharing = self.reflink or (top.plain and self.reflink is None and room.may_share(top.fd, directory))
        if self.sparse or sharing:
            return
        needed = (top.size if self.sparse is False else data) - worker.kept_space
        advice = "" if self.sparse is False else "; --sparse tries anyway, leaving out zeroes"
        room.check_free(directory, needed, f"{self._doing} to {self.target}", advice)

    def _expect(self, worker: Worker, chain: list[Image], data: int) -> None:
        top, fill = chain[0], self.sparse is False
        if uri.is_name(self.target):
            making.expect(worker, {self.source: data}, self.target, self._capacity(worker, top))
            return
        if self.reflink:
            making.expect(worker, {self.source: 0}, self.target, 0, exact=True)
            return
        if top.format == "qcow2" and not top.plain:
            most = (top.size if fill else data) + qemu_img.overhead(worker, top, self._doing)
            making.expect(worker, {self.source: data}, self.target, most)
            return
        if not top.plain:
            options = qemu_img.options_of(top)
            most = qemu_img.most(worker, chain, top.format, top.size, options, self._doing, fill=fill)
            making.expect(worker, {self.source: data}, self.target, most)
            return
        data = allocated(top.fd, top.container)
        space = top.container if fill else data
        directory = making.directory_of(self.target, self.replace)
        shared = self.sparse is None and self.reflink is None and room.may_share(top.fd, directory)
        making.expect(
            worker, {self.source: data}, self.target, data, room.in_blocks(space), exact=not self.sparse and not shared
        )

    def _warn(self, worker: Worker, chain: list[Image]) -> None:
        top = chain[0]
        if top.plain or self.reflink:
            return
        if top.snapshots:
            worker.warn(f"{self.source} has {top.snapshots} internal snapshots, which the clone does not carry")
        if bitmaps := len(top.details.get("bitmaps", ())):
            worker.warn(f"{self.source} has {bitmaps} bitmaps, which the clone does not carry")
        if top.backing and not top.backing_format:
            worker.warn(
                f"{self.source} does not say of what format its backing file is; the clone says {chain[1].format}"
            )

    # --- the bytes -------------------------------------------------------------------------------------------

    def _fill(self, worker: Worker, chain: list[Image], target: int, directory: str | None) -> str:
        """Write all of the target and bring it to the disk but for its metadata; returns how."""
        top = chain[0]
        backing = chains.name_for(top, chain[1], directory) if top.backing else None
        if top.plain or self.reflink:
            return self._copy(worker, top, target, backing)
        worker.phase("copy", total=top.size)
        options = qemu_img.options_of(top)
        header = qemu_img.empty(worker, self.source, top.format, top.size, options, backing, self._doing)
        length = os.fstat(header).st_size
        making.lay_out(header, target)
        written = Image(self.target, target, top.format, top.size, length, backing=top.backing)
        packed = top.details.get("create-type") == STREAM
        qemu_img.convert(worker, chain, written, fill=self.sparse is False, compress=packed, doing=self._doing)
        worker.reached(top.size)
        making.write_back(worker, target)
        return "qemu-img"

    def _copy(self, worker: Worker, top: Image, target: int, backing: tuple[str, str] | None) -> str:
        keeping = worker.keeping
        worker.phase("copy", total=top.container, done=keeping.done if keeping else 0)
        method = copy.copy(
            top.fd,
            target,
            top.container,
            sparse=self.sparse,
            reflink=self.reflink,
            advance=worker.advance,
            window=Window(target),
            skip=worker.skip,
            keeping=keeping,
        )
        if backing and backing[0] != top.backing:
            qemu_img.rename_backing(worker, target, top.format, backing, self._doing)
        worker.phase("sync")
        return method
