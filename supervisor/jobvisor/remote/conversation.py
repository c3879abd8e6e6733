"""One request and its answer as bytes; who carries them is nobody's business here.

HTTP/1.1 by hand, as far as one answer per connection needs it: h11 takes a sixth of what a command has to load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobvisor.remote.calls import Call

VERSION = b"jobvisor-version"
#: Bytes of an answer's head, or of the line before a piece of its body.
HEAD_MAX, LINE_MAX = 65536, 4096


class Lost(Exception):
    """The connection ended before the answer did. The request may have been heard."""


class NotUnderstood(Exception):
    """What came is no answer of a jobvisor daemon."""


class Conversation:
    """`asks` is to be sent; what comes is to be fed; `status`, `version` and `take` tell of the answer."""

    def __init__(self, call: Call[Any]) -> None:
        self.status = 0
        self.version = ""
        self.done = False
        self._pieces: list[bytes] = []
        self._buffer = bytearray()
        #: Takes the next part of the answer from the buffer; False when it is not there yet.
        self._part: Callable[[], bool] = self._head
        #: Bytes to come of the body, or of its present chunk; None: all until the connection ends.
        self._left: int | None = 0
        # A connection for each request: it costs 0.4 ms, what was lost was certainly under way, no idle one is found
        # dead, and none keeps a daemon from leaving.
        lines = [f"{call.method} {call.path} HTTP/1.1", "Host: jobvisor", "Connection: close", "Accept: */*"]
        if call.body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(call.body)}"]
        elif call.streams:
            lines += ["Content-Type: application/octet-stream", "Transfer-Encoding: chunked"]
        elif call.method in ("POST", "PUT"):
            lines.append("Content-Length: 0")
        if call.key:
            lines.append(f"Idempotency-Key: {call.key}")
        self.asks = "\r\n".join([*lines, "", ""]).encode() + (call.body or b"")

    def piece(self, data: bytes) -> bytes:
        """To be sent: a piece of a body that streams; no data is its end."""
        return b"%x\r\n%b\r\n" % (len(data), data)

    def feed(self, data: bytes) -> None:
        """Bytes as they come; none at the end of the connection. Raises Lost, NotUnderstood."""
        if not data:
            self._end()
            return
        self._buffer += data
        try:
            while not self.done and self._part():
                pass
        except (ValueError, IndexError):
            raise NotUnderstood(f"what came is no HTTP: {bytes(self._buffer[:60])!r}")

    def take(self) -> bytes:
        """The part of the answer's body that came since."""
        piece = b"".join(self._pieces)
        self._pieces.clear()
        return piece

    def _end(self) -> None:
        if not self.status:
            raise Lost("the daemon hung up without an answer")
        if not self.done and (self._left is not None or self._part != self._content):
            raise Lost("the daemon hung up before its answer was complete")
        self.done = True

    def _head(self) -> bool:
        if not b"HTTP/1.".startswith(self._buffer[:7]):
            raise ValueError
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if len(head) > HEAD_MAX:
            raise ValueError
        if not blank:
            return False
        first, *lines = bytes(head).split(b"\r\n")
        status = _number(first.split(b" ")[1][:3], 10)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._buffer = rest
        if 100 <= status < 200:  # another one follows
            return True
        self.version = headers.get(VERSION, b"").decode()
        self.status = status
        if b"chunked" in headers.get(b"transfer-encoding", b""):
            self._part = self._chunk
        elif status in (204, 304):
            self.done = True
        else:
            length = headers.get(b"content-length")
            self._left = None if length is None else _number(length, 10)
            self._part = self._content
            self.done = self._left == 0
        return True

    def _content(self) -> bool:
        """Of a body without chunks."""
        self._move()
        self.done = self._left == 0
        return False

    def _chunk(self) -> bool:
        """The line before a chunk."""
        line = self._line()
        if line is None:
            return False
        self._left = _number(line.partition(b";")[0].strip(), 16)
        self._part = self._in_chunk if self._left else self._trailer
        return True

    def _in_chunk(self) -> bool:
        self._move()
        if self._left or len(self._buffer) < 2:
            return False
        if self._line() != b"":
            raise ValueError
        self._part = self._chunk
        return True

    def _trailer(self) -> bool:
        """Lines behind the last chunk, up to an empty one."""
        line = self._line()
        self.done = line == b""
        return line is not None

    def _line(self) -> bytes | None:
        line, end, rest = self._buffer.partition(b"\r\n")
        if len(line) > LINE_MAX:
            raise ValueError
        if not end:
            return None
        self._buffer = rest
        return bytes(line)

    def _move(self) -> None:
        """What has come of the body, or of the chunk."""
        size = len(self._buffer) if self._left is None else min(self._left, len(self._buffer))
        if size:
            self._pieces.append(bytes(self._buffer[:size]))
            del self._buffer[:size]
            self._left = None if self._left is None else self._left - size


def _number(text: bytes, base: int) -> int:
    """Digits alone: int() also takes signs, blanks and underscores."""
    if not text.isalnum():
        raise ValueError
    return int(text, base)
