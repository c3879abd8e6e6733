"""Whether the bytes of a new file will fit, as far as that can be known before the first of them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from jobvisor_workers.data import libc
from jobvisor_workers.data.direct import BLOCK
from jobvisor_workers.errors import JobError, NoSpace, from_os_error

if TYPE_CHECKING:
    from jobvisor_workers.worker import Volume

FULL = os.strerror(errno.ENOSPC)
#: f_type of filesystems that may store less than they are given (compression): btrfs, ZFS, bcachefs, F2FS.
COMPRESSING = {0x9123683E, 0x2FC12FC1, 0xCA451A4E, 0xF2F52010}
#: f_type of those that can share blocks between files: xfs, and btrfs, bcachefs, OCFS2.
SHARING = {0x58465342, 0x9123683E, 0xCA451A4E, 0x7461636F}


def check_writable(path: str, directory: str) -> None:
    """Raises JobError when no file can be made in `directory`."""
    if not os.access(directory, os.W_OK | os.X_OK):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        why = "the filesystem is read-only" if read_only else "permission denied"
        raise JobError(f"cannot create {path} in {directory}: {why}")


def check_free(directory: str, needed: int, doing: str, advice: str = "") -> None:
    """Raises NoSpace when `needed` bytes are certainly more than the filesystem has; `doing` begins the sentence.

    Quotas, and what others write meanwhile, are only met on the way.
    """
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.filesystem_type(here) in COMPRESSING:
            return
    finally:
        os.close(here)
    there = free(directory)
    if needed > there:
        raise NoSpace(f"cannot {doing}: {compare(needed, 'the filesystem', there, ' free')}{advice}")


def exhausted(error: NoSpace, doing: str, directory: str, fd: int, advice: str = "") -> NoSpace:
    """The same said in full, of what was met in the middle of writing the new file `fd`.

    `doing` names the target; `advice`: what else might be done than to make room.
    """
    text = str(error)
    if FULL not in text:  # a quota, or a limit on the size of files, which has nothing to do with what is free
        return error
    there = free(directory) + os.fstat(fd).st_blocks * 512
    return NoSpace(
        f"cannot {doing}: {FULL}, although {human(there)} were free for it; make room in {directory}{advice}"
    )


def outgrown(error: OSError | JobError, doing: str, volume: Volume) -> JobError:
    """As `exhausted`, of a volume that grew in place; `doing` names it. Other errors as they are."""
    met = from_os_error(error, doing) if isinstance(error, OSError) else error
    if not isinstance(met, NoSpace) or FULL not in str(met):
        return met
    if volume.kind == "block":
        return NoSpace(f"cannot {doing}: the device is full, it has {human(volume.size)}; enlarge it, and do it again")
    directory = os.path.dirname(os.path.realpath(volume.path))
    return NoSpace(
        f"cannot {doing}: {FULL}, {human(free(directory))} are free; make room in {directory}, and do it again"
    )


def free(directory: str) -> int:
    """Bytes that this process may still write to the filesystem of `directory`, quotas aside."""
    facts = os.statvfs(directory)
    return (facts.f_bavail if os.geteuid() else facts.f_bfree) * facts.f_frsize


def in_blocks(count: int) -> int:
    """Bytes that a file with so many of them takes, which common filesystems give out in blocks of 4096."""
    return -(-count // BLOCK) * BLOCK


def may_share(fd: int, directory: str) -> bool:
    """True when a file in `directory` may come to share its blocks with this one, and then needs no room."""
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        same = os.fstat(here).st_dev == os.fstat(fd).st_dev
        return same and libc.filesystem_type(here) in SHARING
    finally:
        os.close(here)


def compare(needed: int, place: str, there: int, what: str = "") -> str:
    """Such as "needs 12.3 GiB, the filesystem has 4.0 GiB free"; in bytes where the units would hide the difference."""
    texts = human(needed), human(there)
    if texts[0] == texts[1]:
        texts = f"{needed} bytes", f"{there} bytes"
    return f"needs {texts[0]}, {place} has {texts[1]}{what}"


def human(count: float) -> str:
    """Bytes with a unit of 1024s."""
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
