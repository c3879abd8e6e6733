"""The job type `convert`."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import chain as chains
from jobvisor_workers import making, pool_volume, qemu_img, room
from jobvisor_workers.data import copy, libc
from jobvisor_workers.data.extents import allocated
from jobvisor_workers.data.window import Window
from jobvisor_workers.data.zeros import preallocate
from jobvisor_workers.errors import BadArgument, JobError, NoSpace
from jobvisor_workers.jobtype import READ, JobType, byte_size, new_volume, volume
from jobvisor_workers.qemu_img import BACKED, STREAM, Format, Image
from jobvisor_workers.resources import uri
from jobvisor_workers.worker import Worker

#: What images of other formats than raw count in.
SECTOR = 512


class Convert(JobType, tag="convert"):
    """Copy a volume to a new one of another format.

    What a guest sees is the same; internal snapshots and bitmaps stay behind. Backing files become part of the new
    volume, or with --no-flatten stay its backing files. Raw to raw is copied by jobvisor itself, the rest is written
    by qemu-img. Nothing is visible under the target's name before it is complete and on the disk.
    """

    source: Annotated[str, volume("file or block device to read", READ)]
    target: Annotated[str, new_volume("file to make, or with --replace a file or block device to give up")]
    output_format: Annotated[
        Literal["raw", "qcow2", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels"],
        Meta(description="the format of the new volume"),
    ] = "raw"
    compress: Annotated[bool, Meta(description="compress the data (qcow2, vmdk)")] = False
    compression_type: Annotated[
        Literal["zlib", "zstd"] | None,
        Meta(description="of a qcow2 (default: zstd with --compress; QEMU before 5.1 reads only zlib)"),
    ] = None
    cluster_size: Annotated[int, byte_size("of a qcow2 or qed", least=512)] | None = None
    preallocation: Annotated[
        Literal["off", "metadata", "falloc", "full"],
        Meta(description="tables (qcow2), or also space for all data, or also zeroes written there (raw, qcow2)"),
    ] = "off"
    flatten: Annotated[bool, Meta(description="make backing files part of it, or keep them (qcow2, qed)")] = True
    replace: Annotated[bool, Meta(description="give up what the target holds")] = False
    format: Annotated[
        Format | None, Meta(description="the source's format when its first bytes are not to be trusted")
    ] = None
    keep_partial: Annotated[
        bool,
        Meta(description="from raw to raw: if the job fails or is aborted, keep what is copied; retry goes on there"),
    ] = False
    fills: ClassVar[bool] = True
    retry: ClassVar[Literal["never", "restart", "continue"]] = "continue"

    def plan(self, worker: Worker) -> None:
        """Everything that can be known before the first byte: options, chain, health of the images, room."""
        self._check_options()
        chain = chains.open_chain(worker, self.source, self.format, self._doing)
        making.refuse_own_chain(chain, self.target, self._doing)
        if not all(worker.is_locked(image.path) for image in chain):
            return
        chains.check_readable(worker, chain, self._doing)
        top = chain[0]
        if self.output_format != "raw" and top.size % SECTOR:
            worker.warn(f"{self.target} gets {-top.size % SECTOR} bytes more, zeroes: {SECTOR} is the unit of its size")
        for what, count in (("internal snapshots", top.snapshots), ("bitmaps", len(top.details.get("bitmaps", ())))):
            if count:
                worker.warn(f"{self.source} has {count} {what}, which {self.target} does not get")
        needed = self._check_room(worker, chain)
        if self.keep_partial and (not self._own(top) or uri.is_name(self.target)):
            worker.warn(f"nothing is kept of {self.target} but the whole: only raw to raw goes on from a part")
        if worker.dry_run:
            self._expect(worker, chain, needed)

    def run(self, worker: Worker) -> dict[str, Any]:
        chain = chains.open_chain(worker, self.source, self.format, self._doing)
        method, space = making.make(
            worker,
            self.target,
            self.replace,
            lambda target, directory: self._fill(worker, chain, target, directory),
            what="the new volume",
            doing=self._doing,
            capacity=lambda: self._check_room(worker, chain),
            keep=self._own(chain[0]),
        )
        return {
            "source": self.source,
            "target": self.target,
            "format": self.output_format,
            "method": method,
            "size": self._size(chain[0]),
            "allocated": space,
        }

    @property
    def _doing(self) -> str:
        return f"convert {self.source}"

    def _size(self, top: Image) -> int:
        return top.size if self.output_format == "raw" else -(-top.size // SECTOR) * SECTOR

    # --- before the first byte -------------------------------------------------------------------------------

    def _check_options(self) -> None:
        kind = self.output_format
        allowed = {
            "--compress": (self.compress, ("qcow2", "vmdk")),
            "--compression-type": (self.compression_type, ("qcow2",)),
            "--cluster-size": (self.cluster_size, ("qcow2", "qed")),
            "--no-flatten": (not self.flatten, BACKED),
            f"--preallocation {self.preallocation}": (
                self.preallocation != "off",
                ("qcow2",) if self.preallocation == "metadata" else ("raw", "qcow2"),
            ),
        }
        for option, (given, formats) in allowed.items():
            if given and kind not in formats:
                raise BadArgument(f"cannot {self._doing}: {option} is for {' and '.join(formats)}, not for {kind}")
        if self.preallocation != "off" and (self.compress or not self.flatten):
            other = "--compress" if self.compress else "--no-flatten"
            raise BadArgument(
                f"cannot {self._doing}: --preallocation {self.preallocation} and {other} exclude each other"
            )

    def _check_room(self, worker: Worker, chain: list[Image]) -> int:
        """Returns the bytes that a raw or qcow2 takes at most, or one of another format at least."""
        top, device = chain[0], making.device_of(worker, self.target)
        new = uri.is_name(self.target)  # a partition to be made
        if (device or new) and self.output_format not in ("raw", "qcow2"):
            raise BadArgument(f"cannot {self._doing} to {self.target}: on a device only raw and qcow2 images can live")
        if (device or new) and self.preallocation != "off":
            raise BadArgument(
                f"cannot {self._doing} to {self.target}: a device has all its space; omit --preallocation"
            )
        if self.output_format == "qcow2":
            needed, most = qemu_img.measure(worker, self._read(chain), "qcow2", self._options(), self._doing)
        else:
            # Of raw qemu-img measures the length, and of others nothing. They take their data, in whole blocks.
            needed, most = sum(chains.data_of(worker, self._read(chain), self._doing).values()), top.size
        if self.preallocation in ("falloc", "full") or (device and self.output_format == "raw"):
            needed = most
        if new:
            pool_volume.check_room(worker, self.target, most, f"{self._doing} to {self.target}")
            return most
        if device:
            if needed > device.size and not self.compress:
                short = room.compare(needed, "the device", device.size)
                raise NoSpace(f"cannot {self._doing} to {self.target}: {short}")
            if self.output_format == "raw" and needed < device.size:
                rest = device.size - needed
                worker.warn(f"{self.target} is larger than {self.source}: its last {rest} bytes stay as they were")
            return needed
        directory = making.directory_of(self.target, self.replace)
        room.check_writable(self.target, directory)
        if not self.compress and not self._may_share(top, directory):
            room.check_free(directory, needed - worker.kept_space, f"{self._doing} to {self.target}")
        return needed

    def _expect(self, worker: Worker, chain: list[Image], needed: int) -> None:
        top, read = chain[0], self._read(chain)
        if self._own(top) and not uri.is_name(self.target):
            data, directory = allocated(top.fd, top.size), making.directory_of(self.target, self.replace)
            space = room.in_blocks(data if self.preallocation == "off" else top.size)
            exact = not self._may_share(top, directory)
            making.expect(worker, {self.source: data}, self.target, data, space, exact=exact)
            return
        if self.output_format not in ("raw", "qcow2"):
            size, options = self._size(top), self._options()
            needed = qemu_img.most(worker, read, self.output_format, size, options, self._doing)
        making.expect(worker, chains.data_of(worker, read, self._doing), self.target, needed)

    def _may_share(self, top: Image, directory: str) -> bool:
        return self._own(top) and self.preallocation == "off" and room.may_share(top.fd, directory)

    def _read(self, chain: list[Image]) -> list[Image]:
        return chain if self.flatten else chain[:1]

    # --- the bytes -------------------------------------------------------------------------------------------

    def _own(self, top: Image) -> bool:
        return top.format == "raw" and self.output_format == "raw"

    def _fill(self, worker: Worker, chain: list[Image], target: int, directory: str | None) -> str:
        """Write all of the target and bring it to the disk but for its metadata; returns how."""
        top = chain[0]
        keeping = worker.keeping
        worker.phase("convert", total=top.size, done=keeping.done if keeping else 0)
        if self._own(top):
            sparse = None if self.preallocation == "off" else False
            method = copy.copy(
                top.fd,
                target,
                top.size,
                sparse=sparse,
                advance=worker.advance,
                window=Window(target),
                skip=worker.skip,
                keeping=keeping,
            )
            worker.phase("sync")
            return method
        keep = not self.flatten and top.backing is not None
        self._lay_out(worker, chain, target, chains.name_for(top, chain[1], directory) if keep else None)
        written = Image(self.target, target, self.output_format, self._size(top), 0, backing=top.backing)
        qemu_img.convert(
            worker,
            chain,
            written,
            fill=self.preallocation == "full",
            keep=keep,
            clean=directory is not None or self.output_format != "raw",
            compress=self.compress,
            doing=self._doing,
        )
        if self.output_format == "raw" and directory is not None:
            os.ftruncate(target, top.size)  # direct I/O may have rounded it up
        worker.reached(top.size)
        making.write_back(worker, target)
        return "qemu-img"

    def _lay_out(self, worker: Worker, chain: list[Image], target: int, backing: tuple[str, str] | None) -> None:
        """The target with nothing in it."""
        size, kind = self._size(chain[0]), self.output_format
        if kind == "raw":
            if not libc.is_block_device(target) and size:
                os.ftruncate(target, size)
        else:
            making.lay_out(
                qemu_img.empty(worker, self.target, kind, size, self._options(), backing, self._doing), target
            )
        if self.preallocation in ("falloc", "full") and not preallocate(target, libc.size_of(target)):
            raise JobError(f"cannot {self._doing} to {self.target}: its filesystem cannot allocate space ahead")

    def _options(self) -> dict[str, str | int]:
        options: dict[str, str | int] = {}
        if self.cluster_size:
            options["cluster_size"] = self.cluster_size
        match self.output_format:
            case "qcow2":
                options["compression_type"] = self.compression_type or ("zstd" if self.compress else "zlib")
                if self.preallocation != "off":
                    options["preallocation"] = "metadata"
            case "vmdk" if self.compress:
                options["subformat"] = STREAM
            case "vpc":
                # Without it the size is rounded to a geometry.
                options["force_size"] = "on"
        return options
