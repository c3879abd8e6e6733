"""A worker whose zygote died: the supervisor watches it by pidfd and signals it itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Literal

from jobvisor.pump import Pump
from jobvisor_workers.control import STOPPED, Control, is_marked, states

#: Seconds between two looks: nobody tells of stops here.
LOOK = 0.05
COLLECT_AGAIN = 0.02


class Orphan:
    """Delivers stopped, continued and ended for one worker, like a zygote."""

    def __init__(
        self,
        pump: Pump,
        job: int,
        pid: int,
        pidfd: int,
        directory: str,
        uid: int | None,
        say: Callable[[Literal["stopped", "continued"], bool], None],
        ended: Callable[[], None],
    ) -> None:
        self.pid = pid
        self.control = Control(job, pid, directory, say)
        self._pump, self._pidfd, self._ended = pump, pidfd, ended
        self._directory, self._uid = directory, uid
        self._alive = True
        pump.watch(pidfd, self._died)
        self._timer = pump.later(0, self._look)

    def look_soon(self) -> None:
        """A verb was used: do not wait for the next look."""
        self._timer.drop()
        self._timer = self._pump.later(0.001, self._look)

    def close(self) -> None:
        if self._alive:
            self._alive = False
            self._timer.drop()
            self._pump.unwatch(self._pidfd)
            os.close(self._pidfd)

    def _look(self) -> None:
        letters = states(self.pid)
        if letters and all(letter in STOPPED for letter in letters):
            self.control.leader_stopped()
        elif self.control.stopped:
            self.control.leader_continued()
        at = self.control.tick(time.monotonic())
        delay = LOOK if at is None else min(LOOK, max(0.0, at - time.monotonic()))
        self._timer = self._pump.later(delay, self._look)

    def _died(self) -> None:
        self.close()
        collect(self._pump, self._directory, self._uid, self._ended)


def collect(pump: Pump, directory: str, uid: int | None, then: Callable[[], None]) -> None:
    """Kill what a dead worker left, and go on when nothing is left."""
    if kill_strays(directory, uid):
        pump.later(COLLECT_AGAIN, lambda: collect(pump, directory, uid, then))
    else:
        then()


def kill_strays(directory: str, uid: int | None = None) -> bool:
    """Kill what a dead worker left, wherever it went. True while something is left.

    It is known by its mark or, where it was forked without exec, by the worker's life file, which it has open. `uid`:
    of whose processes only; anybody can give the mark to a program that becomes another user (sudo).
    """
    life = os.path.join(directory, "life")
    strays = [pid for pid in _processes() if is_marked(pid, directory) or _has_open(pid, life)]
    if uid is not None:
        strays = [pid for pid in strays if _uids(pid) == {uid}]
    for pid in strays:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return any(set(states(pid)) - {"Z", "X"} for pid in strays)


def _processes() -> list[int]:
    """All but this one, which opens life files to try their locks."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _uids(pid: int) -> set[int]:
    """Real, effective and saved: /proc/PID itself is root's where a process may not be traced."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return {int(uid) for line in file if line.startswith("Uid:") for uid in line.split()[1:4]}
    except OSError:
        return set()


def _has_open(pid: int, path: str) -> bool:
    try:
        return any(os.readlink(f"/proc/{pid}/fd/{fd}") == path for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def open_worker(pid: int, still_alive: Callable[[], bool]) -> int | None:
    """A pidfd that is certainly the worker's: after opening it, the life lock must still be held."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if still_alive():
        return pidfd
    os.close(pidfd)
    return None
