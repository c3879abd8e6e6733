"""Finding zeros in what is copied, and making ranges of the target read as zeros."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from mmap import mmap
from typing import Final

from jobvisor_workers.data import libc
from jobvisor_workers.data.direct import BLOCK, direct, huge_buffer
from jobvisor_workers.data.window import Window

#: Finer, and the copy of a file with zeros in it would have many extents.
PIECE: Final = 512 << 10
#: Bytes of one write by `fill_with_zeros`.
STEP: Final = 4 << 20
_ZEROS: Final = bytearray(PIECE)
_ZEROS_AT: Final = libc.address(_ZEROS)

#: Bytes of one call, which no signal interrupts.
ALLOCATED_AT_ONCE: Final = 1 << 30

UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY}


def data_runs(buffer: mmap, length: int, block: int) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch at the buffer's beginning that is not zeros, told apart in blocks of that size.

    `block` divides 512 KiB, which are looked at as a whole first.
    """
    address = libc.address(buffer)
    start = None
    for piece in range(0, length, PIECE):
        end = min(piece + PIECE, length)
        zero = not buffer[piece] and libc.same(address + piece, _ZEROS_AT, end - piece)
        for at in (piece,) if zero or block == PIECE else range(piece, end, block):
            # On data the first byte tells mostly.
            if zero or (block < PIECE and not buffer[at] and libc.same(address + at, _ZEROS_AT, min(block, end - at))):
                if start is not None:
                    yield start, at
                start = None
            elif start is None:
                start = at
    if start is not None:
        yield start, length


def write_zeros(fd: int, offset: int, length: int, window: Window | None) -> None:
    """Write zeros as data."""
    view = memoryview(_ZEROS)
    end = offset + length
    while offset < end:
        count = os.pwrite(fd, view[: min(PIECE, end - offset)], offset)
        if window:
            window.note(offset, count)
        offset += count


def reserve(fd: int, offset: int, length: int) -> None:
    """Allocate space that reads as zeros without writing them; raises OSError, also where it cannot be done."""
    libc.fallocate(fd, 0, offset, length)


def preallocate(fd: int, size: int, told: Callable[[int], None] = lambda _count: None) -> bool:
    """Allocate the first `size` bytes of a file; False where the filesystem cannot.

    Raises OSError: no space is known before any byte. `told` hears how many bytes more are done.
    """
    try:
        for offset in range(0, size, ALLOCATED_AT_ONCE):
            length = min(ALLOCATED_AT_ONCE, size - offset)
            libc.fallocate(fd, 0, offset, length)
            told(length)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True


def fill_with_zeros(fd: int, ranges: Iterable[tuple[int, int]], advance: Callable[[int], None]) -> None:
    """Write zeros as data to ranges (start, end) of a file, and bring them to the disk.

    Past the page cache where that can be. Raises OSError (no space).
    """
    view, window = memoryview(huge_buffer(STEP)), Window(fd)
    with direct(fd, os.O_WRONLY) as past:
        for start, end in ranges:
            while start < end:
                length = min(STEP, end - start)
                whole = length // BLOCK * BLOCK
                if past is not None and whole and not start % BLOCK:
                    try:
                        count = os.pwrite(past, view[:whole], start)
                    except OSError as error:
                        if error.errno != errno.EINVAL:
                            raise
                        past = None
                        continue
                else:
                    count = os.pwrite(fd, view[:length], start)
                    window.note(start, count)
                start += count
                advance(count)
    window.finish()


def rewrite(fd: int, start: int, end: int, advance: Callable[[int], None]) -> None:
    """Write what a range of a file holds once more, so that zeroes in it are data too."""
    for offset in range(start, end, STEP):
        length = min(STEP, end - offset)
        os.pwrite(fd, os.pread(fd, length, offset), offset)
        advance(length)


def zero_out(fd: int, offset: int, length: int) -> None:
    """Let a block device zero a range; raises OSError, also where it cannot be done."""
    start, end = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
    if start >= end:
        write_zeros(fd, offset, length, None)
        return
    write_zeros(fd, offset, start - offset, None)
    libc.ioctl(fd, libc.BLKZEROOUT, struct.pack("=QQ", start, end - start))
    write_zeros(fd, end, offset + length - end, None)


class ZeroRanges:
    """Ranges of a target that must read as zeros: merged, and made so by `make`, or written where that cannot be."""

    #: Bytes per call. Zeroing a device may mean writing to it, which no signal interrupts.
    STEP: Final = 64 << 20

    def __init__(self, fd: int, make: Callable[[int, int, int], None] | None, window: Window | None) -> None:
        self._fd, self._make, self._window = fd, make, window
        self._start = self._end = 0

    def add(self, offset: int, length: int) -> None:
        """Take a range; it may be made only later. Raises OSError (no space)."""
        if offset != self._end:
            self.flush()
            self._start = self._end = offset
        self._end += length
        if self._end - self._start >= self.STEP:
            self.flush()

    def flush(self) -> None:
        """Make what was taken. Raises OSError (no space)."""
        while self._start < self._end:
            length = min(self.STEP, self._end - self._start)
            if self._make is None:
                write_zeros(self._fd, self._start, length, self._window)
            else:
                try:
                    self._make(self._fd, self._start, length)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                    self._make = None
                    continue
            self._start += length
