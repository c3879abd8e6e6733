"""The map of what a job has finished: jobs/<id>/map, appended to, and believed only as far as it is whole.

A line is the CRC-32 of its JSON in eight digits, the JSON, a newline. Each CRC goes on from that of the line before,
and the first line has random bytes: a line counts only if all before it are there, unchanged and in their order, and
none of another map fits in. A line that is torn or garbled ends the map; what stands before it is true without it.
"""

from __future__ import annotations

import errno
import os
import zlib

import msgspec
from msgspec import Struct

from jobvisor_workers.protocol import encode
from jobvisor_workers.unchanged import Facts

NAME = "map"


class Begun(Struct, tag="begun", tag_field="is", frozen=True):
    """The first line. `partial`: its path; None when the target itself is written."""

    random: str
    sources: list[Facts]
    target: Facts
    partial: str | None


class Taken(Struct, tag="taken", tag_field="is", frozen=True):
    """The worker of this job goes on from here."""

    job: int


class Finished(Struct, tag="finished", tag_field="is", frozen=True):
    """Of pass `part` (from 0) all bytes before `done` are on the disk, and all passes before it.

    `target`: as it was when at least that much was written.
    """

    part: int
    done: int
    target: Facts


class Left(Struct, tag="left", tag_field="is", frozen=True):
    """The worker leaves the target, and this is how it looks."""

    target: Facts


Line = Begun | Taken | Finished | Left
_decode = msgspec.json.Decoder(Line).decode


class Map:
    """What the lines say together."""

    def __init__(self, content: bytes = b"") -> None:
        self.begun: Begun | None = None
        self.taken: Taken | None = None
        self.finished: Finished | None = None
        #: Only if nobody went on afterwards.
        self.left: Left | None = None
        #: How many bytes of it are whole, and the CRC for the next line to go on from.
        self.length = self.crc = 0
        for text in content.split(b"\n")[:-1]:
            crc = zlib.crc32(text[9:], self.crc)
            if text[:9] != b"%08x " % crc:
                break
            try:
                self._add(_decode(text[9:]))
            except msgspec.DecodeError:
                break
            self.length += len(text) + 1
            self.crc = crc

    def _add(self, line: Line) -> None:
        match line:
            case Begun():
                self.begun = line
            case Taken():
                self.taken, self.left = line, None
            case Finished():
                self.finished = line
            case Left():
                self.left = line

    def append(self, fd: int, line: Line) -> None:
        """Write one more line to the file of this map. Raises OSError, and then the file is as it was if it can be."""
        body = encode(line)
        crc = zlib.crc32(body, self.crc)
        text = b"%08x " % crc + body + b"\n"
        try:
            if os.pwrite(fd, text, self.length) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(fd, self.length)
            raise
        self.length, self.crc = self.length + len(text), crc
        self._add(line)

    @property
    def processed(self) -> int:
        """Bytes that are finished, those of earlier passes among them; 0: nothing to go on from."""
        if self.begun is None or self.finished is None:
            return 0
        return self.finished.part * self.finished.target.size + self.finished.done


def read(directory: str) -> Map:
    """The map in a job's directory; an empty one where there is none."""
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            return Map(file.read())
    except FileNotFoundError:
        return Map()
