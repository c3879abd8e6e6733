"""Where a daemon listens, and how it is reached."""

from __future__ import annotations

import errno
import os
import socket

from jobvisor.errors import JobvisorError, NotPermitted, Unreachable
from jobvisor.places import SYSTEM_HOME, default_home, socket_of

#: Bytes of a path that fit into a socket's address.
PATH_MAX = 107


class Address:
    """A socket that was named, or the one of a home, whose daemon is started when none runs."""

    def __init__(self, named: str | os.PathLike[str] | None, home: str | os.PathLike[str] | None) -> None:
        if named is None and home is None:
            named = os.environ.get("JOBVISOR_SOCKET") or None
        self.home = os.path.abspath(home if home is not None else default_home())
        self.path = os.path.abspath(named) if named is not None else socket_of(self.home)
        #: The system's daemon is root's to start.
        self.starts = named is None and (self.home != SYSTEM_HOME or os.geteuid() == 0)

    def connect(self) -> socket.socket:
        """Raises Unreachable, NotPermitted."""
        return self.reach()

    def reach(self, *, blocking: bool = True) -> socket.socket:
        """To the daemon that runs. Raises Unreachable, NotPermitted; BlockingIOError when it hears nobody just now."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(blocking)
            self._connect(connection)
        except BlockingIOError:
            connection.close()
            raise
        except OSError as error:
            connection.close()
            raise self._explained(error)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, connection: socket.socket) -> None:
        if len(os.fsencode(self.path)) <= PATH_MAX:
            connection.connect(self.path)
            return
        directory, name = os.path.split(self.path)
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{descriptor}/{name}")
        finally:
            os.close(descriptor)

    def _explained(self, error: OSError) -> JobvisorError:
        start = "start one with `jobvisor daemon`"
        match error.errno:
            case errno.EACCES | errno.EPERM:
                return NotPermitted(f"not permitted to connect to {self.path}; its owner may add you to its group")
            case errno.ENOENT | errno.ENOTDIR:
                return Unreachable(f"no daemon listens on {self.path}: there is no such socket; {start}")
            case errno.ECONNREFUSED:
                return Unreachable(f"no daemon listens on {self.path}: the one that made the socket is gone; {start}")
        return Unreachable(f"cannot connect to {self.path}: {error.strerror or error}")
