"""The job type `create`."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import chain as chains
from jobvisor_workers import jobtype, making, pool_volume, qemu_img, room, secret
from jobvisor_workers.data import libc
from jobvisor_workers.data.cow import BTRFS, forbid_cow
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.data.zeros import fill_with_zeros, preallocate, rewrite
from jobvisor_workers.errors import BadArgument, JobError, NoSpace, from_os_error
from jobvisor_workers.jobtype import READ, JobType, byte_size, new_volume
from jobvisor_workers.qemu_img import BACKED, SECRET, Format, Image
from jobvisor_workers.remote import RemoteVolume, concerns, refuse
from jobvisor_workers.resources import pools, uri
from jobvisor_workers.worker import Worker

#: What volumes other than plain raw ones count in.
SECTOR = 512
#: A file position is a signed number of 64 bits.
CAPACITY_MAX = (1 << 63) - SECTOR
#: At least what a LUKS header takes, with all its slots.
LUKS_HEADER = 2 << 20


class Create(JobType, tag="create"):
    """Make a new, empty volume.

    A raw volume takes no space at first, or what --allocation or --prealloc say. A qcow2 or qed may be an overlay:
    with --backing-vol it shows what that volume holds until a guest writes to it. With --encrypt luks all that a guest
    writes is encrypted with a key that the secret unlocks. Nothing is visible under the target's name before it is
    complete and on the disk.
    """

    target: Annotated[str, new_volume("file to make, or with --replace a file or block device to give up")]
    capacity: Annotated[int, byte_size("what a guest sees; 0 with --backing-vol: as much as that has")]
    allocation: Annotated[int, byte_size("of a raw volume: allocate so much of it now")] | None = None
    format: Annotated[
        Literal["raw", "qcow2", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels"], Meta(description="its format")
    ] = "raw"
    backing_vol: Annotated[str, jobtype.volume("volume to be based on (qcow2, qed)", READ)] | None = None
    backing_vol_format: Annotated[
        Format | None, Meta(description="its format; without it the first bytes tell, which a guest may have written")
    ] = None
    prealloc: Annotated[
        Literal["off", "metadata", "falloc", "full"],
        Meta(description="tables (qcow2), or also space for all data, or also zeroes written there (raw, qcow2)"),
    ] = "off"
    nocow: Annotated[bool, Meta(description="let btrfs overwrite its blocks in place")] = False
    cluster_size: Annotated[int, byte_size("of a qcow2 or qed", least=512)] | None = None
    encrypt: Annotated[Literal["luks"] | None, Meta(description="encrypt what is written to it (raw, qcow2)")] = None
    secret_file: Annotated[str, jobtype.volume("file whose content, all of it, unlocks it", READ)] | None = None
    iter_time: Annotated[int, Meta(ge=1, description="milliseconds to try one secret (2000)")] | None = None
    replace: Annotated[bool, Meta(description="give up what the target holds")] = False
    fills: ClassVar[bool] = True
    remote: ClassVar[bool] = True
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        """Everything that can be known before the first byte: options, chain, secret, room."""
        self._check_options()
        if concerns(worker, self):
            self._plan_remote(worker)
            return
        chain = self._chain(worker)
        making.refuse_own_chain(chain, self.target, self._doing)
        if not all(worker.is_locked(image.path) for image in chain):
            return
        if chain and not self.backing_vol_format:
            worker.warn(
                f"{self.backing_vol} is taken for a {chain[0].format} by its first bytes, which a guest may have "
                "written; --backing-vol-format says it for certain"
            )
        if self.secret_file:
            secret.check(worker, worker.volume(self.secret_file), self._doing)
        size = self._size(chain)
        if chain and size < chain[0].size:
            worker.warn(f"{self.target} shows only the first {size} of the {chain[0].size} bytes of {self.backing_vol}")
        if self.capacity and size > self.capacity:
            worker.warn(f"{self.target} gets {size - self.capacity} bytes more: {SECTOR} is the unit of its size")
        self._check_place(worker, size)

    def run(self, worker: Worker) -> dict[str, Any]:
        if concerns(worker, self):
            return self._run_remote(worker)
        chain = self._chain(worker)
        size = self._size(chain)
        backing = chain[0] if chain else None
        _, space = making.make(
            worker,
            self.target,
            self.replace,
            lambda target, directory: self._fill(worker, target, size, backing, is_file=directory is not None),
            what="the new volume",
            doing="create",
            copy=False,
            capacity=lambda: self._capacity(worker, size),
        )
        return {
            "target": self.target,
            "format": self.format,
            "capacity": size,
            "allocation": space,
            "backing": backing.path if backing else None,
            "backing_format": backing.format if backing else None,
            "encryption": self.encrypt,
        }

    @property
    def _doing(self) -> str:
        return f"create {self.target}"

    @property
    def _kind(self) -> str:
        """As qemu-img calls it."""
        return "luks" if self.format == "raw" and self.encrypt else self.format

    def _chain(self, worker: Worker) -> list[Image]:
        if self.backing_vol is None:
            return []
        return chains.open_chain(worker, self.backing_vol, self.backing_vol_format, self._doing)

    def _size(self, chain: list[Image]) -> int:
        size = self.capacity or (chain[0].size if chain else 0)
        return size if self._kind == "raw" else -(-size // SECTOR) * SECTOR

    # --- where only libvirtd gets at it ----------------------------------------------------------------------

    def _plan_remote(self, worker: Worker) -> None:
        if not uri.is_name(self.target):
            raise BadArgument(f"cannot {self._doing}: {self.backing_vol}, its backing volume, has no path here")
        if self.secret_file and uri.is_name(self.secret_file):
            raise BadArgument(f"cannot {self._doing}: {self.secret_file} has no path here")
        refuse(self._doing, encrypt=self.encrypt, replace=self.replace)
        pool_volume.check_name(worker, self.target, self._doing)
        if self.prealloc == "full" or (self.prealloc == "falloc" and self.format != "raw"):
            refuse(self._doing, **{f"prealloc {self.prealloc}": True})
        needed = self.capacity if self.prealloc == "falloc" else self.allocation or 0
        pool_volume.check_room(worker, self.target, needed, self._doing)
        self._described(worker)
        free = pool_volume.available(worker, self.target)
        worker.expect(writes={self.target: 0}, space=needed, free=free, exact=self.format == "raw")

    def _run_remote(self, worker: Worker) -> dict[str, Any]:
        flags = pools.load().VIR_STORAGE_VOL_CREATE_PREALLOC_METADATA if self.prealloc == "metadata" else 0
        described = self._described(worker)
        worker.phase("create")
        pool_volume.ask_for(worker, self.target, lambda pool: pool.createXML(described, flags))
        made = RemoteVolume(worker, self.target, self._doing)
        return {
            "target": self.target,
            "format": made.format,
            "capacity": made.capacity,
            "allocation": made.allocation,
            "backing": self.backing_vol,
            "backing_format": self._backing(worker)[1] if self.backing_vol else None,
            "encryption": None,
        }

    def _described(self, worker: Worker) -> str:
        """As libvirt's XML. Without an allocation libvirtd would allocate all of a raw volume."""
        capacity = self.capacity
        backing = None
        if self.backing_vol:
            path, form, size = self._backing(worker)
            backing, capacity = (path, form), capacity or size
        allocation = capacity if self.prealloc == "falloc" else self.allocation or 0
        return pool_volume.described(
            self.target,
            capacity,
            allocation,
            None if self.format == "raw" else self.format,
            backing=backing,
            cluster_size=self.cluster_size,
            nocow=self.nocow,
        )

    def _backing(self, worker: Worker) -> tuple[str, str, int]:
        """Path, format and capacity of the backing volume, as libvirtd sees it."""
        assert self.backing_vol is not None
        if uri.is_name(self.backing_vol):
            there = RemoteVolume(worker, self.backing_vol, self._doing)
            return there.ask(there.handle.path), self.backing_vol_format or there.format, there.capacity
        top = self._chain(worker)[0]
        return top.path, top.format, top.size

    # --- before the first byte -------------------------------------------------------------------------------

    def _check_options(self) -> None:
        allowed = {
            "--backing-vol": (self.backing_vol, BACKED),
            "--cluster-size": (self.cluster_size, ("qcow2", "qed")),
            "--encrypt": (self.encrypt, ("raw", "qcow2")),
            "--allocation": (self.allocation, ("raw",)),
            f"--prealloc {self.prealloc}": (
                self.prealloc != "off",
                ("qcow2",) if self.prealloc == "metadata" else ("raw", "qcow2"),
            ),
        }
        for option, (given, formats) in allowed.items():
            if given and self.format not in formats:
                raise BadArgument(
                    f"cannot {self._doing}: {option} is for {' and '.join(formats)}, not for {self.format}"
                )
        if bool(self.encrypt) != bool(self.secret_file):
            raise BadArgument(f"cannot {self._doing}: --encrypt and --secret-file need each other")
        for option, given, other in (
            ("--iter-time", self.iter_time and not self.encrypt, "--encrypt"),
            ("--backing-vol-format", self.backing_vol_format and not self.backing_vol, "--backing-vol"),
        ):
            if given:
                raise BadArgument(f"cannot {self._doing}: {option} says nothing without {other}")
        apart = {
            "--allocation and --prealloc": self.allocation and self.prealloc != "off",
            "--allocation and --encrypt": self.allocation and self.encrypt,
            "--backing-vol and --prealloc": self.backing_vol and self.prealloc != "off",
        }
        for options, both in apart.items():
            if both:
                raise BadArgument(f"cannot {self._doing}: {options} exclude each other")
        if self.capacity > CAPACITY_MAX:
            raise BadArgument(f"cannot {self._doing}: no file can have {self.capacity} bytes")
        if (self.allocation or 0) > self.capacity:
            raise BadArgument(
                f"cannot {self._doing}: --allocation {self.allocation} is more than its {self.capacity} bytes"
            )

    def _check_place(self, worker: Worker, size: int) -> None:
        needed = self._needed(worker, size)
        device = making.device_of(worker, self.target)
        new = uri.is_name(self.target)  # a partition to be made
        if device or new:
            self._check_on_device(new=new)
        if new:
            needed = self._capacity(worker, size)
            pool_volume.check_room(worker, self.target, needed, self._doing)
            if self.format == "raw" and self.prealloc == "off":
                worker.warn(f"{self.target} shows what its disk held there before; --prealloc full overwrites that")
        elif device:
            if needed > device.size:
                raise NoSpace(f"cannot {self._doing}: {room.compare(needed, 'the device', device.size)}")
        else:
            self._check_directory(needed)
        if worker.dry_run:
            known = self.format in ("raw", "qcow2")
            reserved = self._kind == "raw" and self.prealloc != "full"
            worker.expect(
                writes={self.target: 0 if reserved else needed if known else None},
                space=0 if device else needed if known else None,
                free=pool_volume.available(worker, self.target) if new else None,
                exact=self._kind == "raw" and not new,
            )

    def _check_on_device(self, *, new: bool) -> None:
        doing = f"{self._doing} on a block device"
        if self._kind == "raw" and not new:
            raise BadArgument(f"cannot {doing}: it is a raw volume already; wipe overwrites it")
        if self._kind not in ("raw", "qcow2"):
            raise BadArgument(f"cannot {doing}: only {'raw and' if new else 'a'} qcow2 can live there, no {self._kind}")
        zeroes = self._kind == "raw" and self.prealloc == "full"
        for option, given in (
            ("--nocow", self.nocow),
            ("--allocation", self.allocation),
            ("--prealloc", self.prealloc != "off" and not zeroes),
        ):
            if given:
                raise BadArgument(f"cannot {doing}: that has all its space; omit {option}")

    def _capacity(self, worker: Worker, size: int) -> int:
        """Bytes of a partition to be made: a qcow2 has room for all that a guest may write."""
        if self._kind == "raw":
            return size
        return qemu_img.measure_empty(worker, size, "qcow2", self._plain_options(), self._doing)[1]

    def _check_directory(self, needed: int) -> None:
        directory = making.directory_of(self.target, self.replace)
        room.check_writable(self.target, directory)
        if self.nocow:
            here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if libc.filesystem_type(here) != BTRFS:
                    raise self._no_nocow()
            finally:
                os.close(here)
        room.check_free(directory, needed, self._doing)

    def _needed(self, worker: Worker, size: int) -> int:
        """Bytes that the file will take for certain."""
        header = LUKS_HEADER if self.encrypt else 0
        everything = self.prealloc in ("falloc", "full")
        if self.format == "qcow2":
            least, most = qemu_img.measure_empty(worker, size, "qcow2", self._plain_options(), self._doing)
            return header + (most if everything else least)
        return header + (size if everything else self.allocation or 0)

    def _no_nocow(self) -> JobError:
        return JobError(f"cannot {self._doing} with --nocow: its filesystem is no btrfs, which alone knows that")

    # --- the bytes -------------------------------------------------------------------------------------------

    def _fill(self, worker: Worker, target: int, size: int, backing: Image | None, *, is_file: bool) -> str:
        """Write all of the target and bring it to the disk but for its metadata."""
        worker.phase("create")
        try:
            if self.nocow:
                self._forbid_cow(target)
            empty = self._lay_out(worker, target, size, backing)
            if is_file:
                self._allocate(worker, target)
            if self.prealloc == "full":
                self._write_zeroes(worker, target, empty)
        except OSError as error:
            raise from_os_error(error, self._doing)
        worker.phase("sync")
        return self._kind

    def _forbid_cow(self, target: int) -> None:
        try:
            forbid_cow(target)
        except OSError as error:
            raise self._no_nocow() from error

    def _lay_out(self, worker: Worker, target: int, size: int, backing: Image | None) -> list[tuple[int, int]]:
        """The target with its tables and no data; returns the ranges (start, end) that hold nothing."""
        if self._kind == "raw":
            if size and not libc.is_block_device(target):
                os.ftruncate(target, size)
            return [(0, size)]
        unlocking = worker.volume(self.secret_file).fd if self.secret_file else None
        named = (backing.path, backing.format) if backing else None
        container = qemu_img.empty(
            worker, self.target, self._kind, size, self._options(), named, self._doing, unlocking
        )
        length = os.fstat(container).st_size
        starts, ends = [0], []
        for start, count in data_extents(container, 0, length):
            ends.append(start)
            starts.append(start + count)
        making.lay_out(container, target)
        return [(start, end) for start, end in zip(starts, [*ends, length], strict=True) if start < end]

    def _allocate(self, worker: Worker, target: int) -> None:
        whole = self.prealloc in ("falloc", "full")
        length = os.fstat(target).st_size if whole else self.allocation or 0
        if length:
            worker.phase("allocate", total=length)
            if not preallocate(target, length, worker.skip) and self.prealloc != "full":
                option = "--prealloc falloc" if whole else "--allocation"
                raise JobError(f"cannot {self._doing}: its filesystem cannot allocate space ahead; omit {option}")

    def _write_zeroes(self, worker: Worker, target: int, empty: list[tuple[int, int]]) -> None:
        length = empty[-1][1] if libc.is_block_device(target) else os.fstat(target).st_size
        worker.phase("fill", total=length)
        fill_with_zeros(target, empty, worker.advance)
        # The copy of the tables left out what is zero in them.
        at = 0
        for start, end in [*empty, (length, length)]:
            rewrite(target, at, start, worker.advance)
            at = end

    def _plain_options(self) -> dict[str, str | int]:
        options: dict[str, str | int] = {}
        if self.cluster_size:
            options["cluster_size"] = self.cluster_size
        if self.prealloc != "off" and self.format == "qcow2":
            options["preallocation"] = "metadata"
        if self.format == "vpc":
            # Without it the size is rounded to a geometry.
            options["force_size"] = "on"
        return options

    def _options(self) -> dict[str, str | int]:
        options = self._plain_options()
        if self.encrypt:
            prefix = "encrypt." if self.format == "qcow2" else ""
            options |= {"encrypt.format": "luks"} if prefix else {}
            options[f"{prefix}key-secret"] = SECRET
            if self.iter_time:
                options[f"{prefix}iter-time"] = self.iter_time
        return options
