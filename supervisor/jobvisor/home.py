"""A supervisor's directory: where it is, what lies in it, and that only one supervisor has it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from pathlib import Path

from jobvisor.errors import HomeInUse, HomeUnusable
from jobvisor.places import check_owner, default_home
from jobvisor_workers.holders import flock_holder
from jobvisor_workers.signals import command_line

NFS_MAGIC = 0x6969


class Home:
    """The directories of one home, and the lock that makes it ours.

    journal.sqlite · jobs/<id>/{request,life,result,exit,log,map} · run/ (0700: zygote sockets and log)
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Raises HomeUnusable, HomeInUse."""
        # Resolved: job directories mark processes, and must be the same however the home is called.
        self.path = Path(path if path is not None else default_home()).resolve()
        self.jobs = self.path / "jobs"
        self.run = self.path / "run"
        self.journal = self.path / "journal.sqlite"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_owner(str(self.path))
            for directory in (self.jobs, self.run):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HomeUnusable(str(self.path), error.strerror or str(error))
        if _filesystem(self.path) == NFS_MAGIC:
            raise HomeUnusable(
                str(self.path), "it is on NFS, where locks do not tell who lives; name another one with --home"
            )
        self._lock = self._take()

    def job(self, id: int) -> str:
        """The directory of a job."""
        return str(self.jobs / str(id))

    def release(self) -> None:
        if self._lock >= 0:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a process that the host forked has a copy of the descriptor
            os.close(self._lock)
            self._lock = -1

    def _take(self) -> int:
        """Lock the directory itself: a file below it could be removed by somebody who cleans up, and made again."""
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = flock_holder(lock)
            os.close(lock)
            pid = holder.pid if holder and holder.pid else os.getpid()  # the holder is never this process itself
            raise HomeInUse(str(self.path), pid, command_line(pid))
        return lock


def boot_id() -> str:
    """Another one means that the host was started anew."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _filesystem(path: Path) -> int:
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None).statfs(os.fsencode(path), buffer):
        return 0
    return int.from_bytes(buffer.raw[:8], sys.byteorder)
