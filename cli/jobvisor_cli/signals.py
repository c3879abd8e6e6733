"""The signals of a command with a job in the foreground: they arrive as numbers, between the events of the job."""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import NoReturn

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
#: What ends a command; those that come at the very last moment still do.
ENDING = (signal.SIGINT, signal.SIGTERM)


class Inbox:
    """Takes the signals from its making to `release`, and wakes the main loop for other threads.

    A signal that was ignored when the command began stays ignored (nohup, a shell's background jobs).
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._nudged = threading.Event()
        self._door = threading.Lock()
        self._released = False
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._taken = [number for number in TAKEN if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._taken:
            signal.signal(number, _noted)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def nudge(self) -> None:
        """From any thread: there is news. At most one byte at a time, so that the pipe keeps room for signals."""
        with self._door:
            if not self._released and not self._nudged.is_set():
                self._nudged.set()
                os.write(self._write, b"\0")

    def wait(self, timeout: float | None, writing: int | None = None) -> list[int]:
        """Signals since the last call; none at news, after `timeout` seconds, or when `writing` can be written."""
        ready, _, _ = select.select([self._read], [] if writing is None else [writing], [], timeout)
        if not ready:
            return []
        content = os.read(self._read, 4096)
        # After the read: cleared before it, a nudge in between would be read away and leave the mark set for ever.
        self._nudged.clear()
        return [number for number in content if number]

    def stop_self(self) -> None:
        """Stop as ^Z would have; returns when the command was continued.

        By SIGTSTP: where no shell does job control the kernel drops it, whereas SIGSTOP would stop it for ever.
        """
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, _noted)

    def release(self) -> int | None:
        """Give the signals back; returns one that came meanwhile and was to end the command."""
        for number in self._taken:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.set_wakeup_fd(self._before)
        late = [number for number in self.wait(0) if number in ENDING]
        with self._door:  # another thread may nudge yet, and a broken pipe would end the command
            self._released = True
            os.close(self._read)
            os.close(self._write)
        return late[0] if late else None


def _noted(*_: object) -> None:
    """The number is in the pipe already."""


def die_of(number: int) -> NoReturn:
    """End by a signal, so that whoever started the command sees it: a shell's loop stops at a ^C."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(signal.Signals(number))
    os._exit(128 + number)  # it is blocked
