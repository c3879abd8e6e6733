"""Holes and data of real files, and reading them without holding on to the page cache."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobvisor_workers.data.cache import Reading
from jobvisor_workers.data.extents import allocated, data_extents
from support.images import MIB, filled
from support.lock_scenes import loop_device, need

BLOCK = 4096


def laid_out(path: Path, size: int, data: list[tuple[int, int]]) -> int:
    """A file with data in these ranges and holes elsewhere; an open descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.ftruncate(fd, size)
    for offset, length in data:
        os.pwrite(fd, random.Random(offset).randbytes(length), offset)
    return fd


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.lists(st.booleans(), max_size=60),
    odd=st.integers(0, BLOCK - 1),
    window=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_every_byte_outside_the_extents_is_a_hole(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[bool], odd: int, window: tuple[float, float]
) -> None:
    path = tmp_path_factory.mktemp("extents") / "a"
    size = max(0, len(blocks) * BLOCK - odd)
    fd = laid_out(path, size, [(n * BLOCK, min(BLOCK, size - n * BLOCK)) for n, full in enumerate(blocks) if full])
    try:
        start, end = sorted(int(part * size) for part in window)
        found = list(data_extents(fd, start, end))
        assert all(start <= offset < offset + length <= end for offset, length in found)
        assert found == sorted(found)
        image = bytearray(end - start)
        for offset, length in found:
            image[offset - start : offset - start + length] = os.pread(fd, length, offset)
        assert image == os.pread(fd, end - start, start)
        assert allocated(fd, size) <= os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def test_holes_are_left_out(tmp_path: Path) -> None:
    fd = laid_out(tmp_path / "a", 64 * MIB, [(16 * MIB, MIB), (32 * MIB, 10)])
    try:
        assert allocated(fd, 64 * MIB) == MIB + BLOCK
        assert list(data_extents(fd, 0, 64 * MIB)) == [(16 * MIB, MIB), (32 * MIB, BLOCK)]
        assert list(data_extents(fd, 16 * MIB + 5, 16 * MIB + 9)) == [(16 * MIB + 5, 4)]
    finally:
        os.close(fd)


def test_a_file_that_shrinks_ends_the_iteration(tmp_path: Path) -> None:
    fd = laid_out(tmp_path / "a", 8 * MIB, [(0, BLOCK), (4 * MIB, BLOCK)])
    try:
        extents = data_extents(fd, 0, 8 * MIB)
        assert next(extents) == (0, BLOCK)
        os.ftruncate(fd, 10)
        assert list(extents) == []
    finally:
        os.close(fd)


def test_a_block_device_is_one_extent(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(MIB)
    with loop_device(tmp_path / "a") as device:
        fd = os.open(device, os.O_RDONLY)
        try:
            assert list(data_extents(fd, 512, MIB)) == [(512, MIB - 512)]
        finally:
            os.close(fd)


def test_what_cannot_seek_is_one_extent() -> None:
    read, write = os.pipe()
    try:
        assert list(data_extents(read, 0, 100)) == [(0, 100)]
        assert list(Reading(read, 100).steps([(0, 100)], 64)) == [(0, 64), (64, 36)]
    finally:
        os.close(read)
        os.close(write)


def in_memory(path: Path) -> int:
    """Bytes of a file in the page cache."""
    need("fincore")
    return int(subprocess.run(["fincore", "-bno", "RES", path], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("cold", [True, False])
def test_reading_leaves_the_cache_as_it_was(tmp_path: Path, cold: bool) -> None:
    size = 16 * MIB
    path = filled(tmp_path / "a", size)
    fd = os.open(path, os.O_RDONLY)
    try:
        # On a busy machine a cold file is taken for a cached one now and then: that is the safe side.
        for _ in range(5 if cold else 1):
            if cold:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                if in_memory(path):
                    pytest.skip("the test directory's filesystem keeps its pages")
            reading = Reading(fd, size)
            for offset, length in reading.steps([(0, size)], 4 * MIB):
                assert len(os.pread(fd, length, offset)) == length
                reading.done(offset, length)
            if reading.cold:
                break
        if cold:
            assert in_memory(path) <= size // 4
        else:
            assert in_memory(path) == size
    finally:
        os.close(fd)


@given(
    extents=st.lists(st.tuples(st.integers(0, 30 * MIB), st.integers(1, 30 * MIB)), max_size=8),
    length=st.integers(MIB, 8 * MIB),
)
def test_steps_are_the_extents_cut(extents: list[tuple[int, int]], length: int) -> None:
    with open(os.devnull, "rb") as file:
        steps = list(Reading(file.fileno(), 0).steps(extents, length))
    assert all(0 < part <= length for _, part in steps)
    joined: list[tuple[int, int]] = []
    for whole_offset, whole in extents:
        taken = 0
        while taken < whole:
            offset, part = steps.pop(0)
            assert offset == whole_offset + taken
            taken += part
        joined.append((whole_offset, taken))
    assert joined == extents
    assert steps == []
