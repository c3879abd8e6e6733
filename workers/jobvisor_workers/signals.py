"""A worker's signals: who asked it to end, and how the request reaches the main thread.

TERM, INT and HUP are blocked in every thread; one daemon thread takes them with sigwaitinfo, which alone tells the
sender. It then raises SystemExit in the main thread by a real-time signal, and again at jittered intervals until the
top of the program is reached: Python swallows exceptions raised in __del__ and weakref callbacks. A single shot ended
16 of 40 loops that lived in __del__, jittered repetition 40 of 40; a fixed period ran in step with the loop and failed.
"""

from __future__ import annotations

import _thread
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from jobvisor_workers.protocol import Sender

TERMINATING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
#: Blocked by the zygote around the fork, and in the worker for life.
TAKEN = TERMINATING | {signal.SIGUSR1, signal.SIGUSR2}
INTERRUPT = signal.SIGRTMIN
#: By the interpreter itself, so that a write fails with an exception.
PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}
REPEAT = (0.013, 0.047)
#: How often a report that met a full pipe is tried again, in seconds.
RETRY_REPORT = 0.1


class Terminated(SystemExit):
    """Somebody asked this worker to end."""


class Signals:
    """Takes the worker's signals from `start` on.

    on_report: SIGUSR1 came, or a blocked report is to be tried again; true while it stays blocked.
    on_complete: SIGUSR2, the end of a two-phase job.
    """

    def __init__(self, on_report: Callable[[], bool], on_complete: Callable[[], None]) -> None:
        self.sender: Sender | None = None
        self._on_report, self._on_complete = on_report, on_complete
        self._main = threading.get_ident()
        self._deferred = False
        self._top = threading.Event()
        self._taker = 0

    def start(self) -> None:
        signal.signal(INTERRUPT, self._raise)
        # Not threading.Thread: its start() waits until the new thread runs, a tenth of what a job's start costs.
        self._taker = _thread.start_new_thread(self._take, ())

    def defer(self) -> None:
        """From here on no request to end is raised: the job is being committed."""
        self._deferred = True

    @contextmanager
    def held_back(self) -> Iterator[Callable[[], bool]]:
        """A request to end is raised when the with block is left; what it yields tells whether there is one."""
        self._deferred = True
        try:
            yield lambda: self.sender is not None
        finally:
            self._deferred = False
            if self.sender is not None:
                self._raise(0, None)

    def at_top(self) -> None:
        """The main thread has left the job; exit handlers are not to be disturbed."""
        self._deferred = True
        self._top.set()

    def retry_report(self) -> None:
        """Wake the thread so that it tries a blocked report again."""
        signal.pthread_kill(self._taker, signal.SIGUSR1)

    def _raise(self, _signum: int, _frame: FrameType | None) -> None:
        if not self._deferred:
            raise Terminated(128 + (self.sender.signal if self.sender else signal.SIGTERM))

    def _take(self) -> None:
        again = False
        while True:
            got = signal.sigtimedwait(TAKEN, RETRY_REPORT) if again else signal.sigwaitinfo(TAKEN)
            number = got.si_signo if got else signal.SIGUSR1
            if number == signal.SIGUSR1:
                again = self._on_report()
            elif number == signal.SIGUSR2:
                self._on_complete()
            elif self.sender is None:
                assert got is not None
                self.sender = Sender(number, got.si_pid, got.si_uid, command_line(got.si_pid))
                threading.Thread(target=self._interrupt, name="interrupt", daemon=True).start()

    def _interrupt(self) -> None:
        while not self._top.is_set():
            signal.pthread_kill(self._main, INTERRUPT)
            self._top.wait(random.uniform(*REPEAT))


def command_line(pid: int) -> str:
    """The command of a process on one line, arguments joined; empty when it is gone or not ours to see."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        return ""
    return " ".join(words)[:200]


def forget_hosts() -> None:
    """An exec inherits what the host blocks (as daemons with sigwait do) and ignores: neither is meant for the jobs."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    for number in signal.valid_signals() - PYTHON_IGNORES:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def block() -> None:
    """Block what a worker takes; to be undone in the zygote by `unblock`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)


def unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TAKEN)


def fresh_child() -> None:
    """Between fork and exec of a child: an empty signal mask, SIGPIPE as the shell has it.

    The mask is inherited by exec: without this a group TERM would not reach qemu-img.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def group_stop() -> None:
    """Stop this worker and its children together."""
    os.killpg(0, signal.SIGSTOP)
