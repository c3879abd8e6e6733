"""The host's end of the zygote's socket."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from jobvisor.pump import Pump
from jobvisor_workers.link import PACKET_MAX, descriptor_in, rights
from jobvisor_workers.protocol import FromZygote, Hello, ToZygote, decode_from_zygote, encode
from jobvisor_workers.zygote import Config

#: Larger packets go by memfd: the socket's buffer limits a packet (EMSGSIZE at some 200 kB).
INLINE_MAX = 60_000
HELLO_TIMEOUT = 5.0
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from jobvisor_workers.program import main; main()"


class Zygote:
    """A connection to one zygote. Packets are taken by `receive`, on the pump."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.socket, self.name = connection, name
        self.hello: Hello | None = None
        self.gone = False
        self._outbox: deque[tuple[bytes, bytes | int | None]] = deque()
        self._pump: Pump | None = None
        self._received: Callable[[Zygote, FromZygote, int | None], None] | None = None
        self._lost: Callable[[Zygote], None] | None = None

    def attach(
        self,
        pump: Pump,
        received: Callable[[Zygote, FromZygote, int | None], None],
        lost: Callable[[Zygote], None],
    ) -> None:
        """Deliver packets on the pump from now on."""
        self._pump, self._received, self._lost = pump, received, lost
        self.socket.setblocking(False)
        pump.watch(self.socket.fileno(), self._ready)
        self._flush()

    @property
    def attached(self) -> bool:
        return self._pump is not None

    def await_hello(self) -> bool:
        """Before `attach`, when an old zygote was found: False when it leaves instead of answering."""
        self.socket.settimeout(HELLO_TIMEOUT)
        try:
            packet = self.socket.recv(PACKET_MAX)
            message = decode_from_zygote(packet) if packet else None
        except OSError:
            return False
        self.hello = message if isinstance(message, Hello) else None
        return self.hello is not None

    def say(self, message: ToZygote, attached: bytes | int | None = None) -> None:
        """Queue a packet; `attached` travels as a memfd, or is a descriptor that is closed here when it was sent."""
        self._outbox.append((encode(message), attached))
        if self._pump:
            self._flush()

    def close(self) -> int | None:
        """Leave; the pid of the zygote where it is known."""
        if not self.gone:
            self.gone = True
            if self._pump:
                self._pump.unwatch(self.socket.fileno())
            try:
                self.socket.shutdown(socket.SHUT_RDWR)  # also for the copies in processes that the host forked
            except OSError:  # the zygote is gone
                pass
            self.socket.close()
            for _, attached in self._outbox:
                if isinstance(attached, int):
                    os.close(attached)
            self._outbox.clear()
        return self.hello.pid if self.hello else None

    def _ready(self) -> None:
        self._flush()
        while not self.gone:
            try:
                packet, ancillary, _, _ = self.socket.recvmsg(PACKET_MAX, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                packet, ancillary = b"", []
            if not packet:
                self._end()
                return
            message = decode_from_zygote(packet)
            if isinstance(message, Hello):
                self.hello = message
            assert self._received is not None
            self._received(self, message, descriptor_in(ancillary))

    def _flush(self) -> None:
        assert self._pump is not None
        while self._outbox and not self.gone:
            packet, attached = self._outbox[0]
            memory = _memory(attached) if isinstance(attached, bytes) else None
            descriptor = attached if isinstance(attached, int) else memory
            try:
                self.socket.sendmsg([packet], [] if descriptor is None else [rights(descriptor)])
            except BlockingIOError:
                self._pump.rewatch(self.socket.fileno(), self._ready, selectors.EVENT_READ | selectors.EVENT_WRITE)
                return
            except OSError:  # gone; the read that follows says so
                return
            finally:
                if memory is not None:
                    os.close(memory)
            self._outbox.popleft()
            if isinstance(attached, int):
                os.close(attached)
        if not self.gone:
            self._pump.rewatch(self.socket.fileno(), self._ready, selectors.EVENT_READ)

    def _end(self) -> None:
        if self.gone:
            return
        assert self._lost is not None
        self.close()
        self._lost(self)


def start(run: str, modules: Sequence[str], *, tied: bool, home: str) -> Zygote:
    """Start a zygote and connect to it. Does not wait: what is said meanwhile lies in the socket.

    The listening socket is made here and handed over, so that there is no moment in which it cannot be reached.
    """
    name = f"zygote-{os.urandom(6).hex()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        os.fchmod(listener.fileno(), 0o600)
        directory = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{name}")
        finally:
            os.close(directory)
        listener.listen(8)
        connection = connect(run, name)
        config = Config(listener.fileno(), run, name, list(sys.path), list(modules), tied, home)
        log = os.open(os.path.join(run, "zygote.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # Forks at once and ends: the zygote is no child of the host, whose waitpid(-1) may take this one too.
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", PROGRAM, msgspec.json.encode(config).decode(), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                cwd="/",
            )
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(log)
    process.wait()
    return Zygote(connection, name)


def connect(run: str, name: str) -> socket.socket:
    """Through a descriptor of the directory, since a socket's path is limited to 107 bytes. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{name}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def find(run: str) -> list[Zygote]:
    """The zygotes that outlived an earlier supervisor; sockets of dead ones are removed."""
    found = []
    for name in os.listdir(run):
        if not (name.startswith("zygote-") and name.endswith(".sock")):
            continue
        try:
            zygote = Zygote(connect(run, name), name)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                os.unlink(os.path.join(run, name))
            continue
        if zygote.await_hello():
            found.append(zygote)
        else:
            zygote.close()
    return found


def _memory(content: bytes) -> int:
    memory = os.memfd_create("request", os.MFD_CLOEXEC)
    os.write(memory, content)
    return memory
