"""A daemon that answers as a test wants: wrongly, by halves, or not at all."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from jobvisor import JobInfo, State


class Unheard:
    """An answer that is given before the request was heard."""

    def __init__(self, answer: Callable[[socket.socket], object]) -> None:
        self.answer = answer


Answer = Callable[[socket.socket], object] | bytes | Unheard


class Asked(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class FakeDaemon:
    """The first connection gets the first answer, the second the second, and so on; what was asked is kept."""

    def __init__(self, path: Path, *answers: Answer) -> None:
        self.path = path
        self.asked: list[Asked] = []
        self._answers = list(answers)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        self._listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._answers.clear()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:  # its last answer was given
            pass
        self._thread.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        serving: list[threading.Thread] = []
        while self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                break
            try:
                answer = self._answers.pop(0)
            except IndexError:  # closed just now
                connection.close()
                break
            serving.append(threading.Thread(target=self._answer, args=(connection, answer)))
            serving[-1].start()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # whoever comes now finds nobody
        except OSError:
            pass
        for thread in serving:
            thread.join()

    def _answer(self, connection: socket.socket, answer: Answer) -> None:
        with connection:
            try:
                if isinstance(answer, Unheard):
                    answer.answer(connection)
                    return
                self.asked.append(_request(connection))
                if callable(answer):
                    answer(connection)
                else:
                    connection.sendall(answer)
            except (BrokenPipeError, ConnectionResetError):  # the client had heard enough
                pass


@contextmanager
def fake_daemon(path: Path, *answers: Answer) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(path, *answers)
    try:
        yield daemon
    finally:
        daemon.close()


def answer(content: Any, status: int = 200, version: str = "0.1.0") -> bytes:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n"
    return (head + (f"Jobvisor-Version: {version}\r\n" if version else "") + "\r\n").encode() + body


def problem(status: int, code: str, detail: str, **fields: Any) -> bytes:
    return answer({"code": code, "detail": detail, "status": status, **fields}, status)


def info(id: int = 7, state: str = "running", **fields: Any) -> dict[str, Any]:
    return JobInfo(id=id, type="nap", state=State(state), created=1.0, **fields).to_dict()


def events(*messages: bytes) -> bytes:
    """A stream that is cut after these."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nJobvisor-Version: 0.1.0\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in messages)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + body


def begin(number: int) -> bytes:
    return b'id: %d\nevent: start\ndata: {"number":%d}\n\n' % (number, number)


def state(number: int, job: dict[str, Any]) -> bytes:
    data = msgspec.json.encode({"time": 1.0, "job": job})
    return b"id: %d\nevent: state\ndata: %b\n\n" % (number, data)


def progress(*jobs: dict[str, Any]) -> bytes:
    return b"event: progress\ndata: %b\n\n" % msgspec.json.encode({"time": 2.0, "jobs": list(jobs)})


BYE = b"event: bye\ndata: {}\n\n"


def _request(connection: socket.socket) -> Asked:
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(65536)
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    if headers.get("transfer-encoding") == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(65536)
        body = b"".join(_chunks(body))
    return Asked(method, path, headers, body)


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while size := int(body[at : (end := body.index(b"\r\n", at))], 16):
        yield body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
