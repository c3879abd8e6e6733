"""Finding zeros in what is copied, and making ranges of the target read as zeros."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final

from jobvisor_workers.data import libc
from jobvisor_workers.data.window import Window

BLOCK: Final = 4096
PIECE: Final = 1 << 20
_ZEROS: Final = bytearray(PIECE)
_ZEROS_AT: Final = libc.address(_ZEROS)
_ZERO_BLOCK: Final = bytes(BLOCK)

UNSUPPORTED: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY}


def is_zero(buffer: bytearray, address: int, start: int, length: int) -> bool:
    """True if `length` bytes (at most 1 MiB) of the buffer at `address` are zeros; on data one byte decides mostly."""
    return not buffer[start] and libc.same(address + start, _ZEROS_AT, length)


def data_runs(buffer: bytearray, address: int, length: int) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch that is not zeros, in blocks of 4096 bytes."""
    if is_zero(buffer, address, 0, length):
        return
    if buffer.find(_ZERO_BLOCK, 0, length) < 0:
        yield 0, length
        return
    start = None
    for at in range(0, length, BLOCK):
        if is_zero(buffer, address, at, min(BLOCK, length - at)):
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


def preallocate(fd: int, size: int) -> bool:
    """Allocate all of a file; False where the filesystem cannot. Raises OSError: no space is known before any byte."""
    step = 1 << 30
    try:
        for offset in range(0, size, step):
            libc.fallocate(fd, 0, offset, min(step, size - offset))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True


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
