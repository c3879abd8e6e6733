"""Job types for tests of embedding: they tell what they inherited."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from jobvisor_workers import JobType, Worker


class Look(JobType, tag="look"):
    """Tell what this worker has from its parents."""

    child: bool = False

    def run(self, worker: Worker) -> dict[str, Any]:
        status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
        found: dict[str, Any] = {
            "pid": os.getpid(),
            "descriptors": [_target(fd) for fd in os.listdir("/proc/self/fd")],
            "rss_kib": int(status["VmRSS"].split()[0]),
            "ignored": int(status["SigIgn"], 16),
            "blocked": int(status["SigBlk"], 16),
        }
        if self.child:
            done = worker.child(["sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status; ls -l /proc/self/fd"])
            found["child"] = done.stdout.decode()
        return found


class Linger(JobType, tag="linger"):
    """Do nothing until a file is there, or a child until it is killed."""

    until: str = ""
    child: bool = False

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("linger", total=1 << 40)
        if self.child:
            worker.child(["sleep", "3600"])
        while not (self.until and Path(self.until).exists()):
            time.sleep(0.005)
            worker.advance(1)
        return {}


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


def bit(number: int) -> int:
    """A signal in the masks of /proc/PID/status."""
    return 1 << (int(number) - 1)


#: Ignored by every Python program.
PYTHON_IGNORES = bit(signal.SIGPIPE) | bit(signal.SIGXFSZ)
