"""Who uses a block device, or a file through a loop device: mounted filesystems, swap, other devices on top of it.

Mounts of another mount namespace are not listed to us; for those only the kernel's EBUSY speaks.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator

from jobvisor_workers import holders
from jobvisor_workers.data import libc
from jobvisor_workers.protocol import Holder

LOOP_GET_STATUS64 = 0x4C05
#: struct loop_info64: lo_device, lo_inode first, 232 bytes in all.
_LOOP_INFO = struct.Struct("QQ216x")


def user_of(rdev: int) -> Holder | None:
    """What has a block device, or one of its partitions, for itself; None if nothing is found."""
    parts = {rdev, *_partitions(rdev)}
    for mount_point, device, source in _mounts():
        # btrfs and others show an anonymous device there; their source is the node that was mounted.
        if device in parts or (source.startswith("/") and _rdev(source) in parts):
            return Holder("mount", path=mount_point)
    for line in _lines("/proc/swaps")[1:]:
        path = _plain(line.split()[0])
        if _rdev(path) in parts:
            return Holder("swap", path=path)
    for part in parts:
        for name in _names(f"{_sysfs(part)}/holders"):
            label = "".join(_lines(f"/sys/block/{name}/dm/name")[:1])
            return Holder("kernel", command=f"{name} {label}".strip(), path=f"/dev/{name}")
    return holders.opener(rdev)


def loop_user(fd: int) -> Holder | None:
    """The loop device in use over an open file; None when there is none, or nobody uses it.

    In use: mounted, swap, under another device, or opened exclusively. Costs a look into /sys/block as long as no loop
    device is attached, about 10 µs for each that is.
    """
    status = os.fstat(fd)
    for name in _names("/sys/block"):
        if not name.startswith("loop") or not _is_attached(name, status.st_dev, status.st_ino):
            continue
        match user_of(_loop_rdev(name)):
            case Holder(kind="mount", path=path):
                return Holder("loop", path=f"/dev/{name} (mounted on {path})")
            case Holder(kind="swap"):
                return Holder("loop", path=f"/dev/{name} (used as swap)")
            case Holder(kind="kernel", command=command):
                return Holder("loop", path=f"/dev/{name} (used by {command})")
        if _is_exclusive(name):
            return Holder("loop", path=f"/dev/{name} (in exclusive use)")
    return None


def _is_attached(name: str, device: int, inode: int) -> bool:
    backing = "".join(_lines(f"/sys/block/{name}/loop/backing_file")[:1])
    if not backing:
        return False
    try:
        loop = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        # Only root may ask the device itself; its file's name tells the same until the file is renamed or replaced.
        try:
            status = os.stat(backing)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (device, inode)
    try:
        answer = bytearray(_LOOP_INFO.size)
        libc.ioctl(loop, LOOP_GET_STATUS64, answer)
    except OSError:
        return False
    finally:
        os.close(loop)
    return bool(_LOOP_INFO.unpack(answer) == (device, inode))


def _is_exclusive(name: str) -> bool:
    """Ask by opening it exclusively for a moment: mounts of other namespaces are seen only so, and only by root."""
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _mounts() -> Iterator[tuple[str, int, str]]:
    """Mount point, device number and source of each mount."""
    for line in _lines("/proc/self/mountinfo"):
        front, _, back = line.partition(" - ")
        fields = front.split(" ")
        major, minor = fields[2].split(":")
        yield _plain(fields[4]), os.makedev(int(major), int(minor)), _plain(back.split(" ")[1])


def _partitions(rdev: int) -> Iterator[int]:
    directory = _sysfs(rdev)
    for name in _names(directory):
        if os.path.exists(f"{directory}/{name}/partition"):
            yield from _device_number(f"{directory}/{name}/dev")


def _loop_rdev(name: str) -> int:
    return next(_device_number(f"/sys/block/{name}/dev"), 0)


def _device_number(path: str) -> Iterator[int]:
    for line in _lines(path)[:1]:
        major, minor = line.split(":")
        yield os.makedev(int(major), int(minor))


def _sysfs(rdev: int) -> str:
    return f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}"


def _plain(text: str) -> str:
    r"""The kernel writes blanks and backslashes in these tables as \040 and \134."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _rdev(path: str) -> int:
    try:
        return os.stat(path).st_rdev
    except OSError:
        return 0


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []
