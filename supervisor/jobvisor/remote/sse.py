"""Server-sent events, as the HTML standard has them, out of bytes that come in pieces of any size."""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """`number`: the id that was said last, so that one can go on from there."""

    event: str
    number: int | None
    data: bytes


class Reader:
    """Feed pieces, get messages."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = ""
        self._number: int | None = None
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[Message]:
        """Raises ValueError when an id is no number."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        found = []
        for line in lines:
            name, _, value = line.removesuffix(b"\r").partition(b":")
            value = value.removeprefix(b" ")
            match name:
                case b"":
                    # An empty line ends a message, one that begins with a colon is a comment.
                    if line.strip() == b"" and (self._event or self._data):
                        found.append(Message(self._event, self._number, b"\n".join(self._data)))
                        self._event, self._data = "", []
                case b"event":
                    self._event = value.decode()
                case b"data":
                    self._data.append(value)
                case b"id":
                    self._number = int(value)
        return found
