"""The job type `download`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import jobtype, making, room
from jobvisor_workers.data import copy, transfer
from jobvisor_workers.data.digest import Algorithm
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.data.window import Window
from jobvisor_workers.data.zeros import preallocate, zero_out
from jobvisor_workers.digested import Digested
from jobvisor_workers.errors import BadArgument, NoSpace, from_os_error
from jobvisor_workers.jobtype import PIPE, READ, JobType, byte_size
from jobvisor_workers.remote import RemoteVolume, volume_of
from jobvisor_workers.resources import uri
from jobvisor_workers.worker import Volume, Worker


class Download(JobType, tag="download"):
    """Copy the bytes of a volume to a file or to standard output.

    They are those of the file or device itself, not what a guest sees: a qcow2 stays a qcow2. Nothing is visible under
    the target's name before all of it is there and on the disk, and, with --expect, has the digest that it should have.
    """

    volume: Annotated[str, jobtype.volume("file or block device to read", READ)]
    target: Annotated[
        str,
        jobtype.new_volume(
            "file to make, or with --replace a file or block device to give up; - for standard output", piped=True
        ),
    ]
    offset: Annotated[int, byte_size("the first byte to read")] = 0
    length: Annotated[int, byte_size("so many bytes, instead of all up to the end", least=1)] | None = None
    sparse: Annotated[
        bool | None,
        Meta(
            description="leave out zeroes also where the volume stores them, or store them also where it has holes "
            "(default: the volume's holes)"
        ),
    ] = None
    checksum: Annotated[Algorithm | None, Meta(description="compute this digest on the way")] = None
    expect: Annotated[
        str | None, Meta(description="fail when the digest is another one (sha256, or that of --checksum)")
    ] = None
    replace: Annotated[bool, Meta(description="give up what the target holds")] = False
    keep_partial: Annotated[
        bool, Meta(description="if the job fails or is aborted, keep what is copied; retry goes on there (not: pipes)")
    ] = False
    remote: ClassVar[bool] = True
    retry: ClassVar[Literal["never", "restart", "continue"]] = "continue"

    def plan(self, worker: Worker) -> None:
        volume = volume_of(worker, self.volume, self._doing)
        if uri.is_name(self.target):
            raise BadArgument(f"cannot {self._doing} to {self.target}: it has no path here; clone makes a volume")
        Digested(self.checksum, self.expect, self._doing)
        if self.offset + (self.length or 0) > volume.size or (self.offset and self.offset == volume.size):
            end = f"up to byte {self.offset + self.length}" if self.length else f"from byte {self.offset} on"
            raise BadArgument(f"cannot {self._doing} {end}: it has {volume.size} bytes")
        size = self._size(volume.size)
        if self.target == PIPE:
            self._check_pipe()
        elif device := making.device_of(worker, self.target):
            self._check_device(worker, size, device)
        else:
            self._check_directory(worker, volume, size)
        if self.keep_partial and (self.target == PIPE or isinstance(volume, RemoteVolume)):
            worker.warn(f"nothing is kept of {self.target} but the whole: only from and to a path goes on from a part")
        if worker.dry_run:
            self._expect(worker, volume, size)

    def run(self, worker: Worker) -> dict[str, Any]:
        volume = volume_of(worker, self.volume, self._doing)
        size = self._size(volume.size)
        digested = Digested(self.checksum, self.expect, self._doing)
        result = {"volume": self.volume, "target": self.target, "offset": self.offset, "size": size}
        worker.phase("copy", total=size)
        if self.target == PIPE:
            with worker.stdout() as stdout:
                self._move(worker, volume, size, transfer.PipeSink(stdout), digested)
            return result | {"method": "pipe", **digested.result()}
        method, space = making.make(
            worker,
            self.target,
            self.replace,
            lambda target, directory: self._fill(worker, volume, size, target, directory, digested),
            what="what was downloaded",
            doing=self._doing,
            keep=isinstance(volume, Volume),
        )
        return result | {"method": method, "allocated": space, **digested.result()}

    @property
    def _doing(self) -> str:
        return f"download {self.volume}"

    # --- before the first byte -------------------------------------------------------------------------------

    def _check_pipe(self) -> None:
        if self.sparse is not None or self.replace:
            option = "--replace" if self.replace else "--sparse" if self.sparse else "--no-sparse"
            raise BadArgument(f"cannot {self._doing} with {option}: its target is a pipe")

    def _check_device(self, worker: Worker, size: int, device: Volume) -> None:
        if size > device.size:
            short = room.compare(size, "the device", device.size)
            raise NoSpace(f"cannot {self._doing} to {self.target}: {short}")
        if size < device.size:
            worker.warn(f"the last {device.size - size} bytes of {self.target} stay as they were")

    def _check_directory(self, worker: Worker, volume: Volume | RemoteVolume, size: int) -> None:
        directory = making.directory_of(self.target, self.replace)
        room.check_writable(self.target, directory)
        if not self.sparse and not self._shares(volume, directory):
            needed = size if self.sparse is False else self._data(volume, size)
            room.check_free(directory, needed - worker.kept_space, f"{self._doing} to {self.target}")

    def _expect(self, worker: Worker, volume: Volume | RemoteVolume, size: int) -> None:
        data = self._data(volume, size)
        if self.target == PIPE:
            worker.expect(reads={self.volume: data}, writes={PIPE: size})
            return
        shared = self._shares(volume, making.directory_of(self.target, self.replace))
        space = room.in_blocks(size if self.sparse is False else data)
        exact = isinstance(volume, Volume) and not self.sparse and not shared
        making.expect(worker, {self.volume: data}, self.target, data, space, exact=exact)

    def _shares(self, volume: Volume | RemoteVolume, directory: str) -> bool:
        """True when the copy may come to share the volume's blocks."""
        copied = not self.offset and self.sparse is None and self.checksum is None and self.expect is None
        return copied and isinstance(volume, Volume) and room.may_share(volume.fd, directory)

    def _data(self, volume: Volume | RemoteVolume, size: int) -> int:
        """At most, of what only libvirtd sees."""
        if isinstance(volume, RemoteVolume):
            return min(size, volume.allocation)
        return sum(length for _, length in data_extents(volume.fd, self.offset, self.offset + size))

    # --- the bytes -------------------------------------------------------------------------------------------

    def _size(self, there: int) -> int:
        return there - self.offset if self.length is None else self.length

    def _fill(
        self,
        worker: Worker,
        volume: Volume | RemoteVolume,
        size: int,
        target: int,
        directory: str | None,
        digested: Digested,
    ) -> str:
        """Write all of the target and bring it to the disk but for its metadata; returns how."""
        window, keeping = Window(target), worker.keeping
        if keeping:
            worker.phase("copy", total=size, done=keeping.done)
        if isinstance(volume, Volume) and not self.offset and digested.state is None:
            method = copy.copy(
                volume.fd,
                target,
                size,
                sparse=self.sparse,
                advance=worker.advance,
                window=window,
                skip=worker.skip,
                keeping=keeping,
            )
        else:
            done = keeping.done if keeping else 0
            if keeping and directory:
                os.ftruncate(target, done)
                os.ftruncate(target, size)
            if directory and self.sparse is False:
                preallocate(target, size)
            if directory and isinstance(volume, RemoteVolume):
                os.fchmod(target, os.fstat(target).st_mode & volume.mode)
            zeros = None if directory else zero_out
            sink = transfer.VolumeSink(target, done, sparse=bool(self.sparse), zeros=zeros, window=window)
            self._move(worker, volume, size, sink, digested)
            method = "stream" if isinstance(volume, RemoteVolume) else "read-write"
        worker.phase("sync")
        return method

    @contextmanager
    def _source(self, volume: Volume | RemoteVolume, size: int) -> Iterator[transfer.Source]:
        if isinstance(volume, RemoteVolume):
            with volume.reading(self.offset, size) as stream:
                yield stream
        else:
            yield transfer.FileSource(volume.fd, self.offset, size)

    def _move(
        self, worker: Worker, volume: Volume | RemoteVolume, size: int, sink: transfer.Sink, digested: Digested
    ) -> None:
        how: dict[str, Any] = {"digest": digested.state, "advance": worker.advance, "skip": worker.skip}
        try:
            if worker.keeping and isinstance(volume, Volume) and isinstance(sink, transfer.VolumeSink):
                transfer.go_on(volume.fd, self.offset, size, sink, worker.keeping, **how)
            else:
                with self._source(volume, size) as source:
                    transfer.transfer(source, sink, **how)
        except OSError as error:
            raise from_os_error(error, f"{self._doing} to {self.target}")
        digested.check()
