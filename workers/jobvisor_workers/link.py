"""The zygote's end of the supervisor's socket: packets with descriptors, and never a wait."""

from __future__ import annotations

import array
import os
import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable

PACKET_MAX = 1 << 17

Ancillary = list[tuple[int, int, bytes]]


class Link:
    """One supervisor at a time. A newer connection means that the older one is dead: only one holds the home."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listener: socket.socket,
        *,
        connected: Callable[[], None],
        received: Callable[[bytes, int | None], bool],
        lost: Callable[[], None],
    ) -> None:
        """`received(packet, descriptor)` owns the descriptor, and answers whether to go on reading."""
        self._selector, self._listener = selector, listener
        self._connected, self._received, self._lost = connected, received, lost
        self._peer: socket.socket | None = None
        self._outbox: deque[tuple[bytes, int | None]] = deque()
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self.accept)

    @property
    def up(self) -> bool:
        return self._peer is not None

    def peer_pid(self) -> int:
        """The process that connected."""
        assert self._peer is not None
        pid: int = struct.unpack("3i", self._peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid

    def accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._drop()
        connection.setblocking(False)
        self._peer = connection
        self._selector.register(connection, selectors.EVENT_READ, self._ready)
        self._connected()

    def say(self, packet: bytes, descriptor: int | None = None) -> None:
        """Queue a packet: a stopped host must not freeze grace periods (278 unread packets fill the socket).

        The descriptor is copied: by the time the packet leaves, its number may mean another file.
        """
        if self._peer:
            self._outbox.append((packet, None if descriptor is None else os.dup(descriptor)))
            self._flush()

    def close_in_child(self) -> None:
        """In a fresh worker: nothing of this may be closed later by its number."""
        self._listener.close()
        if self._peer:
            self._peer.close()

    def _ready(self) -> None:
        self._flush()
        while self._peer:
            try:
                packet, ancillary, _, _ = self._peer.recvmsg(PACKET_MAX, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionError:
                packet, ancillary = b"", []
            if not packet:
                self._drop()
                self._lost()
                return
            if not self._received(packet, descriptor_in(ancillary)):
                return

    def _flush(self) -> None:
        while self._peer and self._outbox:
            packet, descriptor = self._outbox[0]
            try:
                self._peer.sendmsg([packet], [] if descriptor is None else [rights(descriptor)])
            except BlockingIOError:
                self._selector.modify(self._peer, selectors.EVENT_READ | selectors.EVENT_WRITE, self._ready)
                return
            except OSError:  # the peer is gone; the next read says so
                self._empty()
                return
            self._outbox.popleft()
            if descriptor is not None:
                os.close(descriptor)
        if self._peer:
            self._selector.modify(self._peer, selectors.EVENT_READ, self._ready)

    def _drop(self) -> None:
        if self._peer:
            self._selector.unregister(self._peer)
            self._peer.close()
            self._peer = None
            self._empty()

    def _empty(self) -> None:
        for _, descriptor in self._outbox:
            if descriptor is not None:
                os.close(descriptor)
        self._outbox.clear()


def rights(descriptor: int) -> tuple[int, int, bytes]:
    """The ancillary data that hands a descriptor over."""
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))


def descriptor_in(ancillary: Ancillary) -> int | None:
    """The descriptor that came with a packet."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return array.array("i", data[:4])[0]
    return None
