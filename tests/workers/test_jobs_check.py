"""The job type check, as real jobs on real images."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from jobvisor.testing import halt_at
from support.images import MIB, everything_in, filled, identical, overlay, qcow2, qemu_img, scattered
from support.lock_scenes import need


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home"), types=["jobvisor_workers.testing"]) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def check(supervisor: Supervisor) -> Run:
    def check(volume: Path, **args: Any) -> JobInfo:
        return supervisor.start("check", volume=str(volume), **args).wait(60)

    return check


def set_refcount(image: Path, cluster: int, count: int) -> None:
    """Of a small qcow2: written straight into its first block of reference counts."""
    with open(image, "r+b") as file:
        file.seek(48)
        file.seek(struct.unpack(">Q", file.read(8))[0])
        file.seek(struct.unpack(">Q", file.read(8))[0] + 2 * cluster)
        file.write(struct.pack(">H", count))
        file.truncate(max(os.fstat(file.fileno()).st_size, (cluster + 1) * 65536))


def status(image: Path) -> int:
    return subprocess.run(["qemu-img", "check", image], capture_output=True).returncode


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", 2 * MIB))


@pytest.mark.parametrize("kind", ["qcow2", "qed", "vdi", "vmdk", "vhdx", "parallels"])
def test_a_sound_image(check: Run, tmp_path: Path, kind: str) -> None:
    volume = tmp_path / "a"
    qemu_img("convert", "-O", kind, scattered(tmp_path / "a.raw", 4 * MIB), volume)
    before = everything_in(tmp_path)
    info = check(volume)
    assert info.ok, info.errmsg
    assert info.result is not None
    assert (info.result["format"], info.result["corruptions"], info.result["leaks"]) == (kind, 0, 0)
    assert everything_in(tmp_path) == before


def test_leaks_fail_and_are_freed(check: Run, tmp_path: Path, image: Path) -> None:
    set_refcount(image, 200, 1)
    before = everything_in(tmp_path)
    info = check(image)
    assert (info.state, info.cause) == ("failed", Cause.ERROR)
    assert info.errmsg == f"{image} has 1 leaked clusters; they do no harm, and --repair leaks frees them"
    assert info.result is not None
    assert info.result["leaks"] == 1
    assert everything_in(tmp_path) == before
    assert status(image) == 3
    assert check(image, repair="leaks", dry_run=True).ok
    assert everything_in(tmp_path) == before
    info = check(image, repair="leaks")
    assert (info.ok, info.abort_effect) == (True, None), info.errmsg
    assert info.result is not None
    assert info.result["leaks_fixed"] == 1
    assert status(image) == 0
    assert identical(image, tmp_path / "a.raw")


def test_corruption_fails_and_is_mended(check: Run, tmp_path: Path, image: Path) -> None:
    set_refcount(image, 8, 0)
    before = everything_in(tmp_path)
    info = check(image)
    assert (info.state, info.cause) == ("failed", Cause.ERROR)
    assert info.errmsg == f"{image} is corrupt: 2 errors; the log names them; copy it, then try --repair all"
    assert "ERROR cluster 8 refcount=0 reference=1" in Path(info.log).read_text()
    assert info.result is not None
    assert info.result["corruptions"] == 2
    assert everything_in(tmp_path) == before
    info = check(image, repair="all")
    assert info.ok, info.errmsg
    assert info.result is not None
    assert info.result["corruptions_fixed"] > 0
    assert status(image) == 0
    assert identical(image, tmp_path / "a.raw")


def test_an_image_whose_backing_file_is_gone(check: Run, tmp_path: Path, image: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", "a.qcow2", "qcow2", "-P 1 0 64k")
    image.unlink()
    assert check(top).ok


def test_what_cannot_be_checked(check: Run, tmp_path: Path, image: Path) -> None:
    os.truncate(image, 100_000)
    qemu_img("convert", "-O", "vpc", tmp_path / "a.raw", tmp_path / "a.vpc")
    before = everything_in(tmp_path)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("a.raw", {}, "knows nothing of raw images; checksum and compare"),
        ("a.vpc", {}, "knows nothing of vpc images"),
        ("a.qcow2", {}, "is corrupt"),
        ("a.raw", {"format": "qcow2"}, "not in qcow2 format"),
        ("missing", {}, "missing: no such file"),
        (".", {}, "is a directory"),
    ]
    for name, args, words in cases:
        info = check(tmp_path / name, **args)
        assert (info.state, info.cause) == ("failed", Cause.ERROR), info.errmsg
        assert words in (info.errmsg or ""), info.errmsg
    assert everything_in(tmp_path) == before


def test_a_repair_has_the_image_alone(check: Run, tmp_path: Path, image: Path) -> None:
    with subprocess.Popen(["qemu-io", "-r", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(b"read 0 512\n")
        reader.stdin.flush()
        reader.stdout.readline()
        assert check(image).ok
        info = check(image, repair="all")
        assert (info.state, info.cause) == ("failed", Cause.BUSY), info.errmsg
        reader.stdin.close()


def test_what_an_abort_leaves_is_said(supervisor: Supervisor, tmp_path: Path, image: Path) -> None:
    set_refcount(image, 200, 1)
    with halt_at(supervisor, "repair", child=True) as halted:
        job = supervisor.start("check", volume=str(image), repair="all")
        halted.wait()
        assert "perhaps repaired in part" in (job.info().abort_effect or "")
        info = job.abort()
    assert info.state == "aborted"
    assert any("perhaps repaired in part" in text for text in info.warnings)
    assert status(image) in (0, 3)


def test_a_limit_holds_for_the_tables(check: Run, tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,preallocation=metadata", image, 32 * MIB)
    info = check(image, bandwidth=MIB)
    # The table of the second level has 8 bytes for each cluster: 512 KiB, of which a tenth of a second's worth is free.
    assert (info.ok, info.time_elapsed > 300) == (True, True), info.errmsg
