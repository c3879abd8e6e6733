"""Suspend, resume and abort of one job's processes, and the proof that they worked.

Used by the zygote, which is told of stops by waitid, and by the supervisor for workers whose zygote died.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Literal

from jobvisor_workers.settle import is_delegated

#: Set in a worker's environment, and so in that of every program it runs: the id, for people, and the job's directory,
#: which no other job of any home has. By it a process is known as part of the job, wherever it went.
MARK_ID, MARK = "JOBVISOR_JOB", "JOBVISOR_JOB_DIRECTORY"
#: Seconds between two looks at a group that has not stopped yet: first, and at most.
LOOK, LOOK_MAX = 0.0005, 0.02
#: How often a suspended group of several processes is checked for one that an outsider continued, and whether
#: delegated work is done that keeps a job from being killed, seconds.
RECHECK = 0.25
STOPPED = frozenset("TtZX")
#: Where the kernel holds a parent until the child that it vforked has called exec, by kernel version (/proc/PID/wchan).
VFORKING = {"kernel_clone", "_do_fork", "do_fork", "wait_for_vfork_done"}


def children_of(pid: int) -> list[int]:
    """The direct children of all threads of a process."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:
        found += children_of(each)
    return found


def is_marked(pid: int, directory: str) -> bool:
    """True when a process was started by the job that has this directory."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={directory}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def belongs(pid: int, leader: int, directory: str) -> bool:
    """True when a process is of the job: by group, by session (while the leader's pid is pinned), or by its mark."""
    try:
        return os.getpgid(pid) == leader or os.getsid(pid) == leader or is_marked(pid, directory)
    except OSError:
        return False


def states(pid: int) -> list[str]:
    """The state letter of every thread: /proc/PID/stat alone shows the leader only, and qemu-img is threaded."""
    found = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
                found.append(file.read().rpartition(b") ")[2][:1].decode())
    except OSError:
        pass
    return found


def is_stopped(pid: int) -> bool:
    """True when no thread of the process can run before a CONT.

    A parent that waits in vfork for a stopped child is in D, not T, for as long as that lasts (a shell in the job's
    group, caught between vfork and exec): it counts, since it cannot run before the child does.
    """
    letters = set(states(pid)) - STOPPED
    return not letters or (letters == {"D"} and _vforking(pid) and any(map(is_stopped, children_of(pid))))


def _vforking(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/wchan") as file:
            return file.read() in VFORKING
    except OSError:
        return False


class Control:
    """The processes of one job: the worker leads a session and group of its own."""

    def __init__(
        self, job: int, leader: int, directory: str, say: Callable[[Literal["stopped", "continued"], bool], None]
    ) -> None:
        """`directory`: the job's. `say(what, outsider)` is called when a stop is proven, or a continuation seen."""
        self.job, self.leader = job, leader
        self._directory = directory
        self.asked: Literal["abort", "time-limit"] | None = None
        self.killed = False
        self.stopped = False
        self.outsider = False
        self._say = say
        self._stop_wanted = False
        self._resume_asked = False
        self._look_after = LOOK
        self._next_look: float | None = None
        self._kill_at: float | None = None
        self._grace = 0.0
        self._outlasts = False

    # --- verbs -----------------------------------------------------------------------------------------------

    def suspend(self) -> None:
        self._begin_stop(outsider=False)

    def resume(self) -> None:
        self._stop_wanted = False
        self._resume_asked = True
        self._next_look = None
        self.signal(signal.SIGCONT)

    def abort(self, grace: float, *, force: bool = False, why: Literal["abort", "time-limit"] = "abort") -> None:
        """TERM and CONT now, KILL after `grace` seconds; force: KILL now.

        While another program does the work (delegated) its end is waited for, however long that takes. TERM then is for
        the worker alone, which would not hear of that end if what carries its connection (ssh) were ended too.
        """
        self.asked = self.asked or why
        self._stop_wanted = False
        self._next_look = None
        if force:
            self._kill()
            return
        if is_delegated(self._directory):
            self.signal_leader(signal.SIGTERM)
        else:
            self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if self._kill_at is None:
            self._grace = grace
            self._kill_at = time.monotonic() + grace

    def signal(self, number: int) -> None:
        """To the whole group, and to descendants that left it."""
        try:
            os.killpg(self.leader, number)
        except ProcessLookupError:  # forked, but not yet past setsid
            self.signal_leader(number)
        for pid in descendants(self.leader)[1:]:
            try:
                if os.getpgid(pid) != self.leader:
                    os.kill(pid, number)
            except ProcessLookupError:
                pass

    def signal_leader(self, number: int) -> None:
        """To the worker alone."""
        try:
            os.kill(self.leader, number)
        except ProcessLookupError:
            pass

    # --- what was seen ---------------------------------------------------------------------------------------

    def leader_stopped(self) -> None:
        """The worker is in T; when nobody here asked for that, the stop is completed to the whole group."""
        if not self._stop_wanted and not self.asked:
            self._begin_stop(outsider=True)

    def leader_continued(self) -> None:
        """The worker goes on; somebody else's CONT is completed to the whole group."""
        outsider = not self._resume_asked and not self.asked
        if outsider:
            self._stop_wanted = False
            self._next_look = None
            self.signal(signal.SIGCONT)
        self._resume_asked = False
        if self.stopped:
            self.stopped = False
            self._say("continued", outsider)

    def tick(self, now: float) -> float | None:
        """Do what is due; returns when to be called next (monotonic seconds), None for never."""
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_in_time(now)
        if self._next_look is not None and now >= self._next_look:
            self._look(now)
        due = [at for at in (self._kill_at, self._next_look) if at is not None]
        return min(due, default=None)

    # --- inside ----------------------------------------------------------------------------------------------

    def _begin_stop(self, *, outsider: bool) -> None:
        self._stop_wanted, self._resume_asked, self.outsider = True, False, outsider
        self._look_after = LOOK
        self._next_look = time.monotonic()
        self.signal(signal.SIGSTOP)

    def _look(self, now: float) -> None:
        members = [*descendants(self.leader), *(pid for pid in children_of(os.getpid()) if self._adopted(pid))]
        if all(map(is_stopped, members)):
            self._next_look = now + RECHECK if len(members) > 1 else None
            if not self.stopped:
                self.stopped = True
                self._say("stopped", self.outsider)
        elif self.stopped:  # an outsider continued a child alone
            self._stop_wanted = False
            self._next_look = None
            self.signal(signal.SIGCONT)
        else:
            self._look_after = min(self._look_after * 2, LOOK_MAX)
            self._next_look = now + self._look_after

    def _adopted(self, pid: int) -> bool:
        try:
            return pid != self.leader and os.getpgid(pid) == self.leader
        except ProcessLookupError:
            return False

    def _kill_in_time(self, now: float) -> None:
        """The grace period is over; of delegated work it begins when that is done."""
        if is_delegated(self._directory):
            self._outlasts = True
            self._kill_at = now + RECHECK
        elif self._outlasts:
            self._outlasts = False
            self._kill_at = now + self._grace
        else:
            self._kill()

    def _kill(self) -> None:
        self._kill_at = None
        self.killed = True
        self.signal(signal.SIGKILL)
