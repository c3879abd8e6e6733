"""Plain HTTP to a Unix socket, for tests that say what no client of ours would say."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Connection(http.client.HTTPConnection):
    def __init__(self, path: str | os.PathLike[str], timeout: float = 30) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = os.fspath(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


class Http:
    """A connection per request."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def __call__(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """`body`: bytes as they are, all else as JSON."""
        connection = Connection(self.path)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent = {"Content-Type": "application/json", **sent}
        try:
            try:
                connection.request(method, target, body, sent)
            except BrokenPipeError:  # refused before all of it was sent
                pass
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def raw(self, content: bytes, timeout: float = 30) -> bytes:
        """Whatever is answered to these bytes until the server closes."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(self.path)
            try:
                connection.sendall(content)
            except BrokenPipeError:
                pass
            return receive_all(connection)

    @contextmanager
    def events(self, query: str = "", **headers: str) -> Iterator[Iterator[tuple[str, str | None, Any]]]:
        """Server-sent events as (event, id, data)."""
        connection = Connection(self.path)
        try:
            connection.request(
                "GET", f"/v1/events{query}", headers={k.replace("_", "-"): v for k, v in headers.items()}
            )
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield _events(response)
        finally:
            connection.close()


def receive_all(connection: socket.socket) -> bytes:
    content = b""
    try:
        while piece := connection.recv(65536):
            content += piece
    except ConnectionError:
        pass
    return content


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str | None, Any]]:
    fields: dict[str, str] = {}
    for line in response:
        text = line.decode().rstrip("\n")
        if not text:
            if "data" in fields:
                yield fields.get("event", "message"), fields.get("id"), json.loads(fields["data"])
            fields = {}
        elif not text.startswith(":"):
            name, _, value = text.partition(": ")
            fields[name] = value
