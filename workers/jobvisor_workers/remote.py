"""Volumes that only libvirtd gets at: on another host, or where the user may not look.

Their bytes come and go through libvirt's streams. It is the worker that moves them, so that such a job is suspended,
limited and aborted like any other: libvirtd waits for it, and a client without an event loop is not dropped for that.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from mmap import mmap
from typing import TYPE_CHECKING, Any, Final

from jobvisor_workers import delegated
from jobvisor_workers.data.copy import STEP
from jobvisor_workers.errors import BadArgument, JobError, NoSpace
from jobvisor_workers.resources import pools, uri

if TYPE_CHECKING:
    import libvirt

    from jobvisor_workers.jobtype import JobType
    from jobvisor_workers.worker import Volume, Worker

#: Bytes of one message, as libvirtd itself sends them; four times as many were sent half as fast.
MESSAGE: Final = 256 << 10
#: Bytes that are gathered of what libvirtd sends.
PIECE: Final = 1 << 20
#: Seconds in which a request to end arrives, which also ended the program that carries the connection (ssh).
PENDING: Final = 0.2
NO_SPACE_WORDS: Final = "No space left on device"
_ZEROS: Final = bytes(MESSAGE)


class RemoteVolume:
    """One that exists. `size`: bytes of the file or device itself; `capacity`: what a guest sees."""

    def __init__(self, worker: Worker, resource: str, doing: str) -> None:
        """`doing` begins the error messages. Raises JobError."""
        assert worker.pools is not None
        self.path, self.doing = resource, doing
        self._pools = worker.pools
        module = pools.load()
        self.handle: libvirt.virStorageVol = self._pools.volume(uri.parse(resource))
        kind, self.capacity, self.size = self.ask(lambda: self.handle.infoFlags(module.VIR_STORAGE_VOL_GET_PHYSICAL))
        self.allocation: int = self.ask(self.handle.info)[2]
        self.kind = "block" if kind == module.VIR_STORAGE_VOL_BLOCK else "file"
        self.xml: str = self.ask(lambda: self.handle.XMLDesc(0))
        described = ElementTree.fromstring(self.xml)
        form = described.find("target/format")
        self.format = "raw" if form is None or self.kind == "block" else form.get("type", "raw")
        #: Permission bits.
        self.mode = int(described.findtext("target/permissions/mode") or "0600", 8) & 0o777

    @property
    def has_holes(self) -> bool:
        """Then a wipe by libvirtd cuts the file off and makes it as long again (observed with 9.0)."""
        return self.kind == "file" and self.allocation < self.size

    def ask(self, question: Callable[[], Any]) -> Any:
        """What a call of libvirt's answers. Raises JobError."""
        try:
            return question()
        except pools.load().libvirtError as error:
            if error.get_error_domain() == pools.load().VIR_FROM_RPC:
                time.sleep(PENDING)
            found = self._pools.problem(error, self.doing)
            raise NoSpace(str(found)) if NO_SPACE_WORDS in str(found) else found

    def delegate(self, worker: Worker, question: Callable[[], Any], done: str) -> None:
        """Let libvirtd do something with it, and wait until it has. `done`: such as "wiped". Raises JobError."""
        self.ask(lambda: delegated.call(worker, question, f"{self.path} is {done}"))

    @contextmanager
    def reading(self, start: int, length: int) -> Iterator[StreamSource]:
        """A part of its bytes. What ends the with block early ends the stream."""
        module = pools.load()

        def begin(stream: libvirt.virStream) -> None:
            self.handle.download(stream, start, length, module.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)

        with self._stream(begin) as stream:
            yield StreamSource(self, stream, length)

    @contextmanager
    def writing(self, start: int, *, new: bool = False) -> Iterator[StreamSink]:
        """In place. `new`: all of it reads as zeros yet, so that holes need not be written.

        In others a hole that libvirtd is sent leaves what was there (observed with 9.0), and cuts off what follows.
        """
        module = pools.load()
        flags = module.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM if new else 0
        with self._stream(lambda stream: self.handle.upload(stream, start, 0, flags)) as stream:
            yield StreamSink(self, stream, start, fills_holes=not new)

    @contextmanager
    def _stream(self, begin: Callable[[Any], Any]) -> Iterator[libvirt.virStream]:
        stream = self._pools.connection.newStream(0)
        self.ask(lambda: begin(stream))
        try:
            yield stream
        except BaseException:
            try:
                stream.abort()
            except pools.load().libvirtError:  # it has ended, or the connection has
                pass
            raise


class StreamSource:
    """What libvirtd reads for us; see transfer.Source."""

    def __init__(self, volume: RemoteVolume, stream: libvirt.virStream, length: int) -> None:
        self._volume, self._stream = volume, stream
        self._left, self._hole = length, 0

    def take(self, buffer: mmap) -> tuple[int, bool] | None:
        if not self._left:
            self._end()
            return None
        count = 0 if self._hole else self._receive(memoryview(buffer))
        is_data = count > 0
        if not is_data:
            count = min(self._hole, self._left, STEP)
            self._hole -= count
        self._left -= count
        return count, is_data

    def _receive(self, view: memoryview) -> int:
        """A piece: libvirtd sends them cut in odd ways. Less, or 0, before a hole."""
        count, most = 0, min(PIECE, self._left)
        while count < most:
            piece = self._next(most - count)
            if piece is None:
                break
            if not piece:
                raise JobError(f"cannot {self._volume.doing}: {self._volume.path} became shorter meanwhile")
            view[count : count + len(piece)] = piece
            count += len(piece)
        return count

    def _next(self, most: int) -> bytes | None:
        """None at a hole, whose length is known then; nothing at the end."""
        flags = pools.load().VIR_STREAM_RECV_STOP_AT_HOLE
        piece: bytes | int = self._volume.ask(lambda: self._stream.recvFlags(most, flags))
        if isinstance(piece, bytes):
            return piece
        self._hole = self._volume.ask(self._stream.recvHole)
        return None

    def _end(self) -> None:
        while self._next(PIECE) != b"":
            pass
        self._volume.ask(self._stream.finish)


class StreamSink:
    """What libvirtd writes for us; see transfer.Sink."""

    def __init__(self, volume: RemoteVolume, stream: libvirt.virStream, at: int, *, fills_holes: bool) -> None:
        self._volume, self._stream = volume, stream
        self.fills_holes = fills_holes
        #: Beyond this byte nothing was touched, whatever happens.
        self.at = at

    def write(self, buffer: mmap, length: int) -> None:
        self.at += length
        self._send(memoryview(buffer)[:length])

    def hole(self, length: int) -> None:
        self.at += length
        if not self.fills_holes:
            self._volume.ask(lambda: self._stream.sendHole(length, 0))
            return
        for start in range(0, length, MESSAGE):
            self._send(memoryview(_ZEROS)[: length - start])

    def finish(self) -> None:
        """Only now it is known whether all went well."""
        self._volume.ask(self._stream.finish)

    def _send(self, rest: memoryview) -> None:
        while rest:
            rest = rest[self._volume.ask(partial(self._stream.send, bytes(rest[:MESSAGE]))) :]


def volume_of(worker: Worker, resource: str, doing: str) -> Volume | RemoteVolume:
    """The locked file or device of this path; or what has no path here. Raises JobError."""
    return RemoteVolume(worker, resource, doing) if uri.is_name(resource) else worker.volume(resource)


def concerns(worker: Worker, job: JobType) -> bool:
    """Whether one of a job's volumes has no path here, and will get none from its pool's driver."""
    return any(
        resource.kind == "volume"
        and uri.is_name(getattr(job, field) or "")
        and not (resource.new and worker.pools and worker.pools.is_driven(uri.parse(getattr(job, field))))
        for field, resource in job.resources().items()
    )


def refuse(doing: str, **given: object) -> None:
    """Raises BadArgument when an option has a value that only means something where the file itself is at hand."""
    for option, value in given.items():
        if value:
            name = f"--{option.replace('_', '-')}"
            raise BadArgument(f"cannot {doing} with {name}: libvirtd does the work, and has no such option")
