"""Ranges that must read as zeros: told apart, merged, and made so at any border."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobvisor_workers.data import libc, zeros
from jobvisor_workers.data.direct import BLOCK, huge_buffer
from jobvisor_workers.data.zeros import PIECE, ZeroRanges, data_runs, zero_out
from support.images import MIB, filled
from support.lock_scenes import loop_device


@given(
    marks=st.lists(st.integers(0, 3 * MIB), max_size=12),
    length=st.integers(0, 3 * MIB),
    block=st.sampled_from([BLOCK, PIECE]),
)
def test_runs_cover_all_data_and_no_block_of_zeros(marks: list[int], length: int, block: int) -> None:
    buffer = huge_buffer(3 * MIB + 1)
    for mark in marks:
        buffer[mark] = 7
    runs = list(data_runs(buffer, length, block))
    expected = sorted({mark // block for mark in marks if mark < length})
    assert [number for start, end in runs for number in range(start // block, -(-end // block))] == expected
    assert all(start % block == 0 and (end % block == 0 or end == length) for start, end in runs)
    assert all(before[1] < after[0] for before, after in pairwise(runs)), "runs are as long as can be"


def test_a_device_zeroes_any_range(tmp_path: Path) -> None:
    expected = bytearray(filled(tmp_path / "disk", 2 * MIB).read_bytes())
    with loop_device(tmp_path / "disk") as device:
        fd = os.open(device, os.O_RDWR)
        try:
            ranges = [(1, 2), (5000, 30_000), (70_000, 512), (81_920, 8192), (MIB - 1, 4098), (2 * MIB - 9000, 9000)]
            for offset, length in ranges:
                zero_out(fd, offset, length)
                expected[offset : offset + length] = bytes(length)
            assert os.pread(fd, 2 * MIB, 0) == expected
            os.fsync(fd)
        finally:
            os.close(fd)
    assert (tmp_path / "disk").read_bytes() == expected


def test_ranges_that_touch_are_made_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZeroRanges, "STEP", 100)
    made: list[tuple[int, int]] = []
    ranges = ZeroRanges(-1, lambda fd, offset, length: made.append((offset, length)), None)
    for offset, length in [(0, 10), (10, 30), (50, 20), (70, 5), (200, 250)]:
        ranges.add(offset, length)
    ranges.flush()
    assert made == [(0, 40), (50, 25), (200, 100), (300, 100), (400, 50)]


def test_where_it_is_not_supported_zeros_are_written_from_then_on(tmp_path: Path) -> None:
    path = filled(tmp_path / "a", 10_000)
    calls: list[int] = []

    def refuse(fd: int, offset: int, length: int) -> None:
        calls.append(offset)
        raise OSError(errno.EOPNOTSUPP, "x")

    with open(path, "r+b") as file:
        before = path.read_bytes()
        ranges = ZeroRanges(file.fileno(), refuse, None)
        ranges.add(10, 100)
        ranges.add(5000, 5000)
        ranges.flush()
    assert path.read_bytes() == before[:10] + bytes(100) + before[110:5000] + bytes(5000)
    assert calls == [10]


def test_a_file_without_room_is_told(tmp_path: Path) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ranges = ZeroRanges(-1, full, None)
    ranges.add(0, 1)
    with pytest.raises(OSError, match="No space"):
        ranges.flush()


def test_preallocation_that_is_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "x")

    with open(tmp_path / "a", "wb") as file:
        assert zeros.preallocate(file.fileno(), MIB + 1) is True
        assert os.fstat(file.fileno()).st_blocks * 512 > MIB
        monkeypatch.setattr(libc, "fallocate", refuse)
        assert zeros.preallocate(file.fileno(), MIB + 1) is False
