"""Copying the bytes of a file or block device into a new file or onto a block device."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import Final

from jobvisor_workers.data import libc, reflink
from jobvisor_workers.data.cache import Reading
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.data.second import SecondThread
from jobvisor_workers.data.window import Window
from jobvisor_workers.data.zeros import ZeroRanges, data_runs, is_zero, preallocate, reserve, zero_out
from jobvisor_workers.errors import BadArgument, JobError, NoSpace, from_os_error

MIB: Final = 1 << 20
#: Bytes between two words of progress, and the most that an abort waits for.
STEP: Final = 4 * MIB
#: Bytes per read and write: they stay in the processor's cache between the two.
PIECE: Final = 512 << 10

#: f_type where a server copies on its own: NFS, SMB, SMB2, Ceph, FUSE. Elsewhere copy_file_range moves pages through
#: the page cache, slower than two threads that read and write, and it writes zeros.
OFFLOADING: Final = {0x6969, 0xFF534D42, 0xFE534D42, 0x00C36400, 0x65735546}
TMPFS: Final = 0x01021994
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
) -> str:
    """Copy the first `size` bytes; returns the method: "reflink", "copy_file_range" or "read-write".

    `target` is a new, empty file, which gets its size here, or a block device of at least `size` bytes.

    `sparse` None: allocated like the source (zeros that the source has allocated are reserved, not written;
    a tmpfs, where that costs as much as writing them, gets holes); True:
    zeros become holes, in blocks of 4096 bytes; False: allocated entirely, before the first byte is copied.
    `reflink` None: share blocks where the filesystem can and `sparse` is None; True: or raise JobError; False: never.

    `advance` is told the bytes done, `skip` (default: advance) those that needed no transfer: holes and shared blocks;
    `size` in all. Raises JobError for what is wrong with the source, OSError for the target.
    """
    if reflink and sparse is not None:
        raise BadArgument("shared blocks keep the layout of the source: --reflink excludes --sparse and --no-sparse")
    return _Copy(source, target, size, sparse, reflink, advance, skip or advance, window).run()


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
    ) -> None:
        self.source, self.target, self.size = source, target, size
        self.sparse, self.reflink = sparse, reflink
        self.advance, self.skip, self.window = advance, skip, window
        self.reading = Reading(source, size)
        self.position = 0
        # What makes holes, and zeros inside data, read as zeros; None where the target does so as it is.
        self.holes: ZeroRanges | None = None
        self.zeros: ZeroRanges | None = None

    def run(self) -> str:
        if libc.is_block_device(self.target):
            self.lay_out_device()
        else:
            self.lay_out_file()
        shared = self.share()
        if shared and self.position == self.size:
            return "reflink"
        offload = self.may_offload()
        first, second = _Mover(self, offload), _Mover(self, offload)
        extents = data_extents(self.source, self.position, self.size)
        steps = self.reading.steps(extents, STEP)
        # Both threads take one step, then meet: the limit on bandwidth, which sleeps in `advance`, holds for both.
        with SecondThread[tuple[int, int], list[tuple[int, int]]](lambda step: second.move(*step)) as thread:
            for step in steps:
                other = next(steps, None)
                if other:
                    thread.give(other)
                self.settle(*step, first.move(*step))
                if other:
                    self.settle(*other, thread.take())
        if libc.size_of(self.source) < self.size:
            raise shrunk(self.source)
        self.hole(self.size)
        for ranges in (self.holes, self.zeros):
            if ranges:
                ranges.flush()
        if self.window:
            self.window.finish()
        if shared:
            return "reflink"
        return "copy_file_range" if first.offload and second.offload else "read-write"

    def lay_out_device(self) -> None:
        room = libc.size_of(self.target)
        if room < self.size:
            name = libc.name_of(self.target)
            raise NoSpace(f"cannot copy {self.size} bytes to {name}: it has {room}; use a larger device")
        self.holes = self.zeros = ZeroRanges(self.target, zero_out, self.window)

    def lay_out_file(self) -> None:
        if os.fstat(self.target).st_size:
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


class _Mover:
    """Moves steps; each thread has one."""

    def __init__(self, copy: _Copy, offload: bool) -> None:
        self.source, self.target, self.finely = copy.source, copy.target, copy.sparse is True
        self.offload = offload
        self.buffer = bytearray(min(PIECE, copy.size) or 1)
        self.view = memoryview(self.buffer)
        self.address = libc.address(self.buffer)

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
            count = os.preadv(self.source, [self.view[:length]], offset)
        except OSError as error:
            raise from_os_error(error, f"read {libc.name_of(self.source)} at byte {offset}")
        if not count:
            raise shrunk(self.source)
        return count

    def write(self, offset: int, length: int, zeros: list[tuple[int, int]]) -> None:
        position = 0
        for start, end in self.runs(length):
            if start > position:
                zeros.append((offset + position, start - position))
            position = start
            while position < end:
                position += os.pwrite(self.target, self.view[position:end], offset + position)
        if position < length:
            zeros.append((offset + position, length - position))

    def runs(self, length: int) -> Iterable[tuple[int, int]]:
        if self.finely:
            return data_runs(self.buffer, self.address, length)
        return () if is_zero(self.buffer, self.address, 0, length) else ((0, length),)


def shrunk(source: int) -> JobError:
    name = libc.name_of(source)
    return JobError(f"cannot copy {name}: it became shorter while it was copied; start again when nothing writes to it")
