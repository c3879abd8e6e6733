"""The installed command, run as a user runs it: in processes of its own, with a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobvisor import autostart
from jobvisor.places import socket_of
from support import scratch_types
from support.lock_scenes import wait_until

PROGRAM = Path(sys.executable).with_name("jobvisor")


#: Names of processes that outlive a job, and leave when they are idle or told.
STAYING = ("jobvisor-daemon", "jobvisor-zygote")


#: For tests of `run` that mean something with the daemon and without, and for those of one way alone.
both_ways = pytest.mark.parametrize("cli", ["daemon", "no-daemon"], indirect=True)
with_daemon = pytest.mark.parametrize("cli", ["daemon"], indirect=True)
without_daemon = pytest.mark.parametrize("cli", ["no-daemon"], indirect=True)


def hear_hangups() -> None:
    """The tests may have been started with nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Cli:
    """`jobvisor` with the scratch job types, in a directory with one volume, `img`.

    `daemon`: whether `run` goes through the daemon, as it does by default, or is given --no-daemon.
    """

    program = str(PROGRAM)

    def __init__(self, directory: Path, *, daemon: bool = True) -> None:
        self.daemon = daemon
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

    @property
    def flag(self) -> str:
        """What a shell's line needs behind the job type."""
        return "" if self.daemon else " --no-daemon"

    def argv(self, *words: str) -> list[str]:
        """The command line, with --no-daemon where it belongs."""
        if words[:1] == ("run",) and not self.daemon and "--help" not in words and len(words) > 1:
            words = (*words[:2], "--no-daemon", *words[2:])
        return [self.program, *words]

    def run(self, *argv: str, seconds: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        """To its end, with stdout and stderr apart."""
        return subprocess.run(
            self.argv(*argv),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
            cwd=self.directory, env={**self.env, **env},
        )  # fmt: skip

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """In a process group of its own, as a shell would."""
        return subprocess.Popen(
            self.argv(*argv),
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
        """All processes of this home but zombies, the user's shell, and the daemon with its zygote: pid → name."""
        return {pid: name for pid, name in self.everything().items() if name not in STAYING or not self.daemon}

    def everything(self) -> dict[int, str]:
        """The daemon and its zygote too."""
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

    def daemon_pid(self) -> int:
        """0 when there is none."""
        return next((pid for pid, name in self.everything().items() if name == "jobvisor-daemon"), 0)

    def worker(self) -> int:
        """The worker's pid."""
        return next(pid for pid, name in self.processes().items() if name == "job:1")

    def state(self, pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]

    def homes(self) -> list[str]:
        private = self.home / "private"
        return os.listdir(private) if private.exists() else []

    def stop_daemon(self) -> None:
        """Its jobs go on; its zygote ends with the last of them."""
        autostart.stop(socket_of(str(self.home)))

    def nothing_left(self) -> None:
        """Once the daemon has been told to leave."""
        self.stop_daemon()
        wait_until(lambda: not self.everything(), f"the processes are gone ({self.everything()})")
        wait_until(lambda: not self.homes(), f"the private homes are gone ({self.homes()})")
