"""A job's standard input and output, for types that read or write a pipe: FIFOs in the job's directory.

They are made when the job is accepted and belong to the requester; the directory does not, so the worker holds on to
them before it becomes that user. Who sends writes the number of bytes to `received` before closing the FIFO: an end
without that number is a sender that died, and never looks like the end of the input.
"""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Callable

from jobvisor_workers.errors import JobError

INPUT, OUTPUT, RECEIVED = "stdin", "stdout", "received"
#: Bytes of one read or write; the size that is asked for of the pipe, for fewer changes between the two processes.
PIECE = 1 << 16
CAPACITY = 1 << 20
#: Seconds without a byte until the job says that it waits.
PATIENCE = 1.0
#: Why it waits when nobody has the other end yet.
NO_SENDER, NO_READER = "its input, which nobody sends yet", "a reader of its output"

Waiting = Callable[[str | None], None]


class Ends:
    """What a worker holds of its FIFOs: names that need no rights on the directory, not open for data yet."""

    def __init__(self, directory: int, *, reads: bool, writes: bool) -> None:
        seen = os.O_PATH | os.O_CLOEXEC
        self.input = os.open(INPUT, seen, dir_fd=directory) if reads else -1
        self.received = os.open(RECEIVED, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory) if reads else -1
        self.output = os.open(OUTPUT, seen, dir_fd=directory) if writes else -1


class _Pipe:
    def __init__(self, end: int, flags: int, event: int, waiting: Waiting, why: tuple[str, str]) -> None:
        """`waiting` is told a reason, and None when the wait is over; `why`: before the first byte, and later."""
        self.count = 0
        self._waiting, self._event, self._why = waiting, event, why[1]
        waiting(why[0])
        self.fd = os.open(f"/proc/self/fd/{end}", flags | os.O_CLOEXEC)  # blocks until the other end is there
        waiting(None)
        self._poll = select.poll()
        self._poll.register(self.fd, event)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _await(self) -> None:
        if not self._poll.poll(PATIENCE * 1000):
            self._waiting(self._why)
            self._poll.poll()
            self._waiting(None)


class Input(_Pipe):
    """What the user sends. `count`: bytes read so far."""

    def __init__(self, ends: Ends, waiting: Waiting, doing: str) -> None:
        why = (NO_SENDER, "its input, of which nothing more comes")
        super().__init__(ends.input, os.O_RDONLY, select.POLLIN, waiting, why)
        self._received, self._doing = ends.received, doing
        enlarge(self.fd)

    def read(self, size: int = PIECE) -> bytes:
        """Some bytes, at most `size`; none at the end of the input. JobError when it was cut off there."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.read_into(memoryview(buffer))])

    def read_into(self, buffer: memoryview) -> int:
        """As `read`, for who has a place for the bytes; returns how many there are."""
        self._await()
        count = os.readv(self.fd, [buffer])
        self.count += count
        if not count:
            self.check(self.count)
        return count

    def check(self, count: int) -> None:
        """For who reads `fd` by other means, at its end after `count` bytes. JobError when there should be more."""
        told = os.pread(self._received, 32, 0)
        if not told.endswith(b"\n") or int(told) != count:
            raise JobError(f"cannot {self._doing}: its input ended after {count} bytes, before its sender was done")


class Output(_Pipe):
    """What the user reads. `count`: bytes written so far."""

    def __init__(self, ends: Ends, waiting: Waiting, doing: str) -> None:
        why = (NO_READER, "its reader, who takes nothing more")
        super().__init__(ends.output, os.O_WRONLY, select.POLLOUT, waiting, why)
        self._doing = doing
        enlarge(self.fd)

    def write(self, content: bytes | memoryview) -> None:
        """All of it. JobError when the reader left."""
        rest = memoryview(content)
        try:
            while rest:
                self._await()
                written = os.write(self.fd, rest[:PIECE])
                self.count += written
                rest = rest[written:]
        except BrokenPipeError:
            raise self.reader_left()

    def reader_left(self) -> JobError:
        """For who writes to `fd` by other means, and meets EPIPE."""
        return JobError(f"cannot {self._doing}: the reader of its output left after {self.count} bytes")


def enlarge(fd: int) -> None:
    """Fewer changes between the two processes at a pipe, if it is one."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CAPACITY)
    except OSError:  # it is none, or the user has too much of that already (fs.pipe-user-pages-soft)
        pass
