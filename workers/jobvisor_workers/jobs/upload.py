"""The job type `upload`."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import jobtype, qemu_img, room
from jobvisor_workers.data import transfer
from jobvisor_workers.data.copy import STEP
from jobvisor_workers.data.digest import Algorithm
from jobvisor_workers.data.extents import allocated, data_extents
from jobvisor_workers.data.window import Window
from jobvisor_workers.digested import Digested
from jobvisor_workers.errors import BadArgument, JobError, NoSpace, from_os_error
from jobvisor_workers.jobtype import PIPE, READ, WRITE, JobType, byte_size
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
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        volume = worker.volume(self.volume)
        Digested(self.checksum, self.expect, self._doing)
        if self.offset > volume.size:
            raise BadArgument(f"cannot {self._doing} from byte {self.offset} on: it has {volume.size} bytes")
        size = self._size(worker)
        if size is None:
            worker.expect(reads={PIPE: None}, writes={self.volume: None})
            return
        end = self.offset + size
        if end > volume.size and not _grows(volume):
            where = "the device" if volume.kind == "block" else "the volume"
            advice = "" if volume.kind == "block" else "; give it a larger capacity before (resize)"
            needs = room.compare(end, where, volume.size)
            raise NoSpace(f"cannot {self._doing} from {self._named_source}: {needs}{advice}")
        there = sum(length for _, length in data_extents(volume.fd, self.offset, min(end, volume.size)))
        if volume.kind == "file" and not self.sparse:
            directory = os.path.dirname(os.path.realpath(self.volume))
            room.check_free(directory, size - there, f"{self._doing} from {self._named_source}")
        if end < volume.size and self.length is None:
            worker.warn(f"the last {volume.size - end} bytes of {self.volume} stay as they are")
        if worker.dry_run:
            read = size if self.source == PIPE else allocated(worker.volume(self.source).fd, size)
            space = room.in_blocks(size - there) if volume.kind == "file" else 0
            worker.expect(
                reads={self.source: read}, writes={self.volume: read}, space=space, exact=not (self.sparse and space)
            )

    def run(self, worker: Worker) -> dict[str, Any]:
        digested = Digested(self.checksum, self.expect, self._doing)
        if self.source == PIPE:
            with worker.stdin() as stdin:
                limit = self.length
                if limit is None and not _grows(worker.volume(self.volume)):
                    limit = worker.volume(self.volume).size - self.offset
                source = transfer.PipeSource(stdin, limit, lambda: self._too_much(limit or 0))
                moved = self._write(worker, source, digested)
        else:
            start = worker.volume(self.source)
            moved = self._write(worker, transfer.FileSource(start.fd, 0, start.size), digested)
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

    def _size(self, worker: Worker) -> int | None:
        """Bytes to come, as far as that is known. Raises BadArgument when they are not as many as was said."""
        if self.source == PIPE:
            return self.length
        size = worker.volume(self.source).size
        if self.length not in (None, size):
            raise BadArgument(
                f"cannot {self._doing} from {self.source}: it has {size} bytes, and --length says {self.length}"
            )
        return size

    def _too_much(self, limit: int) -> JobError:
        if self.length is not None:
            return JobError(f"cannot {self._doing}: standard input has more than the {limit} bytes of --length")
        return NoSpace(f"cannot {self._doing}: standard input has more than the {limit} bytes that fit into it")

    def _write(self, worker: Worker, source: transfer.Source, digested: Digested) -> int:
        volume, size = worker.volume(self.volume), self._size(worker)
        worker.phase("write", total=size)
        zeros = transfer.zero_maker(volume.fd, sparse=self.sparse)
        sink = transfer.VolumeSink(volume.fd, self.offset, sparse=self.sparse, zeros=zeros, window=Window(volume.fd))
        every = TOLD_EVERY if size is None else max(STEP, size // 50)
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
            moved = transfer.transfer(source, sink, digest=digested.state, advance=advance, skip=skip)
            if self.length not in (None, moved):
                raise JobError(
                    f"cannot {self._doing}: standard input ended after {moved} of the {self.length} bytes of --length"
                )
            digested.check()
            worker.phase("sync")
            os.fsync(volume.fd)
        except BaseException as error:
            if left := self._left(volume, sink.at):
                worker.warn(f"{self.volume} is {left}")
            if os.fstat(volume.fd).st_size > volume.size and volume.kind == "file":
                os.ftruncate(volume.fd, volume.size)
            if isinstance(error, OSError):
                raise from_os_error(error, self._doing)
            raise
        worker.abort_effect = None
        return moved

    def _left(self, volume: Volume, end: int) -> str | None:
        """What there is when only bytes before `end` were touched; what a file grew by is taken back."""
        end = min(end, volume.size)
        if end <= self.offset:
            return None
        rest = "" if (self.offset, end) == (0, volume.size) else "; elsewhere it is as it was"
        return f"partly overwritten: between byte {self.offset} and byte {end}{rest}"


def _grows(volume: Volume) -> bool:
    """An empty file, or an image whose file is as long as it needs to be."""
    return volume.kind == "file" and (not volume.size or qemu_img.probe(volume.fd) != "raw")
