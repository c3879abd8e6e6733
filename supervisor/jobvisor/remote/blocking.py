"""The transport for threads: plain sockets, and coroutines that never suspend."""

from __future__ import annotations

import socket
import time
from collections.abc import Coroutine
from typing import IO, Any, TypeVar

from jobvisor.remote.address import Address

T = TypeVar("T")
PIECE = 1 << 18


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run one that awaits only what blocks."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("it waits for an event loop")


class BlockingConnection:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def send(self, data: bytes) -> None:
        self._socket.settimeout(None)
        # No SIGPIPE: a command line lets that end the process, which is meant for its output.
        self._socket.sendall(data, socket.MSG_NOSIGNAL)

    async def receive(self, timeout: float | None) -> bytes:
        self._socket.settimeout(timeout)
        return self._socket.recv(PIECE)

    def interrupt(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended already
            pass

    def close(self) -> None:
        self._socket.close()


class BlockingTransport:
    def __init__(self, address: Address) -> None:
        self._address = address

    async def connect(self) -> BlockingConnection:
        return BlockingConnection(self._address.connect())

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def read(self, file: IO[bytes]) -> bytes:
        return file.read(PIECE)

    async def write(self, file: IO[bytes], piece: bytes) -> None:
        file.write(piece)
