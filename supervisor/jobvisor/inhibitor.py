"""While jobs have processes the machine does not go to sleep by itself, and who shuts it down is told of them.

systemd-inhibit holds logind's lock as long as the program lives that it runs: one that waits for the end of a pipe of
ours. So the lock falls with this process, however that ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable

from jobvisor.core import Core
from jobvisor.errors import Unreachable

SYSTEM_BUS = "/run/dbus/system_bus_socket"
#: Seconds that the lock outlasts the last process, since one job often follows another.
LINGER = 1.0
#: Seconds until a lock that names another number of jobs is replaced, and until what was refused is asked for again.
RENEW = 10.0
REFUSED = 60.0
#: Seconds between two looks at least.
GATHER = 0.1
#: A bus that does not answer must not keep the daemon from leaving, seconds.
STOPS = 2.0
HELD = b"held\n"


class Refused(Exception):
    """With the words of systemd-inhibit."""


class Lock:
    """One inhibitor lock of logind."""

    def __init__(self, jobs: int, mode: str) -> None:
        """Raises Refused, OSError."""
        self.jobs, self.since = jobs, time.monotonic()
        why = "1 job is running" if jobs == 1 else f"{jobs} jobs are running"
        self._process = subprocess.Popen(
            [
                *("systemd-inhibit", "--what=sleep:shutdown", f"--mode={mode}", "--who=jobvisor", f"--why={why}"),
                *("sh", "-c", "echo held; exec cat"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,  # ^C on a daemon in the foreground is not meant for it
        )
        assert self._process.stdout
        said = b""
        for line in self._process.stdout:
            if line == HELD:
                return
            said += line
        self.release()
        raise Refused(said.decode(errors="replace").strip() or "it said nothing")

    @property
    def is_held(self) -> bool:
        """False when somebody killed it."""
        return self._process.poll() is None

    def release(self) -> None:
        """Returns when it is free."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Inhibitor:
    """Works on a thread of its own, since D-Bus may take its time. Its failures disturb no job."""

    def __init__(self, core: Core, note: Callable[[str], None]) -> None:
        """`note`: a line for the log."""
        self._core, self._note = core, note
        self._feed = core.feed()
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._lock: Lock | None = None
        self._idle_since: float | None = None
        self._ask_at = 0.0
        self._thread = threading.Thread(target=self._run, name="jobvisor-inhibitor", daemon=True)

    def start(self) -> None:
        """Without systemd-inhibit and a system bus nothing is done."""
        bus = "DBUS_SYSTEM_BUS_ADDRESS" in os.environ or os.path.exists(SYSTEM_BUS)
        if bus and shutil.which("systemd-inhibit"):
            self._feed.on_news = self._news.set
            self._thread.start()

    def stop(self) -> None:
        """Release the lock; before the supervisor is closed."""
        self._stopping.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(STOPS)
        self._feed.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._news.clear()
                self._news.wait(self._look(self._core.working().result()))
                self._stopping.wait(GATHER)
        except Unreachable:  # the supervisor was closed first
            pass
        finally:
            self._replace(None)

    def _look(self, jobs: int) -> float | None:
        """Do what is due now; returns in how many seconds something else will be."""
        now = time.monotonic()
        if self._lock and not self._lock.is_held:
            self._replace(None)
        if jobs:
            self._idle_since = None
            due = self._ask_at
            if self._lock:
                if self._lock.jobs == jobs:
                    return None
                due = self._lock.since + RENEW
            if now < due:
                return due - now
            self._take(jobs)
            return None if self._lock else REFUSED
        if self._lock is None:
            return None
        self._idle_since = self._idle_since or now
        left = self._idle_since + LINGER - now
        if left > 0:
            return left
        self._replace(None)
        return None

    def _take(self, jobs: int) -> None:
        refused = []
        for mode in ("block", "delay"):  # not everybody may forbid it; a delay still gives jobs some seconds
            try:
                self._replace(Lock(jobs, mode))
                return
            except (Refused, OSError) as error:
                refused.append(f"mode {mode}: {error}")
        if not self._ask_at:
            self._note(f"cannot keep the machine awake while jobs run; {'; '.join(refused)}")
        self._ask_at = time.monotonic() + REFUSED

    def _replace(self, lock: Lock | None) -> None:
        """The new one is held before the old one is released."""
        old, self._lock = self._lock, lock
        if old:
            old.release()
