"""Moving bytes between files, devices and pipes, stretch by stretch, with a digest of them on the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from mmap import mmap
from typing import TYPE_CHECKING, Final, Protocol

from jobvisor_workers.data import libc
from jobvisor_workers.data.cache import Reading
from jobvisor_workers.data.copy import STEP, shrunk
from jobvisor_workers.data.direct import BLOCK, huge_buffer
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.data.second import SecondThread
from jobvisor_workers.data.window import Window
from jobvisor_workers.data.zeros import ZeroRanges, data_runs, zero_out
from jobvisor_workers.errors import JobError, from_os_error
from jobvisor_workers.pipes import Input, Output

if TYPE_CHECKING:
    from hashlib import _Hash

    from jobvisor_workers.keeping import Keeping

#: Bytes from which on a digest is worth another thread.
LONG: Final = 256 << 10
_ZEROS: Final = memoryview(bytes(1 << 20))


class Source(Protocol):
    """Where bytes come from, in order."""

    def take(self, buffer: mmap) -> tuple[int, bool] | None:
        """The next stretch: its length, at most STEP, and whether it is data, then in `buffer`; None at the end.

        A stretch that is no data reads as zeros. Raises JobError.
        """


class Sink(Protocol):
    """Where bytes go, in order."""

    #: A hole costs as much as data here.
    fills_holes: bool

    def write(self, buffer: mmap, length: int) -> None:
        """The first bytes of `buffer`. Raises OSError, JobError."""

    def hole(self, length: int) -> None:
        """So many zeros. Raises OSError, JobError."""

    def finish(self) -> None:
        """That was all; bring it to the disk, but for metadata. Raises OSError, JobError."""


def transfer(
    source: Source,
    sink: Sink,
    *,
    digest: _Hash | None,
    advance: Callable[[int], None],
    skip: Callable[[int], None],
    note: Callable[[int], None] | None = None,
) -> int:
    """Move all there is; returns how many bytes. `advance` is told those moved, `skip` those of holes.

    `digest` is fed with what is moved, holes too. `note` is told after each stretch how many were moved so far. Raises
    JobError for the source, OSError for the sink.
    """
    buffer, total = huge_buffer(STEP), 0
    view = memoryview(buffer)
    with SecondThread[int, None](lambda length: digest.update(view[:length]) if digest else None) as thread:
        while stretch := source.take(buffer):
            length, is_data = stretch
            if is_data:
                beside = digest is not None and length >= LONG
                if beside:
                    thread.give(length)
                elif digest:
                    digest.update(view[:length])
                sink.write(buffer, length)
                if beside:
                    thread.take()
            else:
                if digest:
                    for start in range(0, length, len(_ZEROS)):
                        digest.update(_ZEROS[: length - start])
                sink.hole(length)
            total += length
            (advance if is_data or sink.fills_holes else skip)(length)
            if note:
                note(total)
    sink.finish()
    return total


def go_on(
    fd: int,
    start: int,
    length: int,
    sink: VolumeSink,
    keeping: Keeping,
    *,
    digest: _Hash | None,
    advance: Callable[[int], None],
    skip: Callable[[int], None],
) -> int:
    """As `transfer` of this part of a file or device, of which `keeping.done` bytes are there already.

    For the digest those are read again.
    """
    done = keeping.done
    if digest:
        transfer(FileSource(fd, start, done), Nowhere(), digest=digest, advance=_ignore, skip=_ignore)

    def note(moved: int) -> None:
        if keeping.due():
            sink.flush()
            keeping.finished(done + moved)

    rest = FileSource(fd, start + done, length - done)
    moved = done + transfer(rest, sink, digest=digest, advance=advance, skip=skip, note=note)
    keeping.finished(moved)
    return moved


def _ignore(_count: int) -> None:
    pass


class FileSource:
    """A part of a file or block device."""

    def __init__(self, fd: int, start: int, length: int) -> None:
        self._fd, self._position, self._end = fd, start, start + length
        self._reading = Reading(fd, self._end)
        self._steps = self._reading.steps(data_extents(fd, start, self._end), STEP)
        self._step = (start, 0)

    def take(self, buffer: mmap) -> tuple[int, bool] | None:
        offset, left = self._step
        if not left:
            offset, left = next(self._steps, (self._end, 0))
        if self._position < offset:
            length = min(STEP, offset - self._position)
            self._position += length
            self._step = offset, left
            return length, False
        if not left:
            if libc.size_of(self._fd) < self._end:
                raise shrunk(self._fd)
            return None
        try:
            count = os.preadv(self._fd, [memoryview(buffer)[:left]], offset)
        except OSError as error:
            raise from_os_error(error, f"read {libc.name_of(self._fd)} at byte {offset}")
        if not count:
            raise shrunk(self._fd)
        self._reading.done(offset, count)
        self._position = offset + count
        self._step = self._position, left - count
        return count, True


class PipeSource:
    """What a user sends, to its end; `limit`: more than so many bytes are an error, which `over` makes."""

    def __init__(self, pipe: Input, limit: int | None, over: Callable[[], JobError]) -> None:
        self._pipe, self._limit, self._over = pipe, limit, over

    def take(self, buffer: mmap) -> tuple[int, bool] | None:
        left = STEP if self._limit is None else self._limit - self._pipe.count
        count = self._pipe.read_into(memoryview(buffer)[: max(1, min(STEP, left))])
        if count > left:
            raise self._over()
        return (count, True) if count else None


class VolumeSink:
    """A file or block device from byte `at` on.

    `zeros`: what makes a range read as zeros; None: it does so already. `sparse`: zeros in the data are such a range.
    """

    fills_holes = False

    def __init__(
        self, fd: int, at: int, *, sparse: bool, zeros: Callable[[int, int, int], None] | None, window: Window
    ) -> None:
        self._fd, self._sparse, self._window = fd, sparse, window
        self._zeros = ZeroRanges(fd, zeros, window) if zeros else None
        #: Beyond this byte nothing was touched, whatever happens.
        self.at = at

    def write(self, buffer: mmap, length: int) -> None:
        start, self.at = self.at, self.at + length
        view, done = memoryview(buffer), 0
        for first, end in data_runs(buffer, length, BLOCK) if self._sparse else [(0, length)]:
            self._zero(start + done, first - done)
            done = first
            while done < end:
                done += os.pwrite(self._fd, view[done:end], start + done)
        self._zero(start + done, length - done)
        self._window.note(start, length)

    def hole(self, length: int) -> None:
        start, self.at = self.at, self.at + length
        self._zero(start, length)

    def flush(self) -> None:
        """Write what was only taken yet. Raises OSError."""
        if self._zeros:
            self._zeros.flush()

    def finish(self) -> None:
        self.flush()
        if not libc.is_block_device(self._fd) and os.fstat(self._fd).st_size < self.at:
            os.ftruncate(self._fd, self.at)
        self._window.finish()

    def _zero(self, offset: int, length: int) -> None:
        if self._zeros and length:
            self._zeros.add(offset, length)


def zero_maker(fd: int, *, sparse: bool) -> Callable[[int, int, int], None]:
    """What makes a range of a volume with old content read as zeros; in a file by a hole if `sparse`."""
    if libc.is_block_device(fd):
        return zero_out
    mode = libc.FALLOC_PUNCH_HOLE | libc.FALLOC_KEEP_SIZE if sparse else libc.FALLOC_ZERO_RANGE
    return lambda fd, offset, length: libc.fallocate(fd, mode, offset, length)


class PipeSink:
    """What a user reads.

    Always written, never spliced: a page of the volume that lies in the pipe would change under the reader's hands when
    the next job writes to the volume.
    """

    fills_holes = True

    def __init__(self, pipe: Output) -> None:
        self._pipe = pipe

    def write(self, buffer: mmap, length: int) -> None:
        self._pipe.write(memoryview(buffer)[:length])

    def hole(self, length: int) -> None:
        for start in range(0, length, len(_ZEROS)):
            self._pipe.write(_ZEROS[: length - start])

    def finish(self) -> None:
        pass


class Nowhere:
    """For who only wants the digest."""

    fills_holes = False

    def write(self, buffer: mmap, length: int) -> None:
        pass

    def hole(self, length: int) -> None:
        pass

    def finish(self) -> None:
        pass
