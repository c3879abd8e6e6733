"""System calls and ioctls that Python's os module lacks.

Numbers are those of asm-generic (x86, arm, riscv, s390); offsets are 64 bits wide, as on every 64-bit Linux.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from mmap import mmap
from typing import Final

SYNC_WAIT_BEFORE: Final = 1
SYNC_WRITE: Final = 2
SYNC_WAIT_AFTER: Final = 4

FALLOC_KEEP_SIZE: Final = 1
FALLOC_PUNCH_HOLE: Final = 2
FALLOC_ZERO_RANGE: Final = 16

BLKDISCARD: Final = 0x1277
BLKZEROOUT: Final = 0x127F
FICLONERANGE: Final = 0x4020940D
FS_IOC_FIEMAP: Final = 0xC020660B
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602

#: openat2(2), by number: glibc has no function for it.
_OPENAT2, _AT_FDCWD, _RESOLVE_NO_MAGICLINKS = 437, -100, 0x02

SHORT: Final = 16 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
# Without giving up the GIL: between two threads that costs more than comparing a block.
_memcmp_short = ctypes.PyDLL(None).memcmp
_memcmp_short.argtypes = _libc.memcmp.argtypes


def _failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Start, or wait for, the writing back of a range. Raises OSError, also for an error of earlier writeback."""
    while _libc.sync_file_range(fd, offset, length, flags):
        error = _failed()
        if not isinstance(error, InterruptedError):
            raise error


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate or punch. Python's posix_fallocate knows no mode, and glibc's writes where the filesystem cannot."""
    while _libc.fallocate(fd, mode, offset, length):
        error = _failed()
        if not isinstance(error, InterruptedError):
            raise error


def ioctl(fd: int, request: int, argument: bytes | bytearray = b"") -> None:
    """fcntl.ioctl that a stop and a continue cannot interrupt; a bytearray is filled in place."""
    while True:
        try:
            fcntl.ioctl(fd, request, argument)
            return
        except InterruptedError:
            continue


def filesystem_type(fd: int) -> int:
    """f_type of statfs(2), which os.statvfs leaves out."""
    answer = (ctypes.c_ulong * 64)()
    if _libc.fstatfs(fd, answer):
        raise _failed()
    return int(answer[0]) & 0xFFFFFFFF


def address(buffer: bytearray | mmap | memoryview) -> int:
    """Where a writable buffer lies; valid while the caller keeps the buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def same(left: int, right: int, length: int) -> bool:
    """True if `length` bytes at two addresses are equal. memoryview compares element by element, 50 times slower."""
    return not (_libc.memcmp if length > SHORT else _memcmp_short)(left, right, length)


def leads_through_magic_link(path: str) -> bool:
    """True if a path that can be followed goes through an open file, directory or root of some process (below /proc).

    False also where the kernel has no openat2 (before 5.6).
    """
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_MAGICLINKS)
    fd = _libc.syscall(_OPENAT2, _AT_FDCWD, os.fsencode(path), how, ctypes.c_size_t(len(how)))
    if fd >= 0:
        os.close(fd)
    return fd < 0 and ctypes.get_errno() == errno.ELOOP


def is_block_device(fd: int) -> bool:
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def size_of(fd: int) -> int:
    """Bytes in a file or block device (whose st_size is 0). Moves the descriptor's offset."""
    status = os.fstat(fd)
    return os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(status.st_mode) else status.st_size


def name_of(fd: int) -> str:
    """The path a descriptor was opened by, for messages."""
    return os.readlink(f"/proc/self/fd/{fd}")
