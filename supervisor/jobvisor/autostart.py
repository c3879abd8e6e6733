"""A connection to the daemon of a home, which is started in the background when none runs.

Twenty commands that begin at the same time start one daemon: the first holds start.lock, the others find its work done.
Whether a daemon lives is known from the lock on its home alone. Imports next to nothing: every command passes here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time

from jobvisor.errors import HomeInUse, HomeUnusable, NotPermitted, Unreachable
from jobvisor.places import check_owner, socket_of

#: Seconds that a daemon may take to adopt the jobs of the one before, and one to leave.
READY_TIME, LEAVE_TIME = 60.0, 15.0
#: One that ends without a word was killed, and another is started, unless it is so many that end so.
STARTS_MAX = 3
#: The daemon's process is called that (15 bytes at most).
COMM = "jobvisor-daemon"
#: Seconds without job and client after which a daemon that was started here leaves.
IDLE = 30.0
#: The file descriptor on which the daemon says that it is ready, or why not.
READY = 3
#: Bytes of a log from which on a new one is begun.
LOG_MAX = 1 << 20
NOBODY = (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE)
PROGRAM = "import os, sys; os.closerange(4, 4096); sys.path[:] = sys.argv[2:]; from jobvisor.daemon import main; main()"


class _EndedWithoutAWord(Exception):
    """A daemon was started and neither serves nor says why; its text is the path of the log."""


def connect(home: str, path: str | None = None) -> socket.socket:
    """Connected to the daemon of a home. `path`: its socket, where it is not the usual one.

    Raises Unreachable, HomeInUse, HomeUnusable, NotPermitted.
    """
    path = path or socket_of(home)
    found = try_connect(path)
    if found:
        return found
    lock = _lock(home)
    try:
        deadline = time.monotonic() + LEAVE_TIME
        pause = 0.002
        deaths = 0
        while True:
            found = try_connect(path)
            if found:
                return found
            try:
                in_use = _start(home, path)
            except _EndedWithoutAWord as error:
                deaths += 1
                if deaths == STARTS_MAX:
                    raise Unreachable(f"cannot start the daemon: it ended without a word, {deaths} times; see {error}")
                continue
            if in_use and time.monotonic() >= deadline:
                raise Unreachable(f"{in_use} and does not serve {path}: use that program, or another --home")
            if in_use:  # the one before has not left yet
                time.sleep(pause)
                pause = min(0.1, 2 * pause)
    finally:
        os.close(lock)


def try_connect(path: str, timeout: float | None = None) -> socket.socket | None:
    """None when nobody listens there. `timeout`: of this and what is done with the socket, seconds.

    Raises NotPermitted, Unreachable.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    directory = -1
    try:
        if len(os.fsencode(path)) > 107:  # as much as an address holds
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            connection.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        else:
            connection.connect(path)
        return connection
    except OSError as error:
        connection.close()
        if error.errno in NOBODY:
            return None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NotPermitted(f"cannot reach {path}: permission denied; root or the daemon's group may")
        raise Unreachable(f"cannot reach {path}: {error.strerror}")
    finally:
        if directory >= 0:
            os.close(directory)


def stop(path: str, only: int | None = None) -> int | None:
    """End the daemon that listens at a path; its jobs go on. The pid it had, None when there was none.

    `only`: if it has this pid; another one is left alone. Raises NotPermitted, Unreachable.
    """
    connection = try_connect(path)
    if connection is None:
        return None
    with connection:
        pid = pid_of(connection)
    try:
        daemon = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    try:
        if only is not None and pid != only:
            return pid
        if not _is_daemon(pid):
            raise NotPermitted(f"pid {pid}, which serves {path}, is a program with a supervisor of its own, no daemon")
        try:
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
        except PermissionError:
            raise NotPermitted(f"cannot stop daemon {pid}: it is somebody else's")
        if not _readable(daemon, LEAVE_TIME):
            raise Unreachable(f"daemon {pid} does not leave; see its log, or end it with kill -9 {pid}: its jobs go on")
    finally:
        os.close(daemon)
    return pid


def _is_daemon(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip() == COMM
    except FileNotFoundError:  # it has ended
        return True


def pid_of(connection: socket.socket) -> int:
    """The process that listens at the other end."""
    pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def _lock(home: str) -> int:
    """start.lock, taken; the kernel lets go of it when the command ends, however that is."""
    run = os.path.join(home, "run")
    try:
        os.makedirs(home, 0o700, exist_ok=True)
        check_owner(home)
        os.makedirs(run, 0o700, exist_ok=True)
        lock = os.open(os.path.join(run, "start.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise HomeUnusable(home, error.strerror or str(error))
    return lock


def _start(home: str, path: str) -> str | None:
    """Start a daemon and wait until it serves. Returns who has the home, when somebody has.

    Raises Unreachable, _EndedWithoutAWord.
    """
    import json  # loads what a command can do without when a daemon runs

    log = os.path.join(home, "daemon.log")
    _begin_anew(log)
    config = json.dumps({"home": os.path.realpath(home), "socket": path, "idle": IDLE, "ready": READY})
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-c", PROGRAM, config, *sys.path],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, write, READY),
            ],
            setsid=True,
            setsigmask=[],
        )
    except OSError as error:
        os.close(read)
        raise Unreachable(f"cannot start the daemon: {error.strerror}")
    finally:
        os.close(write)
    try:
        os.waitpid(child, 0)  # it forks at once and ends: the daemon is nobody's child
    except ChildProcessError:  # the host program waits for all of its children itself
        pass
    try:
        said = _said(read)
    finally:
        os.close(read)
    if said == b"ready":
        return None
    try:
        problem = json.loads(said)
    except ValueError:
        raise _EndedWithoutAWord(log)
    if problem["code"] == HomeInUse.code:
        return str(problem["message"].partition(";")[0])
    raise Unreachable(f"cannot start the daemon: {problem['message']}")


def _said(pipe: int) -> bytes:
    content = b""
    deadline = time.monotonic() + READY_TIME
    while _readable(pipe, max(0.0, deadline - time.monotonic())):
        piece = os.read(pipe, 4096)
        if not piece:
            return content
        content += piece
        if content == b"ready":
            return content
    raise Unreachable(f"the daemon was started, and is not ready after {READY_TIME:g} s; it may be later")


def _begin_anew(log: str) -> None:
    try:
        if os.path.getsize(log) > LOG_MAX:
            os.rename(log, f"{log}.1")
    except FileNotFoundError:
        pass


def _readable(descriptor: int, seconds: float) -> bool:
    waiting = select.poll()  # not select, whose descriptors end at 1023
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))
