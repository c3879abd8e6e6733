"""The job type resize, as real jobs on real images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from support.images import MIB, everything_in, filesystem, filled, identical, overlay, qcow2, qemu_img
from support.lock_scenes import loop_device, need, vm, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def resize(supervisor: Supervisor) -> Run:
    def resize(volume: Path, capacity: int, **args: Any) -> JobInfo:
        return supervisor.start("resize", volume=str(volume), capacity=capacity, **args).wait(60)

    return resize


@pytest.fixture
def done(resize: Run) -> Callable[..., dict[str, Any]]:
    def done(volume: Path, capacity: int, **args: Any) -> dict[str, Any]:
        info = resize(volume, capacity, **args)
        assert info.ok, info.errmsg
        assert info.result is not None
        assert info.data_processed == (info.data_total or 0)
        assert info.abort_effect is None
        return info.result

    return done


@pytest.fixture
def refused(resize: Run, tmp_path: Path) -> Callable[..., JobInfo]:
    """A resize that must fail, and leave everything as it was."""

    def refused(volume: Path, capacity: int, *words: str, cause: Cause = Cause.ERROR, **args: Any) -> JobInfo:
        before = everything_in(tmp_path)
        info = resize(volume, capacity, **args)
        assert (info.state, info.cause) == ("failed", cause), info.errmsg
        for word in words:
            assert word in (info.errmsg or ""), info.errmsg
        assert everything_in(tmp_path) == before
        return info

    return refused


def virtual_size(image: Path) -> int:
    return int(json.loads(qemu_img("info", "--output=json", image))["virtual-size"])


@pytest.mark.parametrize("size", [1, 4097, 3 * MIB])
def test_a_raw_file_grows_to_the_byte(done: Any, tmp_path: Path, size: int) -> None:
    volume = filled(tmp_path / "a.raw", size)
    old = volume.read_bytes()
    result = done(volume, 5 * MIB + 7)
    assert (result["capacity"], result["capacity_before"], result["format"]) == (5 * MIB + 7, size, "raw")
    assert volume.read_bytes() == old.ljust(5 * MIB + 7, b"\0")
    assert done(volume, 1, delta=True)["capacity"] == 5 * MIB + 8
    assert volume.stat().st_size == 5 * MIB + 8
    done(volume, 8, delta=True, shrink=True)
    assert volume.read_bytes() == old.ljust(5 * MIB, b"\0")


def test_the_same_size_is_no_change(done: Any, tmp_path: Path) -> None:
    before = everything_in(tmp_path)
    volume = filled(tmp_path / "a.raw", 5000)
    image = qcow2(tmp_path / "a.qcow2", filled(tmp_path / "b.raw", MIB))
    before = everything_in(tmp_path)
    done(volume, 5000)
    done(image, MIB, shrink=True)
    assert everything_in(tmp_path) == before


def test_allocate(done: Any, refused: Any, tmp_path: Path) -> None:
    volume = tmp_path / "a.raw"
    volume.write_bytes(b"begin")
    os.truncate(volume, 4 * MIB)
    assert done(volume, 9 * MIB, allocate=True)["allocation"] >= 9 * MIB
    assert volume.read_bytes() == b"begin".ljust(9 * MIB, b"\0")
    assert subprocess.run(["du", "-B1", volume], capture_output=True).stdout.split()[0] >= str(9 * MIB).encode()
    image = qcow2(tmp_path / "a.qcow2", volume)
    refused(image, 16 * MIB, "--allocate is for raw files", allocate=True)


def test_allocate_without_room(refused: Any, tmp_path: Path) -> None:
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        volume = filled(where / "a.raw", MIB)
        info = refused(
            volume, 6 * MIB, "needs 5.0 MiB, the filesystem has 3.0 MiB", cause=Cause.NO_SPACE, allocate=True
        )
        assert info.phase == "checks"


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_data_is_cut_off_only_when_that_is_said(
    resize: Run, done: Any, refused: Any, tmp_path: Path, kind: str
) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"x" * MIB + bytes(3 * MIB) + b"y" * 65536)
    os.truncate(raw, 8 * MIB)
    volume = raw if kind == "raw" else qcow2(tmp_path / "a.qcow2", raw)
    refused(
        volume, 4 * MIB, f"from {8 * MIB} to {4 * MIB} bytes: it would lose 64.0 KiB of data (65536 bytes)", "--shrink"
    )
    refused(volume, 5 * MIB, "it would lose nothing but zeroes", "--shrink")
    refused(volume, 9 * MIB, "has only", shrink=True)
    refused(volume, 8 * MIB, "nothing would be left", shrink=True, delta=True)
    info = resize(volume, 5 * MIB, shrink=True)
    assert (info.ok, info.warnings) == (True, [])
    info = resize(volume, 4 * MIB, shrink=True)
    assert info.ok
    assert info.warnings == [f"{volume} loses 64.0 KiB of data (65536 bytes) beyond byte {4 * MIB}"]
    expected = tmp_path / "expected"
    expected.write_bytes(b"x" * MIB + bytes(3 * MIB))
    assert identical(volume, expected, "-s") if kind == "raw" else identical(volume, expected)
    assert virtual_size(volume) == 4 * MIB


def test_a_qcow2_on_a_chain(done: Any, tmp_path: Path) -> None:
    filled(tmp_path / "base.raw", 3 * MIB)
    top = overlay(tmp_path / "top.qcow2", "base.raw", "raw", "-P 3 1M 64k")
    kept = Path(shutil.copy(top, tmp_path / "kept.qcow2"))
    base = everything_in(tmp_path)["base.raw"]
    assert done(top, 8 * MIB + 1)["capacity"] == virtual_size(top) == 8 * MIB + 512
    assert identical(top, kept)
    qemu_img("check", top)
    done(top, 2 * MIB, shrink=True)
    qemu_img("check", top)
    # What the base has there must not come back.
    done(top, 3 * MIB)
    tail = tmp_path / "tail.raw"
    qemu_img("convert", "-O", "raw", top, tail)
    assert tail.read_bytes()[2 * MIB :] == bytes(MIB)
    assert everything_in(tmp_path)["base.raw"] == base


def test_what_cannot_be_resized(refused: Any, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", MIB)
    for kind in ("vdi", "vmdk", "vhdx"):
        qemu_img("convert", "-O", kind, raw, tmp_path / f"a.{kind}")
        refused(tmp_path / f"a.{kind}", 2 * MIB, f"cannot resize a {kind}; convert it")
    with loop_device(raw) as device:
        refused(device, 2 * MIB, "is a block device, whose size belongs to")
    image = qcow2(tmp_path / "a.qcow2", raw)
    qemu_img("snapshot", "-c", "kept", image)
    refused(tmp_path / "missing", MIB, "missing: no such file")
    half = Path(shutil.copy(image, tmp_path / "half.qcow2"))
    os.truncate(half, MIB // 2)
    refused(half, 2 * MIB, "half.qcow2 is corrupt or cut off")
    refused(raw, 2 * MIB, "not in qcow2 format", format="qcow2")


def test_an_image_in_use(refused: Any, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", MIB)
    with vm(volume):
        refused(volume, 2 * MIB, "in use by QEMU pid", cause=Cause.BUSY)


def test_a_dry_run_changes_nothing(resize: Run, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", MIB)
    before = everything_in(tmp_path)
    info = resize(volume, 1000, shrink=True, dry_run=True)
    assert (info.ok, len(info.warnings)) == (True, 1)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("end", ["abort", "kill"])
def test_what_ends_an_allocation_leaves_the_content(supervisor: Supervisor, tmp_path: Path, end: str) -> None:
    volume = filled(tmp_path / "a.raw", MIB)
    before = everything_in(tmp_path)
    size = 2048 * MIB
    job = supervisor.start("resize", volume=str(volume), capacity=size, allocate=True, bandwidth=64 * MIB)
    wait_until(lambda: job.info().data_processed > 0, "it allocates")
    assert "as it was" in (job.info().abort_effect or "")
    assert job.suspend().state == "suspended"
    if end == "abort":
        info = job.abort()
        assert info.state == "aborted"
        assert volume.stat().st_blocks * 512 <= 2 * MIB
    else:
        os.kill(job.info().pid or 0, signal.SIGKILL)
        assert job.wait(60).state == "failed"
    assert everything_in(tmp_path) == before
