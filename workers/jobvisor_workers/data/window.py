"""A bound on how much written data waits in memory, so that a closing fsync is short.

fsync cannot be interrupted: with 1 GiB dirty an abort waited 350 ms for it on a disk of 3 GB/s, with two windows of
32 MiB 4 ms.
"""

from __future__ import annotations

import errno

from jobvisor_workers.data import libc

MIB = 1 << 20

UNSUPPORTED = {errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EOPNOTSUPP}


class Window:
    """At most two windows of written data are not yet on the disk: one being written back, one being filled."""

    def __init__(self, fd: int, length: int = 32 * MIB) -> None:
        self._fd, self._length = fd, length
        self._noted = 0
        # A window is the span from its lowest to its highest byte. With scattered offsets it covers more than what
        # was noted, which costs nothing: only dirty pages are written.
        self._start = self._end = 0
        self._before: tuple[int, int] | None = None
        self._supported = True

    def note(self, offset: int, length: int) -> None:
        """`length` bytes were written at `offset`. Blocks while the window before this one is still being written.

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
        self._wait()

    def _turn(self) -> None:
        span = self._start, self._end - self._start
        self._noted = 0
        if self._supported:
            try:
                libc.sync_file_range(self._fd, *span, libc.SYNC_WRITE)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._supported = False
                return
            self._wait()
            self._before = span

    def _wait(self) -> None:
        if self._before is not None:
            span, self._before = self._before, None
            libc.sync_file_range(self._fd, *span, libc.SYNC_WAIT_BEFORE | libc.SYNC_WRITE | libc.SYNC_WAIT_AFTER)
