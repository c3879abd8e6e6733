"""The job type rebase, as real jobs on real images."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from support.images import MIB, everything_in, filesystem, filled, identical, overlay, qcow2, qemu_img
from support.lock_scenes import need, vm, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def rebase(supervisor: Supervisor) -> Run:
    def rebase(volume: Path, backing: Path | None = None, **args: Any) -> JobInfo:
        if backing:
            args["backing"] = str(backing)
        return supervisor.start("rebase", volume=str(volume), **args).wait(60)

    return rebase


def flat(image: Path) -> Path:
    """What a guest sees in it, now."""
    raw = image.with_name(f"{image.name}.flat")
    qemu_img("convert", "-O", "raw", image, raw)
    return raw


def backing_of(image: Path) -> tuple[str | None, str | None]:
    about = json.loads(qemu_img("info", "--output=json", image))
    return about.get("backing-filename"), about.get("backing-filename-format")


@pytest.mark.parametrize("relative", [True, False])
def test_on_another_file_the_guest_sees_the_same(rebase: Run, tmp_path: Path, relative: bool) -> None:
    old = filled(tmp_path / "old.raw", 4 * MIB)
    new = qcow2(tmp_path / "new.qcow2", filled(tmp_path / "new.raw", 3 * MIB, seed=2))
    top = overlay(tmp_path / "top.qcow2", old.name if relative else str(old), "raw", "-P 1 0 64k", "-z 1M 1M")
    expected = flat(top)
    info = rebase(top, new)
    assert (info.ok, info.abort_effect) == (True, None), info.errmsg
    assert info.data_processed == info.data_total == 4 * MIB
    assert backing_of(top) == (new.name if relative else str(new), "qcow2")
    old.unlink()
    assert identical(top, expected)
    qemu_img("check", top)


def test_flatten(rebase: Run, tmp_path: Path) -> None:
    filled(tmp_path / "base.raw", 4 * MIB)
    overlay(tmp_path / "mid.qcow2", "base.raw", "raw", "-P 3 1M 70k")
    top = overlay(tmp_path / "top.qcow2", "mid.qcow2", "qcow2", "-P 4 100k 1k")
    expected = flat(top)
    info = rebase(top, flatten=True)
    assert info.ok, info.errmsg
    assert backing_of(top) == (None, None)
    assert identical(top, expected)


def test_down_to_what_lies_below(rebase: Run, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", 4 * MIB)
    overlay(tmp_path / "mid.qcow2", "base.raw", "raw", "-P 3 1M 70k")
    top = overlay(tmp_path / "top.qcow2", "mid.qcow2", "qcow2", "-P 4 100k 1k")
    expected = flat(top)
    info = rebase(top, base)
    assert info.ok, info.errmsg
    assert backing_of(top) == ("base.raw", "raw")
    assert identical(top, expected)
    assert top.stat().st_size < 2 * MIB


def test_unsafe_changes_the_name_only(rebase: Run, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", 4 * MIB)
    top = overlay(tmp_path / "top.qcow2", "base.raw", "raw", "-P 4 100k 1k")
    expected, size = flat(top), top.stat().st_size
    (tmp_path / "sub").mkdir()
    moved = tmp_path / "sub/moved.raw"
    base.rename(moved)
    assert "does not exist" in (rebase(top, moved).errmsg or "")
    info = rebase(top, moved, unsafe=True)
    assert info.ok, info.errmsg
    assert backing_of(top) == ("sub/moved.raw", "raw")
    assert identical(top, expected)
    assert top.stat().st_size == size


def test_bad_input(rebase: Run, tmp_path: Path) -> None:
    raw = filled(tmp_path / "base.raw", 4 * MIB)
    top = overlay(tmp_path / "top.qcow2", "base.raw", "raw", "-P 1 0 64k")
    above = overlay(tmp_path / "above.qcow2", "top.qcow2", "qcow2")
    cut = qcow2(tmp_path / "cut.qcow2", raw)
    os.truncate(cut, 2 * MIB)
    before = everything_in(tmp_path)
    cases: list[tuple[Path, Path | None, dict[str, Any], str]] = [
        (top, None, {}, "give either --backing"),
        (top, raw, {"flatten": True}, "give either --backing"),
        (top, None, {"flatten": True, "unsafe": True}, "--unsafe would lose"),
        (raw, top, {}, "a raw has no backing file"),
        (top, above, {}, "is based on"),
        (top, above, {"unsafe": True}, "is based on"),
        (top, top, {}, "the same file"),
        (top, cut, {}, "cut.qcow2 is corrupt or cut off"),
        (top, tmp_path / "missing", {}, "missing: no such file"),
    ]
    for volume, backing, args, words in cases:
        info = rebase(volume, backing, **args)
        assert (info.state, info.cause) == ("failed", Cause.ERROR), info.errmsg
        assert words in (info.errmsg or ""), info.errmsg
    with vm(raw):
        info = rebase(top, flatten=True)
        assert (info.cause, "in use by QEMU" in (info.errmsg or "")) == (Cause.BUSY, True), info.errmsg
    assert rebase(top, flatten=True, dry_run=True).ok
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("end", ["abort", "kill"])
def test_whatever_ends_it_the_overlay_is_whole(supervisor: Supervisor, rebase: Run, tmp_path: Path, end: str) -> None:
    filled(tmp_path / "base.raw", 16 * MIB)
    top = overlay(tmp_path / "top.qcow2", "base.raw", "raw", "-P 1 0 1M")
    expected = flat(top)
    for after in (1, 6):
        job = supervisor.start("rebase", volume=str(top), flatten=True, bandwidth=4 * MIB)
        wait_until(lambda: job.info().data_processed >= after * MIB, "it copies")  # noqa: B023
        assert job.suspend().state == "suspended"
        if end == "abort":
            info = job.abort()
            assert info.state == "aborted"
            assert any("shows what it always showed" in text for text in info.warnings)
        else:
            os.killpg(job.info().pid or 0, signal.SIGKILL)
            assert job.wait(60).state == "failed"
        assert identical(top, expected)
        qemu_img("check", "-r", "leaks", Path(shutil.copy(top, tmp_path / "copy.qcow2")))
    assert rebase(top, flatten=True).ok
    assert backing_of(top) == (None, None)
    assert identical(top, expected)


def test_no_room_for_what_the_backing_file_has(rebase: Run, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", 6 * MIB)
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        top = overlay(where / "top.qcow2", str(base), "raw", "-P 1 0 64k")
        info = rebase(top, flatten=True, bandwidth=1 << 30)
        assert (info.state, info.cause) == ("failed", Cause.NO_SPACE)
        assert (info.errmsg or "").startswith(f"cannot rebase {top}: No space left on device, ")
        assert (info.errmsg or "").endswith(f" are free; make room in {where}, and do it again")
        assert "--bandwidth limits what is written to the overlay, not what is read to compare" in info.warnings
        qemu_img("check", top)
        assert backing_of(top) == (str(base), "raw")
