"""Overwriting a file or block device in place, and giving its blocks back."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from jobvisor_workers.data import libc
from jobvisor_workers.data.cow import cow_reason
from jobvisor_workers.data.direct import BLOCK, huge_buffer
from jobvisor_workers.data.passes import Pass
from jobvisor_workers.data.second import SecondThread
from jobvisor_workers.data.window import Window
from jobvisor_workers.errors import InputOutput, JobError

if TYPE_CHECKING:
    from jobvisor_workers.keeping import Keeping

__all__ = ["cow_reason", "new_seed", "run_pass", "trim"]

#: Bytes per write: whole huge pages, and a multiple of every pattern's length, so that each step begins a pattern anew.
STEP: Final = 3 * (2 << 20)
#: Buffers of random bytes ahead of the writing.
BUFFERS: Final = 3
DISCARD_STEP: Final = 256 << 20
NOT_DISCARDED: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL}


def run_pass(
    fd: int,
    size: int,
    step: Pass,
    *,
    advance: Callable[[int], None],
    ranges: Sequence[tuple[int, int]] | None = None,
    seed: bytes | None = None,
    keeping: Keeping | None = None,
    part: int = 0,
) -> None:
    """Write `size` bytes in place, or read them back and compare; durable on return.

    `fd` is open for reading and writing. Direct I/O where the filesystem has it: it is faster, and a verification
    reads the device and not the memory. `advance` is told the bytes done. Raises OSError; InputOutput where a
    verification finds something else; JobError for a file that became shorter.

    `ranges`: offset and length of what alone is meant. `seed`: new_seed() of a random pass, for a verification of it.
    `keeping` is told up to which byte pass number `part` is finished: for one range to the end.
    """
    meant = [(0, size)] if ranges is None else ranges
    count = sum(-(-length // STEP) for _, length in meant)
    with _content(step, count, seed or new_seed()) as (take, give):
        steps = _steps(meant) if keeping is None else _noting(_steps(meant), keeping, part)
        (_verify if step.kind == "verify" else _write)(fd, steps, take, give, advance)
    if keeping:
        keeping.finished(size, part)


def new_seed() -> bytes:
    """What a random pass is made of: a key, and where to begin."""
    return os.urandom(32)


def _steps(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, length in ranges:
        for offset in range(start, start + length, STEP):
            yield offset, min(STEP, start + length - offset)


def _noting(steps: Iterator[tuple[int, int]], keeping: Keeping, part: int) -> Iterator[tuple[int, int]]:
    """Who asks for the next step has done the one before."""
    for offset, length in steps:
        yield offset, length
        if keeping.due():
            keeping.finished(offset + length, part)


def trim(fd: int, size: int, *, advance: Callable[[int], None]) -> None:
    """Give the blocks back to the filesystem or the device, which may keep what is in them; the size stays.

    Raises JobError where that is not supported, OSError otherwise.
    """
    device = libc.is_block_device(fd)
    block = os.fstat(fd).st_blksize
    try:
        for offset in range(0, size, DISCARD_STEP):
            length = min(DISCARD_STEP, size - offset)
            if device:
                libc.ioctl(fd, libc.BLKDISCARD, struct.pack("=QQ", offset, length))
            else:
                # Up to the end of the last block: a part of a block is not given back but zeroed.
                whole = -(-length // block) * block
                libc.fallocate(fd, libc.FALLOC_PUNCH_HOLE | libc.FALLOC_KEEP_SIZE, offset, whole)
            advance(length)
    except OSError as error:
        if error.errno not in NOT_DISCARDED:
            raise
        what = "the device" if device else "its filesystem"
        raise JobError(f"cannot trim {libc.name_of(fd)}: {what} cannot discard blocks; overwrite it instead")
    os.fsync(fd)


def load_cipher() -> None:
    """Import what random passes need."""
    import cryptography.hazmat.primitives.ciphers  # noqa: F401


Take = Callable[[], memoryview]
Give = Callable[[memoryview], None]


@contextmanager
def _content(step: Pass, count: int, seed: bytes) -> Iterator[tuple[Take, Give]]:
    """What each of `count` steps writes or must find: `take` returns a buffer, `give` has it back."""
    if step.pattern:
        buffer = huge_buffer(STEP)
        buffer[:] = step.pattern * (STEP // len(step.pattern))
        patterned = memoryview(buffer)
        yield lambda: patterned, lambda _: None
        return
    # AES in counter mode with a key of its own for each pass: thirty times as fast as the kernel's random bytes.
    # Here, since importing it costs every other job's fork a third more.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES128(seed[:16]), modes.CTR(seed[16:])).encryptor()
    zeros = bytes(STEP)

    def fill(buffer: memoryview) -> memoryview:
        cipher.update_into(zeros, buffer)
        return buffer

    with SecondThread(fill) as generator:
        for _ in range(min(BUFFERS, count)):
            generator.give(memoryview(huge_buffer(STEP)))
        yield generator.take, generator.give


def _write(fd: int, steps: Iterable[tuple[int, int]], take: Take, give: Give, advance: Callable[[int], None]) -> None:
    window = Window(fd)
    with _Direct(fd) as direct:
        for offset, length in steps:
            buffer = take()
            direct.move(lambda part, at: os.pwrite(fd, part, at), buffer[:length], offset)
            if not direct.on:
                window.note(offset, length)
            give(buffer)
            advance(length)
    window.finish()
    os.fsync(fd)


def _verify(fd: int, steps: Iterable[tuple[int, int]], take: Take, give: Give, advance: Callable[[int], None]) -> None:
    os.fsync(fd)
    # For what direct I/O does not reach: the last part of a block, and filesystems without it.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    found = memoryview(huge_buffer(STEP))
    with _Direct(fd) as direct:
        for offset, length in steps:
            expected = take()
            direct.move(lambda part, at: os.preadv(fd, [part], at), found[:length], offset)
            if not libc.same(libc.address(found), libc.address(expected), length):
                at = next(index for index in range(length) if found[index] != expected[index])
                raise InputOutput(
                    f"cannot verify {libc.name_of(fd)}: byte {offset + at} reads back as 0x{found[at]:02x} and not "
                    f"0x{expected[at]:02x}; the device does not keep what is written, destroy it instead"
                )
            give(expected)
            advance(length)


class _Direct:
    """Direct I/O on a descriptor while the context lasts, or until something cannot be moved that way."""

    def __init__(self, fd: int) -> None:
        self._fd, self.on = fd, False
        self._flags = fcntl.fcntl(fd, fcntl.F_GETFL)

    def __enter__(self) -> _Direct:
        # On the descriptor itself: opening it anew may not be permitted to a worker that dropped its rights.
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags | os.O_DIRECT)
            self.on = True
        except OSError:
            self.on = False
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        fcntl.fcntl(self._fd, fcntl.F_SETFL, self._flags)
        self.on = False

    def move(self, one: Callable[[memoryview, int], int], buffer: memoryview, offset: int) -> None:
        """Call `one(part, offset)`, which tells how many bytes it moved, until the whole buffer is moved."""
        while buffer:
            whole = len(buffer) // BLOCK * BLOCK
            if self.on and not whole:
                self._end()
            try:
                count = one(buffer[:whole] if self.on else buffer, offset)
            except OSError as error:
                if not self.on or error.errno != errno.EINVAL:
                    raise
                self._end()
                continue
            if not count:
                raise JobError(f"cannot verify {libc.name_of(self._fd)}: it became shorter meanwhile; start again")
            buffer, offset = buffer[count:], offset + count
