"""Which disks are below a file or a block device, as sysfs tells; nothing here opens or waits for one."""

from __future__ import annotations

import os
import stat
import time

SYS = "/sys/dev/block"
#: Device mapper on md on partitions: nobody stacks more.
DEEPEST = 16
#: Seconds for which is believed what was found: each start asks, and sysfs takes 0.1 ms to tell.
BELIEVED = 10.0

_known: dict[int, tuple[float, list[str]]] = {}


def below(device: int) -> list[str]:
    """The whole disks below a device number, by the kernel's names.

    What has none is called by the name of its server, or by the number: a filesystem in memory is a disk of its own.
    """
    now = time.monotonic()
    seen, disks = _known.get(device, (-BELIEVED, []))
    if now - seen >= BELIEVED:
        found: dict[str, None] = {}
        _descend(device, found, DEEPEST)
        if len(_known) >= 1000:
            _known.clear()
        _known[device] = now, (disks := list(found))
    return disks


def named(device: str) -> str | None:
    """The disk that a person means by /dev/sda1, or by server:/export. None when there is none, or several."""
    if not device.startswith("/"):
        return device if ":" in device else None
    try:
        status = os.stat(device)
    except OSError:
        return None
    disks = below(status.st_rdev) if stat.S_ISBLK(status.st_mode) else []
    return disks[0] if len(disks) == 1 else None


def of_key(key: str) -> list[str]:
    """Those below a resource, which is told by its key."""
    kind, _, rest = key.partition(":")
    numbers = rest.split(":")
    if kind == "block":
        return below(os.makedev(int(numbers[0]), int(numbers[1])))
    return below(int(numbers[0])) if kind in ("file", "new") else []


def _descend(device: int, found: dict[str, None], left: int) -> None:
    number = f"{os.major(device)}:{os.minor(device)}"
    directory = os.path.realpath(f"{SYS}/{number}")
    if not left or not os.path.isdir(directory):
        source = _source(number)
        try:
            status = os.stat(source) if source.startswith("/dev/") and left else None
        except OSError:
            status = None
        if status is not None and stat.S_ISBLK(status.st_mode):  # btrfs, whose files have numbers of no device
            _descend(status.st_rdev, found, left - 1)
        else:
            found[source if ":" in source else number] = None
        return
    if os.path.exists(f"{directory}/partition"):
        directory = os.path.dirname(directory)
    parts = _listed(f"{directory}/slaves")
    for part in parts:
        with open(f"{directory}/slaves/{part}/dev") as file:
            major, minor = file.read().split(":")
        _descend(os.makedev(int(major), int(minor)), found, left - 1)
    if not parts:
        found[os.path.basename(directory)] = None


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _source(number: str) -> str:
    """What is mounted under a device number; empty when nothing is."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 2]
    return ""
