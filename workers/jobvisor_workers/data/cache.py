"""Reading a file through the page cache without pushing out what others have there."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

SAMPLES: Final = 16
MIB: Final = 1 << 20
#: Steps from here on are left to the kernel's own read-ahead, which uses larger pages and is faster.
LONG: Final = 4 * MIB
AHEAD: Final = 16 * MIB


class Reading:
    """Advice on a descriptor that is read once from the beginning to the end.

    Pages that the reading brought in are dropped behind it; a file that was in the cache before stays there. Besides
    being polite this is faster: the reading recycles its own pages.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        #: The file was not in the cache.
        self.cold = _advise(fd, os.POSIX_FADV_RANDOM) and not _cached(fd, size)
        _advise(fd, os.POSIX_FADV_SEQUENTIAL)

    def steps(self, extents: Iterable[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
        """Cut extents into steps of at most `length` bytes; short ones ahead of each are already being read.

        The kernel's own read-ahead stops at the end of an extent and fills memory with the zeros of the hole behind it.
        """
        coming: deque[tuple[int, int]] = deque()
        waiting = 0
        for start, whole in extents:
            for offset in range(start, start + whole, length):
                step = offset, min(length, start + whole - offset)
                if step[1] < LONG:
                    _advise(self._fd, os.POSIX_FADV_WILLNEED, *step)
                coming.append(step)
                waiting += step[1]
                while waiting > AHEAD:
                    waiting -= coming[0][1]
                    yield coming.popleft()
        yield from coming

    def done(self, offset: int, length: int) -> None:
        """A range was read."""
        if self.cold:
            # Pages of up to 2 MiB that reach over the end of a range stay until the next one covers them.
            start = max(0, offset - 2 * MIB)
            _advise(self._fd, os.POSIX_FADV_DONTNEED, start, offset + length - start)


def _cached(fd: int, size: int) -> bool:
    """True if more than one of a few samples is in memory, or nobody can tell."""
    found = 0
    for sample in range(SAMPLES):
        try:
            os.preadv(fd, [bytearray(1)], size * sample // SAMPLES, os.RWF_NOWAIT)
            found += 1
        except BlockingIOError:
            continue
        except OSError:
            return True
    # One may have been read from the disk in the time between the kernel's two looks.
    return found > 1


def _advise(fd: int, advice: int, offset: int = 0, length: int = 0) -> bool:
    """Give advice that not every file takes (pipes and some FUSE do not)."""
    try:
        os.posix_fadvise(fd, offset, length, advice)
    except OSError:
        return False
    return True
