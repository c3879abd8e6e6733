"""Daemons with a configuration of their own, started as a command would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from jobvisor import autostart
from jobvisor.places import socket_of

PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from jobvisor.daemon import main; main()"


def run_daemon(home: Path, **config: object) -> bytes:
    """Returns what the daemon said when it was ready; its log is beside the home."""
    read, write = os.pipe()
    content = json.dumps({"home": str(home), "ready": write, **config})
    with open(home.parent / "daemon.log", "ab") as log:
        command = [sys.executable, "-I", "-c", PROGRAM, content, *sys.path]
        subprocess.run(command, pass_fds=[write], stdout=log, stderr=log, check=True)
    os.close(write)
    with open(read, "rb") as pipe:
        return pipe.read()


def pid_of(home: Path) -> int | None:
    """The daemon that serves a home."""
    connection = autostart.try_connect(socket_of(str(home)))
    if connection is None:
        return None
    with connection:
        return autostart.pid_of(connection)


def is_gone(pid: int) -> bool:
    """True when it runs no more; who was its parent may not have seen to it yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True
