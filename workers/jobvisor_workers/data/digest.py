"""Digests of files and block devices."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from jobvisor_workers.data import libc
from jobvisor_workers.data.cache import Reading
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.errors import JobError

if TYPE_CHECKING:
    from hashlib import _Hash

#: Those that every Python has and whose length is fixed; the default first.
Algorithm = Literal[
    "sha256", "sha512", "blake2b", "sha384", "sha224", "sha1", "md5", "sha3_256", "sha3_384", "sha3_512", "sha3_224",
    "blake2s",
]  # fmt: skip

STEP: Final = 4 << 20
#: Bytes per read: they stay in the processor's cache until they are digested.
PIECE: Final = 1 << 20


def new(algorithm: str) -> _Hash:
    """An empty digest; md5 and sha1 too where the system's policy forbids them for security."""
    return hashlib.new(algorithm, usedforsecurity=False)


def digest(fd: int, size: int, algorithm: str, *, advance: Callable[[int], None]) -> str:
    """The digest of the first `size` bytes, in hexadecimal. Holes are not read: zeros are digested in their place.

    `advance` is told the bytes done, `size` in all. Raises OSError; JobError when the file became shorter.
    """
    state = new(algorithm)
    view, zeros = memoryview(bytearray(PIECE)), memoryview(bytes(PIECE))
    reading = Reading(fd, size)
    position = 0

    def hole(end: int) -> None:
        nonlocal position
        while position < end:
            length = min(PIECE, end - position)
            state.update(zeros[:length])
            position += length
            advance(length)

    for offset, length in reading.steps(data_extents(fd, 0, size), STEP):
        hole(offset)
        while position < offset + length:
            count = os.preadv(fd, [view[: offset + length - position]], position)
            if not count:
                raise _shrunk(fd)
            state.update(view[:count])
            position += count
            advance(count)
        reading.done(offset, length)
    if libc.size_of(fd) < size:
        raise _shrunk(fd)
    hole(size)
    return state.hexdigest()


def _shrunk(fd: int) -> JobError:
    name = libc.name_of(fd)
    return JobError(f"cannot digest {name}: it became shorter meanwhile; start again when nothing writes to it")
