"""The locks of a job: on the resource's own inode, by the kernel, all of them before any work.

For each resource, in one order for everybody (sorted by key):

1. flock(2), shared to READ, exclusive to WRITE: job against job and against every script that uses flock(1) (turns).
2. QEMU's bytes (qemu_locks). While a job waits for a VM it holds nothing.
3. To WRITE a block device it is opened O_EXCL; a file that is in use through a loop device is refused. To READ both is
   allowed: what a mounted filesystem is changing meanwhile is the reader's risk.

A lock is not seen through another inode: overlayfs and the file below it, bindfs and its source, two device nodes (for
those O_EXCL speaks), another host unless the filesystem carries locks.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType

from jobvisor_workers import devices, holders, qemu_locks, turns
from jobvisor_workers.errors import BadArgument, Held, JobError, from_os_error
from jobvisor_workers.jobtype import READ, WRITE, Access
from jobvisor_workers.protocol import Holder, OnConflict
from jobvisor_workers.resources.path import Kind, facts, key_of, kind_of, no_such

#: How often a file may be replaced under its name while we wait for it, before we give up.
ROUNDS = 5
#: Seconds between two looks at a VM or mount that is waited for: jittered, from .. to; `to` grows up to the last.
POLL = (0.05, 0.25, 1.0)


class Lock:
    """A resource that is locked and open, from `acquire` until `close`, or until the last heir of its descriptors ends.

    fd: O_RDONLY for READ, O_RDWR for WRITE, close-on-exec. descriptors: what a child must inherit to keep the lock
    alive: fd, and for a block device to be written the exclusive claim. size: bytes, as found once locked.
    """

    def __init__(self, path: str, access: Access, key: str, kind: Kind, descriptors: list[int]) -> None:
        self.path, self.access, self.key, self.kind = path, access, key, kind
        self.fd = descriptors[0]
        self.size = 0
        self._open = descriptors

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(self._open)

    def named(self, path: str) -> Lock:
        """The same lock under the other name by which it was asked for; closing either closes both."""
        lock = Lock(path, self.access, self.key, self.kind, self._open)
        lock.size = self.size
        return lock

    def claim(self) -> None:
        """Open the block device once more, exclusively. Raises OSError: EBUSY when it is in use."""
        self._open.append(os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))

    def close(self) -> None:
        """Release it; the claim before the lock, so that the next in line finds the device free."""
        while self._open:
            os.close(self._open.pop())

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lock {self.access} {self.path}>"


class _Replaced(Exception):
    """The name stands for another file than the one that was locked."""


class _Rules:
    """What to do when somebody is in the way."""

    def __init__(self, on_conflict: OnConflict, waiting: turns.Waiting, doing: str) -> None:
        self.on_conflict, self.waiting, self.doing = on_conflict, waiting, doing
        self.likely: int | None = None

    def outlasts(self, holder: Holder | None) -> bool:
        """True if this holder is waited for by looking again; `queue` waits for jobs and refuses outsiders."""
        ours = holder is not None and holder.kind == "job"
        return self.on_conflict == "wait" or (self.on_conflict == "queue" and ours)


def acquire(
    wanted: Sequence[tuple[str, Access]],
    *,
    on_conflict: OnConflict,
    waiting: turns.Waiting,
    expected: Mapping[str, str] = MappingProxyType({}),
    doing: str = "use",
) -> list[Lock]:
    """Lock all of the resources, or none of them; the result is in the order of `wanted`.

    wanted: absolute paths. The same resource twice is one lock under two names. expected: path → key it must have.
    waiting: called with the path and its holder (None: unknown) when a wait begins and whenever the holder changes,
    then from another thread. doing: the verb of error messages. An exception raised by a signal ends a wait.

    Raises Held when somebody has it and on_conflict does not say to wait, BadArgument when a resource is to be both
    read and written, JobError when it cannot be opened or locked, or is not what it was.
    """
    rules = _Rules(on_conflict, waiting, doing)
    replaced, longest = 0, POLL[1]
    told: tuple[str, Holder | None] | None = None
    while True:
        try:
            return _attempt(wanted, expected, rules)
        except _Replaced as error:
            replaced += 1
            if replaced == ROUNDS:
                raise JobError(f"cannot {doing} {error}: it is not the file you named any more; look, and start again")
        except Held as held:
            if not rules.outlasts(held.holder):
                raise
            if told != (held.resource, held.holder):
                told = (held.resource, held.holder)
                waiting(*told)
            rules.likely = held.holder.pid if held.holder else None
            time.sleep(random.uniform(POLL[0], longest))
            longest = min(longest * 1.5, POLL[2])


def _attempt(wanted: Sequence[tuple[str, Access]], expected: Mapping[str, str], rules: _Rules) -> list[Lock]:
    with ExitStack() as undo:
        locks: dict[str, Lock] = {}
        keys = []
        for path, access in wanted:
            lock = _open(path, access, rules)
            undo.callback(lock.close)
            keys.append(lock.key)
            if expected.get(path, lock.key) != lock.key:
                raise JobError(f"cannot {rules.doing} {path}: it is not the file that was accepted; start again")
            first = locks.setdefault(lock.key, lock)
            if first.access is not access:
                names = path if first.path == path else f"{first.path} and {path}"
                thing = "device" if lock.kind == "block" else "file"
                raise BadArgument(f"cannot {rules.doing} {path}: source and target are the same {thing} ({names})")
            if first is not lock:
                lock.close()
        for key in sorted(locks):
            try:
                _take(locks[key], rules)
            except OSError as error:
                raise from_os_error(error, f"lock {locks[key].path}")
        for lock in locks.values():
            _verify(lock)
            lock.size = facts(lock.fd).size
        result = [locks[key].named(path) for key, (path, _) in zip(keys, wanted, strict=True)]
        undo.pop_all()
        return result


def _open(path: str, access: Access, rules: _Rules) -> Lock:
    """Look before opening: opening a pipe, a tape or a watchdog would already do something."""
    doing = f"open {path} for {'writing' if access is WRITE else 'reading'}"
    try:
        seen = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise no_such(path, error, doing)
    try:
        status = os.fstat(seen)
        key, kind = key_of(status, doing), kind_of(status, doing)
        flags = (os.O_RDWR if access is WRITE else os.O_RDONLY) | os.O_CLOEXEC
        return Lock(path, access, key, kind, [os.open(f"/proc/self/fd/{seen}", flags)])
    except OSError as error:
        if error.errno == errno.EBUSY and kind == "block":
            raise Held(path, devices.user_of(status.st_rdev), rules.doing)
        raise from_os_error(error, doing)
    finally:
        os.close(seen)


def _take(lock: Lock, rules: _Rules) -> None:
    if turns.take(lock.fd, lock.path, lock.access, rules.on_conflict, rules.waiting, rules.doing):
        _verify(lock)
    if not qemu_locks.take(lock.fd, lock.access):
        spans = [(first, first + length - 1) for first, length in qemu_locks.OPPOSED[lock.access]]
        raise Held(lock.path, holders.qemu_holder(lock.fd, spans, likely=rules.likely), rules.doing)
    if lock.access is READ:
        return
    if lock.kind == "block":
        _claim(lock, rules)
    elif user := devices.loop_user(lock.fd):
        raise Held(lock.path, user, rules.doing)


def _claim(lock: Lock, rules: _Rules) -> None:
    """Have a block device for ourselves: the kernel refuses when it is mounted, swap, or under LVM or md."""

    def claimed() -> bool:
        try:
            lock.claim()
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
        return True

    # A job killed a moment ago may have lost its flock but not yet its claim.
    if not qemu_locks.settled(claimed):
        raise Held(lock.path, devices.user_of(os.fstat(lock.fd).st_rdev) or Holder("kernel"), rules.doing)


def _verify(lock: Lock) -> None:
    """While we waited the holder may have put another file under the name; work on the old one would be lost."""
    try:
        there, ours = os.stat(lock.path), os.fstat(lock.fd)
    except FileNotFoundError:
        raise _Replaced(lock.path)
    except OSError as error:
        raise from_os_error(error, f"open {lock.path}")
    if (there.st_dev, there.st_ino, there.st_rdev) != (ours.st_dev, ours.st_ino, ours.st_rdev):
        raise _Replaced(lock.path)
