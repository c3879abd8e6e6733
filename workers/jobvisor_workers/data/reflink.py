"""Sharing blocks between two files of one filesystem instead of copying them."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Final

from jobvisor_workers.data import libc

#: Bytes per call. A clone cannot be interrupted: a file of 120,000 extents took a second in one call.
STEP: Final = 256 << 20
#: A range ends on a block of the filesystem or at the end of the file; no filesystem has larger blocks than this.
ALIGNMENT: Final = 64 << 10

#: No such call, two filesystems, a swap file, checksums on one file only (btrfs), a FUSE server that refuses.
UNSUPPORTED: Final = {
    errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ETXTBSY, errno.EPERM, errno.EACCES,
    errno.EBADF, errno.EISDIR,
}  # fmt: skip


def share(source: int, target: int, size: int, done: Callable[[int], None]) -> int:
    """Let the beginning of `target`, which has `size` bytes already, share the blocks of `source`.

    Returns how many bytes it shares: all, none where the filesystem cannot, all but the last few when the source grew
    meanwhile. `done` is told the bytes of each step. Raises OSError (no space, quota).
    """
    offset = 0
    while offset < size:
        length = min(STEP, size - offset)
        if not _shared(source, target, offset, length):
            # The end of a source that grew lies inside a block; what is before it can be shared still.
            unaligned = length % ALIGNMENT
            length -= unaligned
            if not (unaligned and length and _shared(source, target, offset, length)):
                break
        done(length)
        offset += length
    return offset


def _shared(source: int, target: int, offset: int, length: int) -> bool:
    try:
        libc.ioctl(target, libc.FICLONERANGE, struct.pack("=qQQQ", source, offset, length, offset))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True
