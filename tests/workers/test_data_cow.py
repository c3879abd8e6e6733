"""Which files keep old blocks when they are overwritten; on real filesystems."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor_workers.data import cow
from jobvisor_workers.data.cow import cow_reason
from support.images import MIB, filesystem, filled
from support.lock_scenes import loop_device, need, wait_until


def reason(path: Path) -> str | None:
    fd = os.open(path, os.O_RDWR)
    try:
        return cow_reason(fd)
    finally:
        os.close(fd)


def clone(path: Path, to: Path) -> None:
    subprocess.run(["cp", "--reflink=always", path, to], check=True)


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    with filesystem(tmp_path, "btrfs", 200 * MIB) as where:
        yield where


def test_a_filesystem_that_overwrites(tmp_path: Path) -> None:
    with filesystem(tmp_path, "ext4", 20 * MIB) as where:
        assert reason(filled(where / "a", MIB)) is None
    with filesystem(tmp_path, "tmpfs", 2 * MIB) as where:
        assert reason(filled(where / "a", MIB)) is None


def test_btrfs(btrfs: Path) -> None:
    assert reason(filled(btrfs / "a", MIB)) == "btrfs writes every change to new blocks"


def test_btrfs_without_copy_on_write(btrfs: Path) -> None:
    need("chattr")
    directory = btrfs / "nocow"
    directory.mkdir()
    subprocess.run(["chattr", "+C", directory], check=True)
    assert reason(filled(directory / "a", MIB)) is None
    subprocess.run(["sync", "-f", btrfs], check=True)
    subprocess.run(["btrfs", "subvolume", "snapshot", btrfs, btrfs / "snapshot"], check=True, capture_output=True)
    assert reason(directory / "a") == "it shares blocks with a reflinked copy or a snapshot"


def test_xfs_with_and_without_shared_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cow, "EXTENTS_PER_CALL", 3)
    with filesystem(tmp_path, "xfs", 400 * MIB) as where:
        with open(where / "a", "wb") as file:
            for part in range(20):
                os.pwrite(file.fileno(), b"x" * 4096, part * 100_000)
            os.fsync(file.fileno())
        assert reason(where / "a") is None
        clone(where / "a", where / "b")
        assert reason(where / "a") == "it shares blocks with a reflinked copy or a snapshot"
        # Only the last extent is still shared.
        with open(where / "a", "r+b") as file:
            for part in range(19):
                os.pwrite(file.fileno(), b"y" * 4096, part * 100_000)
            os.fsync(file.fileno())
        assert reason(where / "a") is not None
        (where / "b").unlink()
        # xfs gives the blocks of what was removed back in its own time.
        wait_until(lambda: reason(where / "a") is None, "the blocks are shared no longer")


def test_an_empty_file_and_a_device(tmp_path: Path) -> None:
    assert reason(filled(tmp_path / "a", 0)) is None
    filled(tmp_path / "disk", MIB)
    with loop_device(tmp_path / "disk") as device:
        assert reason(device) is None


def test_overlayfs(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "over"):
        (tmp_path / name).mkdir()
    filled(tmp_path / "lower" / "a", MIB)
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "over"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no overlayfs: {done.stderr.strip()}")
    try:
        assert reason(tmp_path / "over" / "a") == "overlayfs keeps what a lower layer holds"
    finally:
        subprocess.run(["umount", tmp_path / "over"], check=True)
