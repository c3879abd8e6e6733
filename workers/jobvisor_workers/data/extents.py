"""Where the data of a file lies."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

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
