"""Digests equal those of the whole content, however it is laid out."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobvisor_workers.data import digest as module
from jobvisor_workers.data.digest import Algorithm, digest
from jobvisor_workers.errors import JobError
from support.images import MIB, filled, scattered
from support.lock_scenes import loop_device

ALGORITHMS = get_args(Algorithm)


def of(path: Path, algorithm: str = "sha256") -> tuple[str, list[int]]:
    told: list[int] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        return digest(fd, size, algorithm, advance=told.append), told
    finally:
        os.close(fd)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [0, 1, 4097, 3 * MIB + 5])
def test_every_algorithm(tmp_path: Path, algorithm: str, size: int) -> None:
    path = scattered(tmp_path / "a", size)
    value, told = of(path, algorithm)
    assert value == hashlib.new(algorithm, path.read_bytes()).hexdigest()
    assert sum(told) == size


def test_all_of_fixed_length_are_there() -> None:
    assert set(ALGORITHMS) == {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake")}
    assert ALGORITHMS[0] == "sha256"


@settings(max_examples=40, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 3 * MIB), st.integers(1, 9000)), max_size=6), size=st.integers(0, 3 * MIB)
)
def test_any_layout(tmp_path_factory: pytest.TempPathFactory, data: list[tuple[int, int]], size: int) -> None:
    path = tmp_path_factory.mktemp("digest") / "a"
    with open(path, "wb") as file:
        for offset, length in data:
            os.pwrite(file.fileno(), b"\x01\x02" * length, offset)
        file.truncate(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEP", 10_001)
        assert of(path)[0] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
        os.pwrite(file.fileno(), b"x" * 4096, 32 * MIB)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    read: list[int] = []
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        count = real(fd, buffers, offset, flags)
        read.append(0 if flags else count)
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    assert of(path)[0] == expected
    assert sum(read) == 4096


def test_a_device(tmp_path: Path) -> None:
    disk = filled(tmp_path / "disk", 3 * MIB + 512)
    with loop_device(disk) as device:
        value, told = of(device)
    assert value == hashlib.sha256(disk.read_bytes()).hexdigest()
    assert sum(told) == 3 * MIB + 512


@pytest.mark.parametrize("hole", [False, True])
def test_a_file_that_shrinks(tmp_path: Path, hole: bool) -> None:
    path = filled(tmp_path / "a", 12 * MIB)
    if hole:
        os.truncate(path, 40 * MIB)
    with open(path, "rb") as file, pytest.raises(JobError, match=r"cannot digest .*/a: it became shorter"):
        digest(
            file.fileno(), path.stat().st_size, "sha256", advance=lambda _: os.truncate(path, (13 if hole else 5) * MIB)
        )
