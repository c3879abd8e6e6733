"""That a file or device is the one that it was, and that nobody changed it since.

A file tells: any change of its content moves its mtime and ctime, and nobody can set a ctime. What may be missed is one
within the tick of the clock in which it was looked at (`settled` waits for the next one), on filesystems that keep
whole seconds, and one by a host with another clock on a network filesystem.

A block device tells little: which it is (major:minor, the kernel's sequence number of disks, its size) as long as the
host runs, and how many sectors were written or discarded through this node. Not noticed is what was written another
way: through the whole disk below a partition, the file behind a loop device, another host. After the host was started
anew nothing can be told, and it counts as changed.
"""

from __future__ import annotations

import os
import stat
import time
from functools import cache

from msgspec import Struct

from jobvisor_workers.data import libc

#: Seconds after which the kernel's coarse clock, by which files are stamped, has ticked (100 Hz at the least).
TICK = 0.012


class Facts(Struct, frozen=True):
    """One look at a file or block device. Times in ns.

    `device`: st_dev, or st_rdev of a block device; both are given out anew when the host starts. `inode`: of a device
    the sequence number of its disk, 0 where it is not known. `written`: sectors of a device, -1 where nobody counts.
    """

    block: bool
    boot: str
    device: int
    inode: int
    size: int
    mtime: int
    ctime: int
    written: int = -1


def look(fd: int) -> Facts:
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode):
        ids = status.st_dev, status.st_ino
        return Facts(False, boot_id(), *ids, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    place = f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    sequence = _read(f"{place}/diskseq") or _read(f"{place}/../diskseq")
    counters = _read(f"{place}/stat").split()
    # Documentation/block/stat.rst: sectors written, and since 4.18 sectors discarded.
    written = sum(int(counters[index]) for index in (6, 13) if index < len(counters)) if counters else -1
    return Facts(True, boot_id(), status.st_rdev, int(sequence or 0), libc.size_of(fd), 0, 0, written)


def settled(fd: int) -> Facts:
    """A look after which every change will show."""
    if libc.is_block_device(fd):
        os.fsync(fd)  # what others wrote before is counted when it reaches the device
    facts = look(fd)
    wait = facts.ctime / 1e9 + TICK - time.time()
    if 0 < wait <= TICK:  # a ctime in the future is of another clock
        time.sleep(wait)
        facts = look(fd)
    return facts


def other(before: Facts, now: Facts) -> str | None:
    """What tells that it is not the same thing any more, whatever it holds; None when nothing does."""
    if before.block is not now.block:
        return "it was a device and is a file" if before.block else "it was a file and is a device"
    rebooted = before.boot != now.boot
    if before.block and rebooted:
        return "the host was started anew, after which no device can be told from another"
    if before.inode != now.inode or (before.device != now.device and not rebooted):
        return "another device has that name now" if before.block else "another file has that name now"
    if before.size != now.size:
        return f"it had {before.size} bytes and has {now.size}"
    return None


def change(before: Facts, now: Facts) -> str | None:
    """What tells that it is another thing, or was changed since; None when nothing does."""
    if why := other(before, now):
        return why
    if before.block:
        return "it was written to" if before.written != now.written else None
    if before.mtime != now.mtime:
        return f"it was written to at {_moment(now.mtime)}"
    if before.ctime != now.ctime:
        return f"its attributes were changed at {_moment(now.ctime)}"
    return None


def change_between(least: Facts, latest: int | None, now: Facts) -> str | None:
    """As `change`, for what was still written after the last look: until the moment `latest` (ns), if known.

    Of a device, and where `latest` is None, what others wrote since cannot be told.
    """
    if why := other(least, now):
        return why
    if now.mtime < least.mtime:
        return f"it is as old as {_moment(now.mtime)}, older than what was written to it"
    if latest is not None and now.ctime > latest:
        return f"it was changed at {_moment(now.ctime)}, when the job wrote no more"
    return None


def boot_moment() -> float:
    """When this host was started, epoch seconds by the clock of now."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _moment(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns / 1e9))
