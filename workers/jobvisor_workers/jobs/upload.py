"""The job type `upload`."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import jobtype, qemu_img, room
from jobvisor_workers.data import transfer
from jobvisor_workers.data.copy import STEP
from jobvisor_workers.data.digest import Algorithm
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.data.window import Window
from jobvisor_workers.digested import Digested
from jobvisor_workers.errors import BadArgument, JobError, NoSpace, from_os_error
from jobvisor_workers.jobtype import PIPE, READ, WRITE, JobType, byte_size
from jobvisor_workers.remote import RemoteVolume, StreamSink, volume_of
from jobvisor_workers.worker import Volume, Worker

#: What an abort would leave is told anew after so many bytes, where nobody knows how many there will be.
TOLD_EVERY = 64 << 20


class Upload(JobType, tag="upload"):
    """Write the bytes of a file or of standard input into a volume.

    They become those of the file or device itself, not what a guest sees: a qcow2 makes a qcow2 of it. They are written
    in place, over what is there, and the rest of the volume stays. A raw volume keeps its capacity: what is too long
    for it is refused, and from a pipe ends the job where the volume is full. An image of another format is a file as
    long as it needs to be, and an empty file is nothing yet: these grow.
    """

    volume: Annotated[str, jobtype.volume("file or block device to write into", WRITE)]
    source: Annotated[str, jobtype.volume("file or block device to read; - for standard input", READ, piped=True)]
    offset: Annotated[int, byte_size("the first byte of the volume to write to")] = 0
    length: Annotated[int, byte_size("the source has exactly so many bytes; another number is an error")] | None = None
    sparse: Annotated[
        bool, Meta(description="zeroes and holes of the source become holes, instead of stored zeroes")
    ] = False
    checksum: Annotated[Algorithm | None, Meta(description="compute this digest of the source on the way")] = None
    expect: Annotated[
        str | None, Meta(description="fail when the digest is another one (sha256, or that of --checksum)")
    ] = None
    keep_partial: Annotated[
        bool, Meta(description="note how far it came, for retry to go on from there (from a file, if nothing grows)")
    ] = False
    remote: ClassVar[bool] = True
    retry: ClassVar[Literal["never", "restart", "continue"]] = "continue"

    def plan(self, worker: Worker) -> None:
        volume = self._volume(worker)
        Digested(self.checksum, self.expect, self._doing)
        if self.offset > volume.size:
            raise BadArgument(f"cannot {self._doing} from byte {self.offset} on: it has {volume.size} bytes")
        if self.sparse and isinstance(volume, RemoteVolume):
            raise BadArgument(
                f"cannot {self._doing} with --sparse: a hole in libvirt's streams leaves what was there before"
            )
        source = self._source(worker)
        size = self._size(source)
        if size is None:
            self._say_whether_kept(worker, volume, source)
            worker.expect(reads={PIPE: None}, writes={self.volume: None})
            return
        end = self.offset + size
        if end > volume.size and not _grows(volume):
            where = "the device" if volume.kind == "block" else "the volume"
            advice = "" if volume.kind == "block" else "; give it a larger capacity before (resize)"
            needs = room.compare(end, where, volume.size)
            raise NoSpace(f"cannot {self._doing} from {self._named_source}: {needs}{advice}")
        there = _allocated(volume, self.offset, min(end, volume.size))
        if volume.kind == "file" and isinstance(volume, Volume) and not self.sparse:
            directory = os.path.dirname(os.path.realpath(self.volume))
            room.check_free(directory, size - there, f"{self._doing} from {self._named_source}")
        if end < volume.size and self.length is None:
            worker.warn(f"the last {volume.size - end} bytes of {self.volume} stay as they are")
        self._say_whether_kept(worker, volume, source)
        if worker.dry_run:
            read = _allocated(source, 0, size) if source else size
            space = room.in_blocks(max(0, size - there)) if volume.kind == "file" else 0
            exact = isinstance(volume, Volume) and not (self.sparse and space)
            worker.expect(reads={self.source: read}, writes={self.volume: read}, space=space, exact=exact)

    def run(self, worker: Worker) -> dict[str, Any]:
        digested = Digested(self.checksum, self.expect, self._doing)
        volume, start = self._volume(worker), self._source(worker)
        total = self._size(start)
        if start is None:
            limit = self.length if self.length is not None or _grows(volume) else volume.size - self.offset
            with worker.stdin() as stdin:
                source = transfer.PipeSource(stdin, limit, lambda: self._too_much(limit or 0))
                moved = self._write(worker, volume, source, total, digested)
        elif isinstance(start, RemoteVolume):
            with start.reading(0, start.size) as stream:
                moved = self._write(worker, volume, stream, total, digested)
        else:
            if isinstance(volume, Volume) and self._goes_on(volume, start):
                worker.keep(volume)
            moved = self._write(worker, volume, start, total, digested)
        return {
            "volume": self.volume,
            "source": self.source,
            "offset": self.offset,
            "size": moved,
            **digested.result(),
        }

    @property
    def _doing(self) -> str:
        return f"upload to {self.volume}"

    @property
    def _named_source(self) -> str:
        return "standard input" if self.source == PIPE else self.source

    def _volume(self, worker: Worker) -> Volume | RemoteVolume:
        return volume_of(worker, self.volume, self._doing)

    def _source(self, worker: Worker) -> Volume | RemoteVolume | None:
        """None for a pipe."""
        return None if self.source == PIPE else volume_of(worker, self.source, self._doing)

    def _size(self, source: Volume | RemoteVolume | None) -> int | None:
        """Bytes to come, as far as that is known. Raises BadArgument when they are not as many as was said."""
        if source is None:
            return self.length
        if self.length not in (None, source.size):
            raise BadArgument(
                f"cannot {self._doing} from {self.source}: it has {source.size} bytes, and --length says {self.length}"
            )
        return source.size

    def _goes_on(self, volume: Volume | RemoteVolume, source: Volume | RemoteVolume | None) -> bool:
        """Both can be proved to be what they were, and the volume has its size from the beginning."""
        local = isinstance(volume, Volume) and isinstance(source, Volume)
        return local and source is not None and self.offset + source.size <= volume.size

    def _say_whether_kept(
        self, worker: Worker, volume: Volume | RemoteVolume, source: Volume | RemoteVolume | None
    ) -> None:
        if self.keep_partial and not self._goes_on(volume, source):
            worker.warn("how far it came is not noted: only from a file or device to one that has the room goes on")

    def _too_much(self, limit: int) -> JobError:
        if self.length is not None:
            return JobError(f"cannot {self._doing}: standard input has more than the {limit} bytes of --length")
        return NoSpace(f"cannot {self._doing}: standard input has more than the {limit} bytes that fit into it")

    # --- the bytes -------------------------------------------------------------------------------------------

    def _write(
        self,
        worker: Worker,
        volume: Volume | RemoteVolume,
        source: transfer.Source | Volume,
        total: int | None,
        digested: Digested,
    ) -> int:
        done = worker.keeping.done if worker.keeping else 0
        worker.phase("write", total=total, done=done)
        if isinstance(volume, RemoteVolume):
            with volume.writing(self.offset) as stream:
                return self._move(worker, volume, source, stream, total, digested)
        zeros, window = transfer.zero_maker(volume.fd, sparse=self.sparse), Window(volume.fd)
        sink = transfer.VolumeSink(volume.fd, self.offset + done, sparse=self.sparse, zeros=zeros, window=window)
        try:
            return self._move(worker, volume, source, sink, total, digested)
        except BaseException:
            if volume.kind == "file" and os.fstat(volume.fd).st_size > volume.size:
                os.ftruncate(volume.fd, volume.size)
            raise

    def _move(
        self,
        worker: Worker,
        volume: Volume | RemoteVolume,
        source: transfer.Source | Volume,
        sink: transfer.VolumeSink | StreamSink,
        total: int | None,
        digested: Digested,
    ) -> int:
        every = TOLD_EVERY if total is None else max(STEP, total // 50)
        due = 0

        def tell() -> None:
            nonlocal due
            if sink.at >= due:
                due = sink.at + every
                worker.abort_effect = self._left(volume, due + STEP)

        def advance(count: int) -> None:
            worker.advance(count)
            tell()

        def skip(count: int) -> None:
            worker.skip(count)
            tell()

        tell()
        try:
            how: dict[str, Any] = {"digest": digested.state, "advance": advance, "skip": skip}
            if isinstance(source, Volume) and worker.keeping and isinstance(sink, transfer.VolumeSink):
                moved = transfer.go_on(source.fd, 0, source.size, sink, worker.keeping, **how)
            else:
                start = transfer.FileSource(source.fd, 0, source.size) if isinstance(source, Volume) else source
                moved = transfer.transfer(start, sink, **how)
            if self.length not in (None, moved):
                raise JobError(
                    f"cannot {self._doing}: standard input ended after {moved} of the {self.length} bytes of --length"
                )
            digested.check()
            if isinstance(volume, Volume):
                worker.phase("sync")
                os.fsync(volume.fd)
        except BaseException as error:
            if left := self._left(volume, sink.at):
                worker.warn(f"{self.volume} is {left}")
            if isinstance(error, OSError):
                raise from_os_error(error, self._doing)
            raise
        worker.abort_effect = None
        return moved

    def _left(self, volume: Volume | RemoteVolume, end: int) -> str | None:
        """What there is when only bytes before `end` were touched; what a local file grew by is taken back."""
        end = min(end, volume.size) if isinstance(volume, Volume) else end
        if end <= self.offset:
            return None
        rest = "" if (self.offset, end) == (0, volume.size) else "; elsewhere it is as it was"
        return f"partly overwritten: between byte {self.offset} and byte {end}{rest}"


def _grows(volume: Volume | RemoteVolume) -> bool:
    """An empty file, or an image whose file is as long as it needs to be."""
    if volume.kind != "file":
        return False
    found = volume.format if isinstance(volume, RemoteVolume) else qemu_img.probe(volume.fd)
    return not volume.size or found != "raw"


def _allocated(volume: Volume | RemoteVolume, start: int, end: int) -> int:
    """Bytes of data there; at most, of what only libvirtd sees."""
    if isinstance(volume, RemoteVolume):
        return max(0, min(volume.allocation, end - start))
    return sum(length for _, length in data_extents(volume.fd, start, end))
