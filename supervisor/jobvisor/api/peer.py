"""One connection: who is at the other end, as the kernel says, and what nobody may do to the server.

Stock uvicorn waits for ever for the rest of a request's head, and answers broken requests with plain text.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import struct
import sys
import time
from collections import Counter
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from jobvisor.api import problems
from jobvisor_workers.protocol import Requester

#: Connections that one user may have open.
CONNECTIONS_MAX = 512
#: Seconds in which the head of a request must have come, from its first byte or the connection's opening.
HEAD_TIME = 5.0
#: Bytes of a request's head: its line and its headers.
HEAD_MAX = 16384
#: SO_PEERGROUPS of <asm-generic/socket.h>: the peer's supplementary groups when it connected.
PEERGROUPS = 59


class Clients:
    """The open connections."""

    def __init__(self) -> None:
        self._of: Counter[int] = Counter()
        self.last_left = time.monotonic()

    def enter(self, uid: int) -> bool:
        """False when that user has too many; `leave` is to be called all the same."""
        self._of[uid] += 1
        return self._of[uid] <= CONNECTIONS_MAX

    def leave(self, uid: int) -> None:
        self._of[uid] -= 1
        if not self._of[uid]:
            del self._of[uid]
        self.last_left = time.monotonic()

    @property
    def count(self) -> int:
        return self._of.total()


def requester_of(connection: socket.socket) -> Requester:
    """Who connected. Not their names: a look-up may be slow."""
    _, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        content = connection.getsockopt(socket.SOL_SOCKET, PEERGROUPS, 1024)
        groups = list(struct.unpack(f"{len(content) // 4}I", content))
    except OSError:  # an old kernel, or more than 256 groups
        groups = _groups_by_name(uid, gid)
    return Requester(uid=uid, gid=gid, groups=groups, user="", home="")


def _groups_by_name(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return []


class Peer(H11Protocol):
    """A connection of the API's server; the application finds `requester` in the request's state."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        clients: Clients,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._clients = clients
        self._uid = -1
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        requester = requester_of(transport.get_extra_info("socket"))
        self._uid = requester.uid
        self.app_state = {**self.app_state, "requester": requester}
        if self._clients.enter(requester.uid):
            self._late = self.loop.call_later(HEAD_TIME, transport.abort)
        else:
            self._say(503, "too-many-connections", f"you have {CONNECTIONS_MAX} open connections; close some")

    def data_received(self, data: bytes) -> None:
        self._begin_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._in_time()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:  # of a request that was sent before the answer to the one before
            self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self._clients.leave(self._uid)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """The request is no HTTP. Called while h11's error is handled, which knows more than `msg`."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._say(status, "bad-request", f"this is no HTTP request: {error or msg}")

    def _begin_head(self) -> None:
        if self._late is None and self.conn.their_state is h11.IDLE:
            self._late = self.loop.call_later(HEAD_TIME, self.transport.abort)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _say(self, status: int, code: str, detail: str) -> None:
        response = problems.answer(status, code, detail)
        headers = [*response.raw_headers, (b"connection", b"close")]
        try:
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer is on its way already
            pass
        self.transport.close()
