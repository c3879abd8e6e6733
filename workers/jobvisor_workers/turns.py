"""Job against job, and against scripts: flock(2) on the resource itself, first come, first served.

Readers that come one after the other would lock a writer out for ever (a writer among four of them waited until they
all had left). So whoever has to wait to write holds a byte of the file exclusively while it waits, the gate, and
everybody else waits there before asking for the flock. A waiting writer that is suspended thus keeps its place, and
readers wait behind it. Programs that know nothing of the gate, such as flock(1), pass it by.

On NFS flock is a lock on the whole file that would meet QEMU's bytes: an OFD lock on one byte stands for it, gateless.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Callable

from jobvisor_workers import holders, ofd, qemu_locks
from jobvisor_workers.data import libc
from jobvisor_workers.errors import Held
from jobvisor_workers.jobtype import READ, WRITE, Access
from jobvisor_workers.protocol import Holder, OnConflict

Waiting = Callable[[str, Holder | None], None]
Find = Callable[[], Holder | None]

NFS = 0x6969
#: The byte of the lock on NFS, and that of the gate elsewhere: behind the end of every volume, out of QEMU's way.
WHOLE = 1 << 62
GATE = (1 << 62) + 1
#: Seconds between two looks whether somebody else has become the holder.
LOOK = 1.0


def take(fd: int, path: str, access: Access, on_conflict: OnConflict, waiting: Waiting, doing: str) -> bool:
    """Have the open volume to ourselves (WRITE) or together with other readers; true if that was a wait.

    Arguments as in locks.acquire. Raises Held when on_conflict is "fail", which also passes by who only waits, and
    OSError where the filesystem has no locks.
    """
    nfs = libc.filesystem_type(fd) == NFS
    if nfs:
        kind = ofd.EXCLUSIVE if access is WRITE else ofd.SHARED
        free = ofd.take(fd, kind, WHOLE)
    else:
        kind = fcntl.LOCK_EX if access is WRITE else fcntl.LOCK_SH
        behind_writer = on_conflict != "fail" and ofd.taken(fd, ofd.SHARED, GATE)
        free = not behind_writer and _try_flock(fd, kind)
    if free:
        return False
    find = (_find_byte if nfs else _find_flock)(holders.kernel_name(fd), access)
    if on_conflict == "fail":
        # udev holds a shared flock on a disk for a moment each time that somebody who wrote to it closes it.
        if stat.S_ISBLK(os.fstat(fd).st_mode) and qemu_locks.settled(lambda: _try_flock(fd, kind)):
            return False
        raise Held(path, find(), doing)
    with _Watch(path, find, waiting):
        if nfs:
            ofd.wait(fd, kind, WHOLE)
        else:
            _wait_for_flock(fd, kind)
    return True


def _wait_for_flock(fd: int, kind: int) -> None:
    """One blocking call after the gate: any other way would lose the place in the kernel's queue."""
    if kind == fcntl.LOCK_SH:
        ofd.wait(fd, ofd.SHARED, GATE)
        ofd.drop(fd, GATE)
        fcntl.flock(fd, kind)
    else:
        ofd.wait(fd, ofd.EXCLUSIVE, GATE)
        fcntl.flock(fd, kind)
        ofd.drop(fd, GATE)


def _try_flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# Both look by the kernel's name of the file: a thread must not touch a descriptor that may be closed under its hands.


def _find_flock(file: bytes, access: Access) -> Find:
    def find() -> Holder | None:
        holder = holders.flock_holder_of(file, exclusive_only=access is READ)
        return holder or holders.byte_holder_of(file, ((GATE, GATE),), exclusive_only=True)

    return find


def _find_byte(file: bytes, access: Access) -> Find:
    return lambda: holders.byte_holder_of(file, ((WHOLE, WHOLE),), exclusive_only=access is READ)


class _Watch:
    """Tells who is waited for: at once, and again from a thread of its own whenever that has changed."""

    def __init__(self, path: str, find: Find, waiting: Waiting) -> None:
        self._path, self._find, self._waiting = path, find, waiting
        self._told: Holder | None = None
        self._over = threading.Event()
        self._telling = threading.Lock()

    def __enter__(self) -> None:
        self._told = self._find()
        self._waiting(self._path, self._told)
        threading.Thread(target=self._look, name="holder", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        # Not joined: a look at all processes takes its time, and it may delay neither the work nor an abort.
        with self._telling:
            self._over.set()

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            holder = self._find()
            with self._telling:
                if self._over.is_set() or holder == self._told:
                    continue
                self._told = holder
                self._waiting(self._path, holder)
