"""Where the data of a file lies, and reading it before it is needed."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator

#: lseek on what knows no holes: pipes and some FUSE and old network filesystems.
NO_HOLES = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE}


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Offset and length, in bytes, of each stretch of data in [start, end), in order; between them are holes.

    What cannot tell holes from data (block devices, some filesystems) is one stretch. A file that shrinks meanwhile
    ends the iteration early. Moves the descriptor's offset.
    """
    position = start
    while position < end:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
            hole = os.lseek(fd, data, os.SEEK_HOLE) if data < end else end
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno not in NO_HOLES:
                raise
            data, hole = position, end
        if data >= end:
            return
        hole = min(hole, end)
        yield data, hole - data
        position = hole


def allocated(fd: int, size: int) -> int:
    """Bytes of data, holes left out, in the first `size` bytes; two lseek calls per extent."""
    return sum(length for _, length in data_extents(fd, 0, size))


def read_ahead(
    fd: int, extents: Iterable[tuple[int, int]], step: int, ahead: int
) -> Iterator[tuple[int, int]]:
    """Cut extents into steps of at most `step` bytes; up to `ahead` bytes after each are already being read.

    The kernel's own read-ahead stops at the end of an extent and fills memory with the zeros of the hole behind it.
    """
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    except OSError:    # no such advice here (a pipe, some FUSE): the steps are the same without it
        ahead = 0
    coming: deque[tuple[int, int]] = deque()
    waiting = 0
    for offset, length in extents:
        for start in range(offset, offset + length, step):
            part = start, min(step, offset + length - start)
            if ahead:
                os.posix_fadvise(fd, *part, os.POSIX_FADV_WILLNEED)
            coming.append(part)
            waiting += part[1]
            while waiting > ahead:
                waiting -= coming[0][1]
                yield coming.popleft()
    yield from coming
