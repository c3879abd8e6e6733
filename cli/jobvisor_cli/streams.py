"""Standard output and standard error: results on the one, everything that is said about them on the other."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from typing import Any

#: A pipe that select calls writable takes this much without blocking (PIPE_BUF).
CHUNK = 4096


class CannotWrite(Exception):
    """Standard output does not take the result."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror or error}")


def printable(text: str) -> str:
    """Without control characters: a file's name must not move the cursor, nor make one line two."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def complain(text: str) -> None:
    """The line that says why the exit code is not 0."""
    note(f"error: {text}")


def note(text: str) -> None:
    """A line on stderr; when nobody can read it any more, the job matters more than the line."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()
    except OSError:
        pass


def result(text: str) -> None:
    """Lines on stdout. Raises CannotWrite; a reader that left ends the command by SIGPIPE, as it ends any other."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise CannotWrite(error)


def raw(content: bytes) -> None:
    """Bytes on stdout as they are. Raises CannotWrite."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise CannotWrite(error)


def json_line(content: dict[str, Any]) -> None:
    """One object on a line of its own. Raises CannotWrite."""
    import msgspec

    result(msgspec.json.encode(content).decode() + "\n")


def flush() -> None:
    """Before leaving, while an error can still be told. Raises CannotWrite."""
    result("")


class Events:
    """JSON lines on stdout for a reader that may be slow or gone; neither delays the job or a signal."""

    def __init__(self) -> None:
        self._fd = sys.stdout.fileno() if sys.stdout is not None else -1
        self._pending = bytearray()
        self._error: OSError | None = None

    def put(self, content: dict[str, Any]) -> None:
        """Queue an object as one line, and write what can be written now."""
        import msgspec

        if self._error is None and self._fd >= 0:
            self._pending += msgspec.json.encode(content) + b"\n"
            self.pump()

    @property
    def waiting(self) -> bool:
        """True while the reader is behind."""
        return bool(self._pending)

    def fileno(self) -> int:
        return self._fd

    def pump(self) -> None:
        """Write as much as does not block."""
        while self._pending and select.select([], [self._fd], [], 0)[1]:
            self._write()

    def finish(self) -> None:
        """Write the rest, however long that takes; a reader that left, now or before, ends the command.

        Raises CannotWrite.
        """
        while self._pending:
            self._write()
        if self._error and self._error.errno == errno.EPIPE:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.raise_signal(signal.SIGPIPE)
        if self._error:
            raise CannotWrite(self._error)

    def _write(self) -> None:
        try:
            written = os.write(self._fd, self._pending[:CHUNK])
        except OSError as error:
            self._error = error
            self._pending.clear()
        else:
            del self._pending[:written]
