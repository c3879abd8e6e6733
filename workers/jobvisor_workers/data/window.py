"""A bound on how much written data waits in memory, so that a closing fsync is short.

fsync cannot be interrupted: with 1 GiB dirty an abort waited 350 ms for it on a disk of 3 GB/s, with 64 MiB 4 ms.
What is on the disk is dropped from memory: a copy does not push out what other programs read, and recycling its own
pages makes it faster by a third.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import Final

from jobvisor_workers.data import libc

MIB: Final = 1 << 20

UNSUPPORTED: Final = {errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EOPNOTSUPP}


class Window:
    """At most `in_flight` + 1 windows of `length` bytes are not yet on the disk; one of them is being filled."""

    def __init__(self, fd: int, length: int = 16 * MIB, in_flight: int = 3) -> None:
        self._fd, self._length, self._in_flight = fd, length, in_flight
        self._noted = 0
        # A window is the span from its lowest to its highest byte. With scattered offsets it covers more than what
        # was noted, which costs nothing: only dirty pages are written.
        self._start = self._end = 0
        self._writing: deque[tuple[int, int]] = deque()
        self._supported = True

    def note(self, offset: int, length: int) -> None:
        """`length` bytes were written at `offset`. Waits while too many windows are still being written back.

        Raises OSError for an error of the writing back: the kernel reports it once per descriptor, and the closing
        fsync would no longer see it.
        """
        if not self._noted:
            self._start, self._end = offset, offset + length
        else:
            self._start, self._end = min(self._start, offset), max(self._end, offset + length)
        self._noted += length
        if self._noted >= self._length:
            self._turn()

    def finish(self) -> None:
        """Wait until all that was noted is written back; fsync then has only the file's metadata to do.

        Raises OSError as `note` does.
        """
        if self._noted:
            self._turn()
        while self._writing:
            self._wait()

    def _turn(self) -> None:
        span = self._start, self._end - self._start
        self._noted = 0
        if not self._supported:
            return
        try:
            libc.sync_file_range(self._fd, *span, libc.SYNC_WRITE)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._supported = False
            return
        self._writing.append(span)
        if len(self._writing) > self._in_flight:
            self._wait()

    def _wait(self) -> None:
        span = self._writing.popleft()
        libc.sync_file_range(self._fd, *span, libc.SYNC_WAIT_BEFORE | libc.SYNC_WRITE | libc.SYNC_WAIT_AFTER)
        os.posix_fadvise(self._fd, *span, os.POSIX_FADV_DONTNEED)
