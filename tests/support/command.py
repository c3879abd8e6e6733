"""The installed command, run as a user runs it: in processes of its own, with a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from support import scratch_types
from support.lock_scenes import wait_until

PROGRAM = Path(sys.executable).with_name("jobvisor")


def hear_hangups() -> None:
    """The tests may have been started with nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Cli:
    """`jobvisor` with the scratch job types, in a directory with one volume, `img`."""

    program = str(PROGRAM)

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "work"
        self.home = directory / "home"
        self.directory.mkdir()
        (self.directory / "img").write_bytes(os.urandom(3 << 20))
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("COV_", "COLUMNS", "LINES"))},
            "JOBVISOR_HOME": str(self.home),
            "PYTHONPATH": scratch_types.plugin(directory / "plugin"),
            "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
        }

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def run(self, *argv: str, seconds: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        """To its end, with stdout and stderr apart."""
        return subprocess.run(
            [PROGRAM, *argv],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
            cwd=self.directory, env={**self.env, **env},
        )  # fmt: skip

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """In a process group of its own, as a shell would."""
        return subprocess.Popen(
            [PROGRAM, *argv],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self.directory, env=self.env, process_group=0, preexec_fn=hear_hangups,
        )  # fmt: skip

    def ticks(self, name: str = "ticks") -> int:
        """How often the job worked so far."""
        try:
            return os.stat(self.path(name)).st_size
        except FileNotFoundError:
            return 0

    def working(self) -> bool:
        """True once the job moves."""
        before = self.ticks()
        wait_until(lambda: self.ticks() > before, "the job works")
        return True

    def processes(self) -> dict[int, str]:
        """All processes of this home but zombies and the user's shell: pid → name."""
        mark = f"JOBVISOR_HOME={self.home}".encode()
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                environment = Path("/proc", pid, "environ").read_bytes().split(b"\0")
                name = Path("/proc", pid, "comm").read_text().strip()
                if mark in environment and name != "bash":
                    found[int(pid)] = name
            except OSError:
                pass
        return found

    def worker(self) -> int:
        """The worker's pid."""
        return next(pid for pid, name in self.processes().items() if name == "job:1")

    def state(self, pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]

    def homes(self) -> list[str]:
        private = self.home / "private"
        return os.listdir(private) if private.exists() else []

    def nothing_left(self) -> None:
        wait_until(lambda: not self.processes(), f"the processes are gone ({self.processes()})")
        wait_until(lambda: not self.homes(), f"the private homes are gone ({self.homes()})")
