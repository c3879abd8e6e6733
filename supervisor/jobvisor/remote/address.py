"""Where a daemon listens, and how it is reached."""

from __future__ import annotations

import os
import socket

from jobvisor import autostart
from jobvisor.errors import Unreachable
from jobvisor.places import SYSTEM_HOME, default_home, socket_of


class Address:
    """A socket that was named, or the one of a home, whose daemon is started when none runs."""

    def __init__(self, named: str | os.PathLike[str] | None, home: str | os.PathLike[str] | None) -> None:
        if named is None and home is None:
            named = os.environ.get("JOBVISOR_SOCKET") or None
        self.home = os.path.abspath(home if home is not None else default_home())
        self.path = os.path.abspath(named) if named is not None else socket_of(self.home)
        #: The system's daemon is root's to start.
        self.starts = named is None and (self.path != socket_of(SYSTEM_HOME) or os.geteuid() == 0)

    def connect(self) -> socket.socket:
        """Blocks while a daemon is being started.

        Raises Unreachable, NotPermitted; HomeUnusable and HomeInUse when none can be started.
        """
        if self.starts:
            return autostart.connect(self.home, self.path)
        connection = autostart.try_connect(self.path)
        if connection is None:
            why = "the one that made the socket is gone" if os.path.exists(self.path) else "there is no such socket"
            raise Unreachable(f"no daemon listens on {self.path}: {why}; start one with `jobvisor daemon`")
        return connection
