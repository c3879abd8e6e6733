"""A libvirtd as if it were on another host: its paths mean nothing here. libvirt starts a program to get there."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.libvirtd import Libvirtd


def far(daemon: Libvirtd, directory: Path) -> str:
    """The URI of such a connection; its program is left in `directory`."""
    program = directory / "way"
    program.write_text(f"#!{sys.executable}\nimport runpy, sys\nsys.argv[1:] = [{str(daemon.socket)!r}]\n")
    with open(program, "a") as file:
        file.write(f"runpy.run_path({__file__!r}, run_name='__main__')\n")
    program.chmod(0o755)
    return f"qemu+ext://far.example/system?command={program}"


def relay(path: str) -> None:
    """Standard input and output are the two directions of a connection."""
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(path)

        def send() -> None:
            while piece := os.read(0, 1 << 20):
                there.sendall(piece)
            os._exit(0)

        threading.Thread(target=send, daemon=True).start()
        while piece := there.recv(1 << 20):
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    relay(sys.argv[1])
