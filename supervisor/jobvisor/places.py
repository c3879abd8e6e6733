"""Where homes and sockets are. Imports next to nothing: the command line asks it first of all."""

from __future__ import annotations

import os

from jobvisor.errors import HomeUnusable

#: Root's home, and the socket of the system daemon: outside of it, so that a group may reach the one but not the other.
SYSTEM_HOME = "/var/lib/jobvisor"
SYSTEM_SOCKET = "/run/jobvisor/api.sock"


def default_home() -> str:
    """JOBVISOR_HOME, else that of the system daemon for root, and of the user for others."""
    return os.environ.get("JOBVISOR_HOME") or (SYSTEM_HOME if os.geteuid() == 0 else user_home())


def user_home() -> str:
    """$XDG_STATE_HOME/jobvisor (XDG Base Directory Specification 0.8)."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "jobvisor")


def socket_of(home: str) -> str:
    """Where the daemon of a home listens."""
    if os.path.realpath(home) == SYSTEM_HOME:
        return SYSTEM_SOCKET
    return os.path.join(home, "run", "api.sock")


def check_owner(home: str) -> None:
    """Before anything is made in it. Raises HomeUnusable, OSError."""
    owner = os.stat(home).st_uid
    if owner != os.geteuid():
        raise HomeUnusable(home, f"it belongs to uid {owner}; name another one with --home")
