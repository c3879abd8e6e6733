"""nbd.py: a disk that is written once, from its first byte to its last."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from jobvisor_workers import nbd


class Client:
    """Speaks as qemu-img does; `got` is what the other end consumed, `error` how it ended."""

    def __init__(self, size: int) -> None:
        self.socket, theirs = socket.socketpair()
        self.got = bytearray()
        self.error: BaseException | None = None

        def serve() -> None:
            with theirs:
                try:
                    nbd.Sink(theirs, size, self.got.extend).serve()
                except (nbd.Disorder, EOFError) as error:
                    self.error = error

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        assert self.receive(18)[:16] == struct.pack(">QQ", nbd.MAGIC, nbd.OPTION_MAGIC)
        self.socket.sendall(struct.pack(">I", 3))
        structured_replies = 8
        assert self.option(structured_replies) == [nbd.REPLY_UNSUPPORTED]
        assert self.option(nbd.OPTION_GO, bytes(6)) == [nbd.REPLY_INFO, nbd.REPLY_INFO, nbd.REPLY_ACK]

    def receive(self, length: int) -> bytes:
        return self.socket.recv(length, socket.MSG_WAITALL)

    def option(self, option: int, data: bytes = b"") -> list[int]:
        self.socket.sendall(struct.pack(">QII", nbd.OPTION_MAGIC, option, len(data)) + data)
        kinds: list[int] = []
        while not kinds or kinds[-1] == nbd.REPLY_INFO:
            magic, about, kind, length = struct.unpack(">QIII", self.receive(20))
            assert (magic, about) == (nbd.REPLY_MAGIC, option)
            self.receive(length)
            kinds.append(kind)
        return kinds

    def request(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"") -> int:
        """The error number of the answer."""
        cookie = offset + 1
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length) + data)
        magic, error, answered = struct.unpack(">IIQ", self.receive(16))
        assert (magic, answered) == (nbd.ANSWER_MAGIC, cookie)
        return int(error)

    def leave(self, *, properly: bool = True) -> BaseException | None:
        if properly:
            self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, nbd.DISCONNECT, 0, 0, 0))
        self.socket.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.error


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client(10_000)
    yield client
    client.leave(properly=False)


def test_what_is_left_out_is_zeroes(client: Client) -> None:
    assert client.request(nbd.WRITE, 100, 3, b"abc") == 0
    assert client.request(nbd.WRITE_ZEROES, 200, 50) == 0
    assert client.request(nbd.WRITE, 9000, 2, b"yz") == 0
    assert client.request(nbd.FLUSH) == 0
    assert client.leave() is None
    assert client.got == (bytes(100) + b"abc").ljust(9000, b"\0") + b"yz".ljust(1000, b"\0")


def test_an_unknown_request_is_refused_and_changes_nothing(client: Client) -> None:
    read = 0
    assert client.request(read, 0, 512) == nbd.INVALID
    assert client.leave() is None
    assert client.got == bytes(10_000)


def test_writes_out_of_order_or_beyond_the_end_are_an_error(client: Client) -> None:
    assert client.request(nbd.WRITE, 100, 3, b"abc") == 0
    client.request(nbd.WRITE, 50, 3, b"abc")
    client.thread.join(10)
    assert isinstance(client.error, nbd.Disorder)
    other = Client(10_000)
    other.request(nbd.WRITE, 9_999, 2, b"yz")
    assert isinstance(other.leave(), nbd.Disorder)


def test_a_client_that_dies_is_an_error(client: Client) -> None:
    client.request(nbd.WRITE, 0, 3, b"abc")
    assert isinstance(client.leave(properly=False), EOFError)
