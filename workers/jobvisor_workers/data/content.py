"""What of a file is data: neither a hole nor zeroes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from jobvisor_workers.data.direct import BLOCK, huge_buffer
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.data.zeros import data_runs

STEP: Final = 4 << 20


def content(fd: int, start: int, end: int, advance: Callable[[int], None]) -> int:
    """Bytes in [start, end) that lie in blocks (of 4096) with something else than zeroes; `advance` is told all read.

    Raises OSError.
    """
    buffer = huge_buffer(STEP)
    found = 0
    for first, length in data_extents(fd, start, end):
        offset, last = first, first + length
        while offset < last:
            view = memoryview(buffer)[: min(STEP, last - offset)]
            count = os.preadv(fd, [view], offset)
            view.release()
            if not count:
                return found
            found += sum(until - begin for begin, until in data_runs(buffer, count, BLOCK))
            offset += count
            advance(count)
    return found
