"""One request and its answer as bytes; who carries them is nobody's business here."""

from __future__ import annotations

from typing import Any

import h11

from jobvisor.remote.calls import Call

VERSION = b"jobvisor-version"


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
        # A connection for each request: it costs 0.4 ms, what was lost was certainly under way, no idle one is found
        # dead, and none keeps a daemon from leaving.
        headers = [("Host", "jobvisor"), ("Connection", "close"), ("Accept", "*/*")]
        if call.body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(call.body)))]
        elif call.streams:
            headers += [("Content-Type", "application/octet-stream"), ("Transfer-Encoding", "chunked")]
        elif call.method in ("POST", "PUT"):
            headers.append(("Content-Length", "0"))
        if call.key:
            headers.append(("Idempotency-Key", call.key))
        self._http = h11.Connection(h11.CLIENT)
        request = h11.Request(method=call.method, target=call.path, headers=headers)
        parts = [self._http.send(request)]
        if call.body:
            parts.append(self._http.send(h11.Data(call.body)))
        if not call.streams:
            parts.append(self._http.send(h11.EndOfMessage()))
        self.asks = b"".join(part for part in parts if part)

    def piece(self, data: bytes) -> bytes:
        """To be sent: a piece of a body that streams; no data is its end."""
        return self._http.send(h11.Data(data) if data else h11.EndOfMessage()) or b""

    def feed(self, data: bytes) -> None:
        """Bytes as they come; none at the end of the connection. Raises Lost, NotUnderstood."""
        try:
            self._http.receive_data(data)
            while not self.done:
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                if isinstance(event, h11.Response):
                    self.status = event.status_code
                    self.version = next((value.decode() for name, value in event.headers if name == VERSION), "")
                elif isinstance(event, h11.Data):
                    self._pieces.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    self.done = True
        except (h11.RemoteProtocolError, UnicodeDecodeError) as error:
            if not data:
                raise Lost("the daemon hung up before its answer was complete")
            raise NotUnderstood(str(error))
        if self.done and not self.status:
            raise Lost("the daemon hung up without an answer")

    def take(self) -> bytes:
        """The part of the answer's body that came since."""
        piece = b"".join(self._pieces)
        self._pieces.clear()
        return piece
