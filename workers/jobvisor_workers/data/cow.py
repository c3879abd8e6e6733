"""Whether overwriting a file reaches the blocks that hold its data, and how to have it so."""

from __future__ import annotations

import struct
from typing import Final

from jobvisor_workers.data import libc

#: f_type of filesystems that write a change to another place, and what is to be known about each.
ELSEWHERE: Final = {
    0x2FC12FC1: "zfs writes every change to new blocks",
    0xCA451A4E: "bcachefs writes every change to new blocks",
    0xF2F52010: "f2fs writes every change to new blocks",
    0x3434: "nilfs writes every change to new blocks",
    0x794C7630: "overlayfs keeps what a lower layer holds",
    0x65735546: "a FUSE filesystem writes where it likes",
    0x6969: "an NFS server writes where it likes",
    0xFF534D42: "an SMB server writes where it likes",
    0xFE534D42: "an SMB server writes where it likes",
    0x00C36400: "a Ceph cluster writes where it likes",
}
BTRFS: Final = 0x9123683E
FS_NOCOW_FL: Final = 0x00800000

FIEMAP_EXTENT_LAST: Final = 0x0001
FIEMAP_EXTENT_SHARED: Final = 0x2000
HEADER: Final = struct.Struct("=QQIIII")
EXTENT: Final = struct.Struct("=QQQQQIIII")
EXTENTS_PER_CALL: Final = 256


def cow_reason(fd: int) -> str | None:
    """Why old blocks of a file may live on after it is overwritten in place; None where nothing says so."""
    if libc.is_block_device(fd):
        return None
    kind = libc.filesystem_type(fd)
    if kind in ELSEWHERE:
        return ELSEWHERE[kind]
    if kind == BTRFS and not _overwrites_in_place(fd):
        return "btrfs writes every change to new blocks"
    if _shares(fd):
        return "it shares blocks with a reflinked copy or a snapshot"
    return None


def forbid_cow(fd: int) -> None:
    """Let btrfs overwrite this file, which is still empty, in place. Raises OSError where that cannot be."""
    flags = bytearray(8)
    libc.ioctl(fd, libc.FS_IOC_GETFLAGS, flags)
    wanted = int.from_bytes(flags[:4], "little") | FS_NOCOW_FL
    libc.ioctl(fd, libc.FS_IOC_SETFLAGS, wanted.to_bytes(8, "little"))


def _overwrites_in_place(fd: int) -> bool:
    answer = bytearray(8)
    try:
        libc.ioctl(fd, libc.FS_IOC_GETFLAGS, answer)
    except OSError:
        return False
    return bool(int.from_bytes(answer[:4], "little") & FS_NOCOW_FL)


def _shares(fd: int) -> bool:
    """True if an extent of the file belongs to another file too; looks at all of them, 256 in a call."""
    start = 0
    while True:
        answer = bytearray(HEADER.size + EXTENTS_PER_CALL * EXTENT.size)
        HEADER.pack_into(answer, 0, start, 0xFFFFFFFFFFFFFFFF - start, 0, 0, EXTENTS_PER_CALL, 0)
        try:
            libc.ioctl(fd, libc.FS_IOC_FIEMAP, answer)
        except OSError:
            return False
        count = HEADER.unpack_from(answer)[3]
        for number in range(count):
            logical, _, length, *_, flags, _, _, _ = EXTENT.unpack_from(answer, HEADER.size + number * EXTENT.size)
            if flags & FIEMAP_EXTENT_SHARED:
                return True
            if flags & FIEMAP_EXTENT_LAST:
                return False
            start = logical + length
        if not count:
            return False
