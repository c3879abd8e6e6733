"""The receiving end of an NBD connection: what a program writes to a disk arrives here as a stream.

The one way to get what a guest sees out of qemu-img without a file and without a name: it refuses pipes, but takes the
number of a connected socket. It writes in order, one request at a time (unless told -W), and leaves zeroes out. Fixed
newstyle handshake and the plain requests of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final

MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
REPLY_MAGIC: Final = 0x3E889045565A9
ANSWER_MAGIC: Final = 0x67446698

FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPTION_GO: Final = 7
REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED = 1, 3, 0x80000001
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
HAS_FLAGS, SEND_FLUSH, SEND_WRITE_ZEROES = 1 << 0, 1 << 2, 1 << 6
WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 1, 2, 3, 6
INVALID: Final = 22

#: The longest write that is announced, bytes; qemu-img itself writes 2 MiB at a time.
WRITE_MAX = 4 << 20
HOLE = memoryview(bytes(1 << 20))


class Disorder(Exception):
    """The client broke the protocol, or does not write in order."""


class Sink:
    """A disk of `size` bytes that is written once, from its first byte to its last.

    consume: called with each piece in order, holes as zeroes; it may sleep, and the client then waits.
    """

    def __init__(self, connection: socket.socket, size: int, consume: Callable[[memoryview], object]) -> None:
        self._connection, self._size, self._consume = connection, size, consume
        self._position = 0
        self._buffer = memoryview(bytearray(WRITE_MAX))

    def serve(self) -> None:
        """Until the client leaves. Raises Disorder, EOFError when it leaves without a word, OSError."""
        self._agree()
        while True:
            _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._receive(28))
            if kind == DISCONNECT:
                break
            piece = self._receive(length) if kind == WRITE else None
            known = kind in (WRITE, WRITE_ZEROES, FLUSH)
            # Answered before it is consumed, so that the client reads on meanwhile.
            self._connection.sendall(struct.pack(">IIQ", ANSWER_MAGIC, 0 if known else INVALID, cookie))
            if kind in (WRITE, WRITE_ZEROES):
                self._zeroes_up_to(offset)
                if piece is None:
                    self._zeroes_up_to(offset + length)
                else:
                    self._consume(piece)
                    self._position += length
        self._zeroes_up_to(self._size)

    def _agree(self) -> None:
        send = self._connection.sendall
        send(struct.pack(">QQH", MAGIC, OPTION_MAGIC, FIXED_NEWSTYLE | NO_ZEROES))
        self._receive(4)
        while True:
            _, option, length = struct.unpack(">QII", self._receive(16))
            self._receive(length)

            def reply(kind: int, data: bytes = b"", option: int = option) -> None:
                send(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)

            if option != OPTION_GO:
                reply(REPLY_UNSUPPORTED)
                continue
            reply(REPLY_INFO, struct.pack(">HQH", INFO_EXPORT, self._size, HAS_FLAGS | SEND_FLUSH | SEND_WRITE_ZEROES))
            reply(REPLY_INFO, struct.pack(">HIII", INFO_BLOCK_SIZE, 1, 4096, WRITE_MAX))
            reply(REPLY_ACK)
            return

    def _receive(self, length: int) -> memoryview:
        if length > WRITE_MAX:
            raise Disorder(f"a message of {length} bytes")
        wanted = rest = self._buffer[:length]
        while rest:
            got = self._connection.recv_into(rest)
            if not got:
                raise EOFError("the client left")
            rest = rest[got:]
        return wanted

    def _zeroes_up_to(self, offset: int) -> None:
        if offset < self._position or offset > self._size:
            raise Disorder(f"byte {offset} after byte {self._position} of {self._size}")
        while (length := min(offset - self._position, len(HOLE))) > 0:
            self._consume(HOLE[:length])
            self._position += length
