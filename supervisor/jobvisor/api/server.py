"""The API's server: a socket with tight modes from its first instant, and an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import functools
import grp
import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import uvicorn

from jobvisor import __version__
from jobvisor.api.app import application
from jobvisor.api.context import Context
from jobvisor.api.peer import HEAD_MAX, Clients, Peer
from jobvisor.core import Core
from jobvisor.errors import HomeUnusable, UsageError
from jobvisor.places import socket_of

BACKLOG = 1024
#: Seconds that an idle connection is kept for the client's next request.
KEEP_ALIVE = 15
#: Seconds in which a connection that was made is surely accepted by the event loop.
SETTLE = 0.02
#: From accept to connection_made, and from abort to connection_lost, the event loop turns less often than this.
TURNS = 6
#: Seconds that answers on their way get when the server leaves.
FAREWELL = 1


class Server(uvicorn.Server):
    """Without uvicorn's signal handling (the host program has its own), and without its ten wake-ups a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Who was accepted gets a protocol first: asyncio loses a connection that finds its server closed."""
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            loop.remove_reader(listener.fileno())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await super().shutdown(sockets)


class Serving:
    """The API of one supervisor at one socket, from entering the with block to leaving it."""

    def __init__(
        self,
        core: Core,
        path: str | os.PathLike[str] | None = None,
        *,
        group: str | None = None,
        idle: float | None = None,
    ) -> None:
        """`path`: by default run/api.sock in the home; `group`: may connect too; `idle`: told to clients."""
        self.path = Path(path if path is not None else socket_of(str(core.home.path)))
        self.clients = Clients()
        self._core, self._idle = core, idle
        self._gid = None if group is None else _gid(group)
        self._server: Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None
        self._thread = threading.Thread(target=self._run, name="jobvisor-api", daemon=True)
        self._ready: Future[None] = Future()

    def start(self) -> None:
        """Returns when the socket accepts connections. Raises HomeUnusable."""
        self._listener = listen(self.path, self._gid)
        self._inode = os.lstat(self.path).st_ino
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self._listener.close()
            raise

    def stop(self) -> None:
        """Say good-bye to all clients; the supervisor goes on."""
        if self._thread.is_alive():
            assert self._loop
            self._loop.call_soon_threadsafe(self._leave)
            self._thread.join()
        self._unlink()

    def close_if_idle(self) -> bool:
        """Stop listening, unless somebody is there or about to come; no client is turned away by this.

        The name goes first: who connects from then on finds none, and who came before is still accepted.
        """
        assert self._loop
        return asyncio.run_coroutine_threadsafe(self._close_if_idle(), self._loop).result()

    async def _close_if_idle(self) -> bool:
        aside = self.path.with_name(f"{self.path.name}.leaving")
        os.rename(self.path, aside)
        await asyncio.sleep(SETTLE)
        if self.clients.count:
            os.rename(aside, self.path)
            return False
        os.unlink(aside)
        return True

    def __enter__(self) -> Path:
        self.start()
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = Context(self._core, str(self.path), self._idle)
        config = uvicorn.Config(
            application(self._context),
            http=functools.partial(Peer, clients=self.clients),  # type: ignore[arg-type]  # called, never subclassed
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,  # defects are told by the application; a broken-off answer is none
            access_log=False,
            date_header=False,
            server_header=False,
            headers=[("jobvisor-version", __version__)],
            backlog=BACKLOG,
            h11_max_incomplete_event_size=HEAD_MAX,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=FAREWELL,
        )
        self._server = Server(config)
        self._loop.call_soon(self._ready.set_result, None)
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            await self._cut_off(self._server)
            self._context.close()

    async def _cut_off(self, server: Server) -> None:
        """End the connections whose clients do not read."""
        for _ in range(TURNS):
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)

    def _leave(self) -> None:
        assert self._context
        assert self._server
        self._context.leave()
        self._server.stop.set()

    def _unlink(self) -> None:
        """Only the name that is ours: another daemon may have taken the place."""
        try:
            if os.lstat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        except FileNotFoundError:
            pass


def listen(path: Path, gid: int | None) -> socket.socket:
    """A listening socket at a path; what a dead daemon left there is replaced.

    Its name appears when it has its final mode and listens: the mode is set before bind (the inode gets it & ~umask),
    and it is renamed into place. Paths over 107 bytes are reached through a descriptor of the directory.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = -1
    try:
        _make_directory(path.parent, gid)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fchmod(listener.fileno(), 0o600)
        fresh = f"/proc/self/fd/{directory}/{path.name}.new"
        try:
            os.unlink(fresh)
        except FileNotFoundError:
            pass
        listener.bind(fresh)
        if gid is not None:
            os.chown(fresh, -1, gid)
            os.chmod(fresh, 0o660)
        listener.listen(BACKLOG)
        os.rename(fresh, f"/proc/self/fd/{directory}/{path.name}")
    except OSError as error:
        listener.close()
        raise HomeUnusable(str(path.parent), f"cannot make the socket {path.name} there: {error.strerror or error}")
    finally:
        if directory >= 0:
            os.close(directory)
    return listener


def _make_directory(directory: Path, gid: int | None) -> None:
    """The system daemon's directory below /run is gone after each boot."""
    if not directory.exists():
        os.makedirs(directory.parent, exist_ok=True)
        os.mkdir(directory, 0o700)
        if gid is not None:
            os.chown(directory, -1, gid)
            os.chmod(directory, 0o750)


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isdigit():
            return int(group)
        raise UsageError(f"there is no group {group!r}; getent group lists those that there are")
