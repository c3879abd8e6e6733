"""Locks that belong to an open file description: fcntl(2), F_OFD_*. The language of QEMU's image locks.

They end when the last copy of the descriptor is closed, in whatever process. To exclude, the descriptor must be open
for writing; to share, for reading. struct flock is laid out as on every 64-bit Linux.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")
SHARED, EXCLUSIVE = fcntl.F_RDLCK, fcntl.F_WRLCK


def take(fd: int, kind: int, start: int, length: int = 1) -> bool:
    """Lock bytes; false when somebody's lock is in the way. Raises OSError where there are no such locks."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def wait(fd: int, kind: int, start: int, length: int = 1) -> None:
    """Lock bytes, however long it takes; first come, first served."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def drop(fd: int, start: int, length: int = 1) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))


def taken(fd: int, kind: int, start: int, length: int = 1) -> bool:
    """True if a lock of somebody else is in the way of this one; locks of the descriptor itself never are."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    return bool(_FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK)
