"""The job type delete, as real jobs on real files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from support.images import MIB, everything_in, filesystem, filled, overlay, qemu_img
from support.lock_scenes import loop_device, need, vm, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def delete(supervisor: Supervisor) -> Run:
    def delete(volume: Path, **args: Any) -> JobInfo:
        return supervisor.start("delete", volume=str(volume), **args).wait(60)

    return delete


@pytest.mark.parametrize("size", [0, 1, 4097, 3 * MIB + 513])
@pytest.mark.parametrize("zeroed", [False, True])
def test_the_file_is_gone(delete: Run, tmp_path: Path, size: int, zeroed: bool) -> None:
    volume = filled(tmp_path / "a b.raw", size)
    filled(tmp_path / "other", 5)
    with open(volume, "rb") as kept:
        info = delete(volume, zeroed=zeroed)
        assert (info.ok, info.abort_effect) == (True, None), info.errmsg
        assert kept.read() == bytes(size) if zeroed else True
    assert info.result == {"size": size, "zeroed": zeroed, "names_left": 0}
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]


def test_hard_links_are_said(delete: Run, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", 5000)
    content = volume.read_bytes()
    for name in ("b.raw", "c.raw"):
        os.link(volume, tmp_path / name)
    info = delete(volume)
    assert info.warnings == [f"{volume} has 3 names (hard links): its data stays under the others"]
    assert (tmp_path / "b.raw").read_bytes() == content
    info = delete(tmp_path / "b.raw", zeroed=True)
    assert any("2 names (hard links): it is wiped under all of them" in text for text in info.warnings)
    assert (tmp_path / "c.raw").read_bytes() == bytes(5000)


def test_internal_snapshots_go_only_when_that_is_said(delete: Run, tmp_path: Path) -> None:
    volume = overlay(tmp_path / "a.qcow2", str(filled(tmp_path / "base.raw", MIB)), "raw")
    for name in ("first", "größer", "c", "d", "e", "f"):
        qemu_img("snapshot", "-c", name, volume)
    before = everything_in(tmp_path)
    for options in ({}, {"zeroed": True}, {"dry_run": True}):
        info = delete(volume, **options)
        words = "it has 6 internal snapshots (first, größer, c, d, e, …); add --delete-snapshots to delete them with it"
        assert (info.state, info.errmsg) == ("failed", f"cannot delete {volume}: {words}")
    assert everything_in(tmp_path) == before
    with open(volume, "r+b") as file:
        file.truncate(70_000)
    assert "(?)" in (delete(volume).errmsg or ""), "the table is cut off"
    assert delete(volume, delete_snapshots=True).ok
    assert not volume.exists()


def test_what_is_not_deleted(delete: Run, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", MIB)
    top = overlay(tmp_path / "top.qcow2", "base.raw", "raw")
    (tmp_path / "link").symlink_to("top.qcow2")
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "pipe")
    disk = filled(tmp_path / "disk.raw", MIB)
    before = everything_in(tmp_path)
    for zeroed in (False, True):
        for name, words in (
            ("base.raw", f"it is the backing file of {top}; rebase or delete that first"),
            ("link", f"is a symbolic link; delete {top}"),
            ("dir", "is a directory"),
            ("pipe", "is a pipe"),
            ("missing", "missing: no such file"),
        ):
            info = delete(tmp_path / name, zeroed=zeroed)
            assert (info.state, info.cause) == ("failed", Cause.ERROR), info.errmsg
            assert words in (info.errmsg or ""), info.errmsg
    with loop_device(disk) as device:
        assert "is a block device, not a file" in (delete(device).errmsg or "")
    with vm(disk):
        info = delete(disk, zeroed=True)
        assert (info.cause, "in use by QEMU" in (info.errmsg or "")) == (Cause.BUSY, True)
    assert delete(top, zeroed=True, dry_run=True).ok
    assert everything_in(tmp_path) == before
    assert delete(top).ok
    assert delete(base).ok


def test_a_read_only_filesystem(delete: Run, tmp_path: Path) -> None:
    with filesystem(tmp_path, "tmpfs", MIB) as where:
        volume = filled(where / "a.raw", 5000)
        assert os.system(f"mount -o remount,ro '{where}'") == 0
        info = delete(volume)
        assert info.state == "failed"
        assert "read-only" in (info.errmsg or "").lower()
        assert volume.exists()


@pytest.mark.parametrize("end", ["abort", "kill"])
def test_an_end_while_it_is_overwritten(supervisor: Supervisor, delete: Run, tmp_path: Path, end: str) -> None:
    volume = filled(tmp_path / "a.raw", 32 * MIB)
    job = supervisor.start("delete", volume=str(volume), zeroed=True, bandwidth=8 * MIB)
    wait_until(lambda: 0 < job.info().data_processed < 32 * MIB, "it overwrites")
    assert "partly overwritten" in (job.info().abort_effect or "")
    assert job.suspend().state == "suspended"
    if end == "abort":
        info = job.abort()
        assert info.state == "aborted"
        assert any("partly overwritten" in text for text in info.warnings)
    else:
        os.kill(job.info().pid or 0, signal.SIGKILL)
        assert job.wait(60).state == "failed"
    assert volume.stat().st_size == 32 * MIB
    assert volume.read_bytes()[:MIB] == bytes(MIB)
    assert delete(volume, zeroed=True).ok
    assert not volume.exists()
