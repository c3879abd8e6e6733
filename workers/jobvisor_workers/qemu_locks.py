"""QEMU's image locks, in its own language, so that a running VM stops a job and a running job stops the VM.

QEMU takes a shared lock on byte 100+n for "I use permission n" and on byte 200+n for "I do not share it", where n is
0 consistent-read, 1 write, 2 write-unchanged, 3 resize. They conflict by agreement, not in the kernel: whoever uses n
must find nobody on 200+n, whoever does not share n nobody on 100+n. `qemu-img info` takes them as well, of all but raw
images, of which it reads nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from jobvisor_workers import ofd
from jobvisor_workers.jobtype import READ, WRITE, Access

Span = tuple[int, int]  # first byte, number of bytes

#: READ uses consistent-read and shares neither write nor resize; WRITE uses those three and shares none of them.
TAKEN: dict[Access, tuple[Span, ...]] = {
    READ: ((100, 1), (201, 1), (203, 1)),
    WRITE: ((100, 2), (103, 1), (200, 2), (203, 1)),
}
#: The bytes on which nobody else may be: the same permissions, on the other side.
OPPOSED: dict[Access, tuple[Span, ...]] = {
    access: tuple((first + 100 if first < 200 else first - 100, length) for first, length in spans)
    for access, spans in TAKEN.items()
}
#: Two that take at once both see the other and both step back: 190 of 500 such pairs had no winner at the first try.
RETRIES = 3
PAUSE = (0.005, 0.025)


def take(fd: int, access: Access) -> bool:
    """Take the bytes of `access` on an open image until it is closed; false when somebody conflicts.

    Up to about 75 ms when it is false. Raises OSError where the filesystem has no such locks.
    """
    return settled(lambda: _take_once(fd, access))


def settled(attempt: Callable[[], bool]) -> bool:
    """True as soon as `attempt` is; a few more tries at jittered intervals outlast what passes by itself."""
    for _ in range(RETRIES):
        if attempt():
            return True
        time.sleep(random.uniform(*PAUSE))
    return attempt()


def _take_once(fd: int, access: Access) -> bool:
    if _opposed(fd, access):
        return False
    if all(ofd.take(fd, ofd.SHARED, *span) for span in TAKEN[access]) and not _opposed(fd, access):
        return True
    for span in TAKEN[access]:
        ofd.drop(fd, *span)
    return False


def _opposed(fd: int, access: Access) -> bool:
    return any(ofd.taken(fd, ofd.EXCLUSIVE, *span) for span in OPPOSED[access])
