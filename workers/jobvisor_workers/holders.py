"""Who holds a lock: the kernel's tables, read with the rights of the calling process.

A flock is listed in /proc/locks with the pid that took it, for everybody to see. An OFD lock is listed with pid -1:
its owner is found by the `lock:` lines of /proc/PID/fdinfo, which show the processes of the same user (all, to root).
What is found is for people to read: pids are reused, and a process may give itself any name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from jobvisor_workers import ofd
from jobvisor_workers.protocol import Holder

#: All of QEMU's image lock bytes, first and last.
QEMU_BYTES = ((100, 203),)
#: A byte far behind every volume's end, locked for a moment to learn how the kernel's tables call the file.
PROBE = (1 << 62) + 2
#: A worker's process name is this and its job's id; the kernel keeps 15 bytes, enough for ids of 11 digits.
WORKER_NAME = "job:"
COMMAND_LENGTH = 80

_LINE = re.compile(rb"\d+: (FLOCK|OFDLCK) +\S+ +(READ|WRITE) +(-?\d+) (\S+) (\d+) (\d+|EOF)")


class Entry(NamedTuple):
    """A line of /proc/locks or fdinfo; first and last byte, -1 for the end of all files."""

    kind: bytes
    exclusive: bool
    pid: int
    file: bytes
    first: int
    last: int

    def touches(self, spans: Iterable[tuple[int, int]]) -> bool:
        """True for an OFD lock on any byte of the spans (first and last byte each)."""
        return self.kind == b"OFDLCK" and any(
            self.first <= last and (self.last == -1 or self.last >= first) for first, last in spans
        )


def flock_holder(fd: int, *, exclusive_only: bool = False) -> Holder | None:
    """Who holds flock(2) on the open file, this process aside; of several the first. None when nobody is found."""
    return flock_holder_of(kernel_name(fd), exclusive_only=exclusive_only)


def flock_holder_of(file: bytes, *, exclusive_only: bool = False) -> Holder | None:
    """As flock_holder, of a file by its kernel_name: needs no descriptor, so that a thread may ask."""

    def holds(entry: Entry) -> bool:
        return entry.kind == b"FLOCK" and entry.file == file and (entry.exclusive or not exclusive_only)

    takers = [entry.pid for entry in _entries(_read("/proc/locks")) if holds(entry)]
    for pid in takers:
        if pid == os.getpid():
            continue
        held = _held_by(pid)
        if held is None or any(map(holds, held)):
            return describe(pid, "flock")
    # Whoever took it is gone (`exec 9<file; flock 9`), or its pid is another's now: an heir of the descriptor has it.
    pid = _find(holds) if any(pid != os.getpid() for pid in takers) else 0
    return describe(pid, "flock") if pid else None


def qemu_holder(fd: int, spans: Iterable[tuple[int, int]] = QEMU_BYTES, *, likely: int | None = None) -> Holder | None:
    """Who has locked these bytes of the open file; None if nobody, or only processes this user may not look into.

    spans: first and last byte each. likely: a pid to look at first; all others cost about 10 µs for each descriptor.
    """
    return byte_holder_of(kernel_name(fd), spans, likely=likely)


def byte_holder_of(
    file: bytes, spans: Iterable[tuple[int, int]], *, exclusive_only: bool = False, likely: int | None = None
) -> Holder | None:
    """As qemu_holder, of a file by its kernel_name."""
    wanted = tuple(spans)

    def holds(entry: Entry) -> bool:
        return entry.file == file and entry.touches(wanted) and (entry.exclusive or not exclusive_only)

    pid = _find(holds, likely)
    return describe(pid) if pid else None


def opener(rdev: int) -> Holder | None:
    """Who has a block device open, through whichever node; a job before anybody else."""
    found: Holder | None = None
    for pid in _pids():
        if pid != os.getpid() and any(_rdev(f"/proc/{pid}/fd/{name}") == rdev for name in _list(f"/proc/{pid}/fd")):
            holder = describe(pid)
            if holder.kind == "job":
                return holder
            found = found or holder
    return found


def describe(pid: int, kind: Literal["flock", "process"] = "process") -> Holder:
    """A process in words: a job of ours, a QEMU with its VM's name, or anything else, which is then called `kind`."""
    argv = _read(f"/proc/{pid}/cmdline").decode(errors="replace").rstrip("\0").split("\0")
    command = _short(" ".join(argv)) or _name(pid) or "it has just ended"
    job = _job(pid)
    if job is not None:
        return Holder("job", pid=pid, command=command, job=job)
    if _is_qemu(pid, argv):
        return Holder("qemu", pid=pid, command=command, vm=_vm(argv))
    return Holder(kind, pid=pid, command=command)


def kernel_name(fd: int) -> bytes:
    """What /proc/locks and fdinfo call the open file: major:minor:inode.

    Not always its st_dev (btrfs, overlayfs), so the kernel is asked: a lock of our own shows it.
    """
    try:
        probing = ofd.take(fd, ofd.SHARED, PROBE)
        try:
            for entry in _entries(_read(f"/proc/self/fdinfo/{fd}")):
                return entry.file
        finally:
            if probing:
                ofd.drop(fd, PROBE)
    except OSError:
        pass
    status = os.fstat(fd)
    return b"%02x:%02x:%d" % (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)


def _find(holds: Callable[[Entry], bool], likely: int | None = None) -> int:
    """A process other than this one with such a lock, 0 if none; first the likely one, then QEMUs and jobs."""
    pids = _pids()
    pids.sort(key=lambda pid: (pid != likely, not _name(pid).startswith(("qemu", WORKER_NAME))))
    for pid in pids:
        if pid != os.getpid() and any(map(holds, _held_by(pid) or ())):
            return pid
    return 0


def _held_by(pid: int) -> list[Entry] | None:
    """Locks of the descriptors of a process, whoever took them; None where it is not ours to see."""
    try:
        names = os.listdir(f"/proc/{pid}/fdinfo")
    except PermissionError:
        return None
    except OSError:
        return []
    return [entry for name in names for entry in _entries(_read(f"/proc/{pid}/fdinfo/{name}"))]


def _entries(text: bytes) -> Iterator[Entry]:
    if b"LCK" not in text and b"FLOCK" not in text:
        return
    for line in text.splitlines():
        # A waiter's line has an arrow here and is no lock.
        found = _LINE.match(line.removeprefix(b"lock:\t"))
        if found:
            kind, mode, pid, file, first, last = found.groups()
            yield Entry(kind, mode == b"WRITE", int(pid), file, int(first), -1 if last == b"EOF" else int(last))


def _job(pid: int) -> int | None:
    """The job that a process works for: a worker by its name, its children by the mark in their environment."""
    worker = re.fullmatch(WORKER_NAME + r"(\d+)", _name(pid))
    if worker:
        return int(worker[1])
    mark = re.search(rb"(?:^|\0)JOBVISOR_JOB=(\d+)(?:\0|$)", _read(f"/proc/{pid}/environ"))
    return int(mark[1]) if mark else None


def _is_qemu(pid: int, argv: list[str]) -> bool:
    programs = (os.path.basename(program) for program in (_readlink(f"/proc/{pid}/exe"), argv[0]))
    return any(program.startswith("qemu-") or program == "kvm" for program in programs)


def _vm(argv: list[str]) -> str | None:
    """The VM's name as -name gives it: `-name web1`, or `-name guest=web1,debug-threads=on`; a comma is doubled."""
    for option, value in pairwise(argv):
        if option in ("-name", "--name"):
            for part in re.split(r"(?<!,),(?!,)", value):
                key, equals, rest = part.partition("=")
                if key == "guest" or not equals:
                    return (rest if equals else key).replace(",,", ",")
    return None


def _short(command: str) -> str:
    plain = "".join(letter if letter.isprintable() else "?" for letter in command)
    return plain if len(plain) <= COMMAND_LENGTH else plain[: COMMAND_LENGTH - 1] + "…"


def _name(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").decode(errors="replace").rstrip("\n")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _rdev(path: str) -> int:
    try:
        return os.stat(path).st_rdev
    except OSError:
        return 0


# A process may vanish, or be another user's, between any two of these looks: then it has nothing to show.


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall() or b""
    except OSError:
        return b""


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
