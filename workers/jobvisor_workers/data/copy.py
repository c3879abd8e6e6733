"""Copying the bytes of a file or block device into a new file or onto a block device."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from jobvisor_workers.data import libc, reflink
from jobvisor_workers.data.cache import Reading
from jobvisor_workers.data.direct import BLOCK, LEAST, TMPFS, direct, huge_buffer
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.data.second import SecondThread
from jobvisor_workers.data.window import Window
from jobvisor_workers.data.zeros import PIECE, ZeroRanges, data_runs, preallocate, reserve, zero_out
from jobvisor_workers.errors import BadArgument, JobError, NoSpace, from_os_error

if TYPE_CHECKING:
    from jobvisor_workers.keeping import Keeping

MIB: Final = 1 << 20
#: Bytes between two words of progress, and the most that an abort waits for.
STEP: Final = 4 * MIB

#: f_type where a server copies on its own: NFS, SMB, SMB2, Ceph, FUSE. Elsewhere copy_file_range moves pages through
#: the page cache, slower than two threads that read and write, and it writes zeros.
OFFLOADING: Final = {0x6969, 0xFF534D42, 0xFE534D42, 0x00C36400, 0x65735546}
NO_OFFLOAD: Final = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EPERM}


def copy(
    source: int,
    target: int,
    size: int,
    *,
    sparse: bool | None = None,
    reflink: bool | None = None,
    advance: Callable[[int], None],
    window: Window | None,
    skip: Callable[[int], None] | None = None,
    keeping: Keeping | None = None,
) -> str:
    """Copy the first `size` bytes; returns the method: "reflink", "copy_file_range" or "read-write".

    `target` is a new, empty file, which gets its size here, or a block device of at least `size` bytes.

    `sparse` None: allocated like the source (zeros that the source has allocated are reserved, not written;
    a tmpfs, where that costs as much as writing them, gets holes); True:
    zeros become holes, in blocks of 4096 bytes; False: allocated entirely, before the first byte is copied.
    `reflink` None: share blocks where the filesystem can and `sparse` is None; True: or raise JobError; False: never.

    `advance` is told the bytes done, `skip` (default: advance) those that needed no transfer: holes and shared blocks;
    `size` in all. Raises JobError for what is wrong with the source, OSError for the target.

    `keeping`: is told what is finished. The copy begins at `keeping.done`, in a target that may hold anything behind
    that; `advance` is told the rest only.
    """
    if reflink and sparse is not None:
        raise BadArgument("shared blocks keep the layout of the source: --reflink excludes --sparse and --no-sparse")
    return _Copy(source, target, size, sparse, reflink, advance, skip or advance, window, keeping).run()


class _Copy:
    def __init__(
        self,
        source: int,
        target: int,
        size: int,
        sparse: bool | None,
        reflink: bool | None,
        advance: Callable[[int], None],
        skip: Callable[[int], None],
        window: Window | None,
        keeping: Keeping | None,
    ) -> None:
        self.source, self.target, self.size = source, target, size
        self.keeping = keeping
        self.sparse, self.reflink = sparse, reflink
        self.advance, self.skip, self.window = advance, skip, window
        self.reading = Reading(source, size)
        self.position = keeping.done if keeping else 0
        # What makes holes, and zeros inside data, read as zeros; None where the target does so as it is.
        self.holes: ZeroRanges | None = None
        self.zeros: ZeroRanges | None = None

    def run(self) -> str:
        if libc.is_block_device(self.target):
            self.lay_out_device()
        else:
            self.lay_out_file()
        shared = not self.position and self.share()
        if shared and self.position == self.size:
            return "reflink"
        # What the page cache holds is read from it. A target is never in it.
        with (
            direct(self.source if self.reading.cold else None, os.O_RDONLY) as source,
            direct(self.target, os.O_WRONLY) as target,
        ):
            offload = self.move(source, target)
        if libc.size_of(self.source) < self.size:
            raise shrunk(self.source)
        self.hole(self.size)
        for ranges in (self.holes, self.zeros):
            if ranges:
                ranges.flush()
        if self.window:
            self.window.finish()
        if self.keeping:
            self.keeping.finished(self.size)
        if shared:
            return "reflink"
        return "copy_file_range" if offload else "read-write"

    def move(self, source: int | None, target: int | None) -> bool:
        """Copy the data in two threads; `source` and `target` are for direct I/O. True if the server copied all."""
        first, second = _Mover(self, source, target), _Mover(self, source, target)
        steps = self.reading.steps(data_extents(self.source, self.position, self.size), STEP)
        # Both threads take one step, then meet: the limit on bandwidth, which sleeps in `advance`, holds for both.
        with SecondThread[tuple[int, int], list[tuple[int, int]]](lambda step: second.move(*step)) as thread:
            for step in steps:
                other = next(steps, None)
                if other:
                    thread.give(other)
                self.settle(*step, first.move(*step))
                if other:
                    self.settle(*other, thread.take())
                self.keep()
        return first.offload and second.offload

    def lay_out_device(self) -> None:
        room = libc.size_of(self.target)
        if room < self.size:
            name = libc.name_of(self.target)
            raise NoSpace(f"cannot copy {self.size} bytes to {name}: it has {room}; use a larger device")
        self.holes = self.zeros = ZeroRanges(self.target, zero_out, self.window)

    def lay_out_file(self) -> None:
        if self.position:
            os.ftruncate(self.target, self.position)
        elif os.fstat(self.target).st_size:
            raise ValueError("the target of a copy must be empty")
        if not self.size:
            return
        # Never to 0 on the way: ext4 would then flush everything when the file is closed, and at an abort.
        os.ftruncate(self.target, self.size)
        if self.sparse is None and libc.filesystem_type(self.target) != TMPFS:
            self.zeros = ZeroRanges(self.target, reserve, self.window)
        elif self.sparse is False and not preallocate(self.target, self.size):
            self.holes = self.zeros = ZeroRanges(self.target, None, self.window)

    def share(self) -> bool:
        """True if all blocks are shared, save for a part of the last one."""
        if self.reflink is False or self.sparse is not None or not self.size:
            return False
        self.position = reflink.share(self.source, self.target, self.size, self.skip)
        shared = self.position > 0 and self.size - self.position < reflink.ALIGNMENT
        if self.reflink and not shared:
            if libc.size_of(self.source) < self.size:
                raise shrunk(self.source)
            raise JobError(
                f"cannot share blocks with {libc.name_of(self.source)}: its filesystem cannot, or the copy is on "
                "another one; leave out --reflink"
            )
        return shared

    def may_offload(self) -> bool:
        return (
            self.reflink is not False
            and not self.sparse
            and os.fstat(self.source).st_dev == os.fstat(self.target).st_dev
            and libc.filesystem_type(self.target) in OFFLOADING
        )

    def settle(self, offset: int, length: int, zeros: list[tuple[int, int]]) -> None:
        """Account for a step that was moved but for the `zeros` found in it."""
        self.hole(offset)
        if self.zeros:
            for zero in zeros:
                self.zeros.add(*zero)
        if self.window:
            self.window.note(offset, length)
        self.reading.done(offset, length)
        self.position = offset + length
        self.advance(length)

    def keep(self) -> None:
        """Note what is finished, if it is time: all before the position, once the zeros taken are made."""
        if self.keeping and self.keeping.due():
            for ranges in (self.holes, self.zeros):
                if ranges:
                    ranges.flush()
            self.keeping.finished(self.position)

    def hole(self, end: int) -> None:
        """The source has a hole from the position to `end`."""
        if self.holes is None:
            if end > self.position:
                self.skip(end - self.position)
                self.position = end
            return
        while self.position < end:
            length = min(ZeroRanges.STEP, end - self.position)
            self.holes.add(self.position, length)
            self.position += length
            self.advance(length)
            self.keep()


class _Mover:
    """Moves steps; each thread has one."""

    def __init__(self, copy: _Copy, direct_source: int | None, direct_target: int | None) -> None:
        self.source, self.target = copy.source, copy.target
        self.direct_source, self.direct_target = direct_source, direct_target
        self.offload = copy.may_offload()
        self.zero_block = BLOCK if copy.sparse else PIECE
        self.piece = STEP if direct_target is not None else PIECE
        self.buffer = huge_buffer(min(STEP, copy.size) or 1)
        self.view = memoryview(self.buffer)

    def move(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Copy a range; returns the ranges in it that are zeros and were not written."""
        zeros: list[tuple[int, int]] = []
        end = offset + length
        while offset < end:
            if self.offload:
                count = self.copy_file_range(offset, end - offset)
                # A server may say 0 without being at the end: reading tells.
                self.offload = count > 0
            else:
                count = self.read(offset, end - offset)
                self.write(offset, count, zeros)
            offset += count
        return zeros

    def copy_file_range(self, offset: int, length: int) -> int:
        try:
            return os.copy_file_range(self.source, self.target, length, offset, offset)
        except OSError as error:
            if error.errno in NO_OFFLOAD:
                return 0
            raise

    def read(self, offset: int, length: int) -> int:
        try:
            count = self.read_some(offset, length)
        except OSError as error:
            raise from_os_error(error, f"read {libc.name_of(self.source)} at byte {offset}")
        if not count:
            raise shrunk(self.source)
        return count

    def read_some(self, offset: int, length: int) -> int:
        # Shorter steps are in the page cache already.
        if self.direct_source is not None and length == STEP:
            try:
                return os.preadv(self.direct_source, [self.view[:length]], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.direct_source = None
        return os.preadv(self.source, [self.view[: min(length, self.piece)]], offset)

    def write(self, offset: int, length: int, zeros: list[tuple[int, int]]) -> None:
        position = 0
        for start, end in data_runs(self.buffer, length, self.zero_block):
            if start > position:
                zeros.append((offset + position, start - position))
            position = start
            while position < end:
                position += self.write_some(self.view[position:end], offset + position)
        # For one that only looks at zeros the processor's cache matters; direct I/O wants long parts.
        self.piece = STEP if position and self.direct_target is not None else PIECE
        if position < length:
            zeros.append((offset + position, length - position))

    def write_some(self, data: memoryview, offset: int) -> int:
        if self.direct_target is not None and len(data) >= LEAST:
            try:
                return os.pwrite(self.direct_target, data[: len(data) // BLOCK * BLOCK], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.direct_target = None
        return os.pwrite(self.target, data, offset)


def shrunk(source: int) -> JobError:
    name = libc.name_of(source)
    return JobError(f"cannot copy {name}: it became shorter while it was copied; start again when nothing writes to it")
