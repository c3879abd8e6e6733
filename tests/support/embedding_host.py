"""A large program with threads, signal handlers and children of its own, which embeds two supervisors.

Prints one JSON object: what it saw of itself before and after, and what its jobs told.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from jobvisor import Supervisor

THREADS = 20
TOUCHED = 1 << 30
CHILDREN = 20

reaped: Counter[int] = Counter()
statuses: dict[int, int] = {}
forks: list[int] = []


def reap(_signal: int, _frame: FrameType | None) -> None:
    """As many daemons do it: take whatever has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        reaped[pid] += 1
        statuses[pid] = os.waitstatus_to_exitcode(status)


def facts() -> dict[str, Any]:
    """All of the process that a library could change under its host."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return {
        "dispositions": {int(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "wakeup": wakeup,
        "timers": [
            signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
        ],
        "switch interval": sys.getswitchinterval(),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "limits": [resource.getrlimit(which) for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
        "umask": [line for line in Path("/proc/self/status").read_text().splitlines() if "Umask" in line],
        "session": [os.getsid(0), os.getpgrp()],
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.unraisablehook)],
        "descriptors": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }


def _descriptors() -> list[str]:
    with os.scandir("/proc/self/fd") as entries:
        return [entry.name for entry in entries if not os.readlink(entry.path).endswith("/fd")]


def main(directory: Path) -> None:
    memory = bytearray(TOUCHED)
    memory[::4096] = b"x" * (TOUCHED // 4096)
    over = threading.Event()
    started = threading.Barrier(THREADS + 1)

    def live() -> None:
        started.wait()
        while not over.wait(0.01):
            sum(range(1000))

    threads = [threading.Thread(target=live, name=f"host-{number}") for number in range(THREADS)]
    for thread in threads:
        thread.start()
    started.wait()
    signal.signal(signal.SIGCHLD, reap)
    os.register_at_fork(before=lambda: forks.append(1))
    mine = [open(directory / f"host-file-{number}", "w+") for number in range(5)]  # noqa: SIM115
    for file in mine:
        os.set_inheritable(file.fileno(), True)
    pair = socket.socketpair()
    read, write = os.pipe()
    os.set_inheritable(write, True)
    before = facts()

    with (
        Supervisor(directory / "one", types=["support.embedding_types"]) as one,
        Supervisor(directory / "two", types=["support.embedding_types"]) as two,
    ):
        own: list[int] = []
        jobs = []
        for number in range(CHILDREN):
            jobs += [one.start("look", child=number == 0), two.start("look")]
            own.append(os.posix_spawn("/bin/sh", ["sh", "-c", f"exit {number}"], os.environ))
        infos = [job.wait(60, check=True) for job in jobs]
        lingering = [one.start("linger"), two.start("linger", child=True)]
        ends = []
        for job in lingering:
            job.wait(60, until="running")
            ends.append([job.suspend().state, job.resume().state, job.abort().state])
        captured = subprocess.run(["echo", "of my own"], capture_output=True, text=True, check=False).stdout
        zygotes = len(one._core.zygotes().result()) + len(two._core.zygotes().result())
        tree = subprocess.run(["ps", "-o", "comm=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    after = facts()
    while len(own_statuses := [statuses[pid] for pid in own if pid in statuses]) < CHILDREN:
        signal.sigtimedwait([], 0.01)
    over.set()
    for thread in threads:
        thread.join()
    others = set(reaped) - set(own)
    sys.stdout.write(
        json.dumps(
            {
                "before": before,
                "after": after,
                "results": [info.result for info in infos],
                "ids": [[info.id for info in infos[0::2]], [info.id for info in infos[1::2]]],
                "ends": ends,
                "captured": captured,
                "children": tree.split(),
                "own_statuses": own_statuses,
                "others": len(others),
                "zygotes": zygotes,
                "forks": len(forks),
            }
        )
    )
    for file in mine:
        file.close()
    for end in pair:
        end.close()
    os.close(read)
    os.close(write)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
