"""What a supervisor may leave behind: processes, locks, descriptors, temporary files; as the kernel's tables show them.

Nothing here opens or locks a file that a job may use, so that looking is harmless at any time.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jobvisor_workers.control import MARK
from jobvisor_workers.holders import WORKER_NAME
from jobvisor_workers.protocol import Temporary
from jobvisor_workers.settle import claim_of, read_life

TEMPORARY = ".jobvisor-"
#: What a daemon calls itself, as `ps` shows it.
DAEMON_NAME = "jobvisor-daemon"
_LOCK = re.compile(r"\d+: (?:-> )?(\S+) +\S+ +(\S+) +(-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ")


@dataclass(frozen=True)
class Process:
    """A process that belongs to a home. `kind`: worker, child, zygote or daemon."""

    pid: int
    kind: str
    command: str
    state: str

    def __str__(self) -> str:
        return f"{self.kind} pid {self.pid} ({self.command}), state {self.state}"


@dataclass(frozen=True)
class Lock:
    """A line of /proc/locks: flock, POSIX or OFD; the last has no pid."""

    kind: str
    mode: str
    pid: int
    device: tuple[int, int]
    inode: int

    def __str__(self) -> str:
        who = f"pid {self.pid} ({_comm(self.pid) or 'gone'})" if self.pid > 0 else "some open descriptor"
        return f"{self.kind} {self.mode} lock of {who}"


def processes_of(home: str | os.PathLike[str]) -> list[Process]:
    """The live processes of a home: its daemon, zygotes, workers, and whatever the workers started.

    A zombie counts while its parent may still reap it; not when that is init, which keeps some for long.
    """
    run = str(_directory(home) / "run")
    jobs = os.fsencode(_directory(home) / "jobs") + b"/"
    workers = _workers_of(home)
    found = []
    for pid in _pids():
        stat = _stat(pid)
        if stat is None or pid == os.getpid():
            continue
        state, parent, session = stat
        if state in "ZX" and parent == 1:
            continue
        name, argv = _comm(pid), _words(f"/proc/{pid}/cmdline")
        own_program = b"jobvisor_workers.program" in b" ".join(argv[:4]) and _is_of(argv, run)
        marked = any(word.startswith(os.fsencode(MARK) + b"=" + jobs) for word in _words(f"/proc/{pid}/environ"))
        # A session keeps its number as long as it has members; one whose leader is no worker of ours is another's.
        same_session = session in workers and (_comm(session) or WORKER_NAME).startswith(WORKER_NAME)
        if name == DAEMON_NAME and _has_open(pid, _directory(home)):
            found.append(Process(pid, "daemon", name, state))
        elif own_program or marked or same_session:
            kind = "worker" if name.startswith(WORKER_NAME) else "zygote" if own_program and not marked else "child"
            command = name if own_program else b" ".join(argv).decode(errors="replace")[:80].strip() or name
            found.append(Process(pid, kind, command, state))
    return found


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") == str(path) for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def locks_below(directory: str | os.PathLike[str], pids: Container[int] = ()) -> dict[Lock, str]:
    """The locks on files below a directory, with their paths; and those that were taken by one of `pids`, wherever."""
    paths = {}
    device = _mounted_device(os.fspath(directory))
    for path in _below(directory):
        facts = os.lstat(path)
        for each in (device, (os.major(facts.st_dev), os.minor(facts.st_dev))):
            paths[each, facts.st_ino] = path
    found = {}
    with open("/proc/locks") as file:
        for line in file:
            match = _LOCK.match(line)
            if match:
                kind, mode, pid, major, minor, inode = match.groups()
                lock = Lock(kind, mode, int(pid), (int(major, 16), int(minor, 16)), int(inode))
                where = paths.get((lock.device, lock.inode))
                if where or lock.pid in pids:
                    found[lock] = where or f"inode {major}:{minor}:{inode}"
    return found


def temporaries(home: str | os.PathLike[str], directory: str | os.PathLike[str]) -> list[str]:
    """The temporary files of outputs: below a directory, and those that the home's workers wrote down."""
    found = {path for path in _below(directory) if os.path.basename(path).startswith(TEMPORARY)}
    for job in _jobs(home):
        for line in read_life(job):
            if isinstance(line, Temporary):
                found.add(os.path.join(line.directory, line.name))
    return sorted(path for path in found if os.path.lexists(path))


def descriptors() -> dict[int, str]:
    """The open descriptors of this process: number → what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that the listing itself used
            pass
    return found


@dataclass
class Before:
    """What was there before a supervisor, and does not count afterwards."""

    home: Path
    directory: Path
    descriptors: dict[int, str] = field(default_factory=descriptors)
    locks: dict[Lock, str] = field(init=False)

    def __post_init__(self) -> None:
        self.locks = locks_below(self.directory)

    def transient(self) -> list[str]:
        """Processes and locks that are there now; they may need a moment to go."""
        left = [str(process) for process in processes_of(self.home)]
        locks = locks_below(self.directory, _workers_of(self.home))
        return left + [f"{lock} on {path}" for lock, path in locks.items() if lock not in self.locks]

    def lasting(self) -> list[str]:
        """Descriptors and temporary files."""
        now = descriptors()
        left = [f"descriptor {fd} ({what})" for fd, what in now.items() if self.descriptors.get(fd) != what]
        return left + [f"temporary file {path}" for path in temporaries(self.home, self.directory)]


def kill_processes_of(home: str | os.PathLike[str]) -> None:
    """SIGKILL for all that is left of a home."""
    for process in processes_of(home):
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        # The pid alone, which the pidfd now pins: the state may be another one at each look.
        if process.pid in {each.pid for each in processes_of(home)}:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def parent_of(pid: int) -> int:
    """Raises ProcessLookupError."""
    stat = _stat(pid)
    if stat is None:
        raise ProcessLookupError(pid)
    return stat[1]


def _workers_of(home: str | os.PathLike[str]) -> list[int]:
    """The pids that ever claimed a job here."""
    claims = (claim_of(read_life(job)) for job in _jobs(home))
    return [claim.pid for claim in claims if claim]


def _jobs(home: str | os.PathLike[str]) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(_directory(home) / "jobs")]
    except FileNotFoundError:
        return []


def _directory(home: str | os.PathLike[str]) -> Path:
    return Path(home).absolute()


def _is_of(argv: list[bytes], run: str) -> bool:
    """True when the zygote's configuration, which its workers show too, names the run directory."""
    import msgspec

    from jobvisor_workers.zygote import Config

    for word in argv:
        if word.startswith(b"{"):
            try:
                return msgspec.json.decode(word, type=Config).run == run
            except msgspec.DecodeError:
                return False
    return False


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent, session."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b") ")[2].split()
    except OSError:
        return None
    return words[0].decode(), int(words[1]), int(words[3])


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _words(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _below(directory: str | os.PathLike[str]) -> Iterator[str]:
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            if os.path.lexists(path):
                yield path


def _mounted_device(path: str) -> tuple[int, int]:
    """The device by which /proc/locks knows the files here; stat(2) tells another one on btrfs."""
    best, device = "", (0, 0)
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo") as file:
        for line in file:
            words = line.split()
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
            if len(point) >= len(best) and (real + "/").startswith(point.rstrip("/") + "/"):
                major, minor = words[2].split(":")
                best, device = point, (int(major), int(minor))
    return device
