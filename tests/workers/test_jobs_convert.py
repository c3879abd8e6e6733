"""The job type convert, as real jobs on real images."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from support.images import (
    MIB,
    about,
    everything_in,
    filesystem,
    filled,
    identical,
    luks_header,
    overlay,
    qcow2,
    qemu_img,
    scattered,
    sha256,
)
from support.lock_scenes import loop_device, need, vm, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def convert(supervisor: Supervisor) -> Run:
    def convert(source: Path, target: Path, output_format: str = "raw", **args: Any) -> JobInfo:
        fields = {"source": str(source), "target": str(target), "output_format": output_format, **args}
        return supervisor.start("convert", **fields).wait(60)

    return convert


@pytest.fixture
def done(convert: Run) -> Callable[..., dict[str, Any]]:
    def done(source: Path, target: Path, output_format: str = "raw", **args: Any) -> dict[str, Any]:
        info = convert(source, target, output_format, **args)
        assert info.ok, info.errmsg
        assert info.result is not None
        assert info.data_processed == info.data_total
        assert info.result["format"] == output_format == about(target, output_format)["format"]
        assert not list(target.parent.glob(".jobvisor-*"))
        return info.result

    return done


@pytest.fixture
def refused(convert: Run, tmp_path: Path) -> Callable[..., JobInfo]:
    """A conversion that must fail, and leave everything as it was."""

    def refused(source: Path, kind: str, *words: str, cause: Cause = Cause.ERROR, **args: Any) -> JobInfo:
        before = everything_in(tmp_path)
        info = convert(source, args.pop("target", tmp_path / "new"), kind, **args)
        assert (info.state, info.cause) == ("failed", cause), info.errmsg
        for word in words:
            assert word in (info.errmsg or ""), info.errmsg
        assert everything_in(tmp_path) == before
        return info

    return refused


@pytest.mark.parametrize("kind", ["raw", "qcow2", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels"])
def test_there_and_back(done: Any, tmp_path: Path, kind: str) -> None:
    raw = scattered(tmp_path / "a.raw", 8 * MIB)
    there, back = tmp_path / "there", tmp_path / "back.raw"
    result = done(raw, there, kind)
    assert (result["size"], result["method"] == "qemu-img") == (8 * MIB, kind != "raw")
    assert identical(raw, there, "-f", "raw", "-F", kind)
    done(there, back, format=kind)
    assert sha256(back) == sha256(raw)
    if kind not in ("vpc", "raw"):
        qemu_img("check", "-f", kind, there)


@pytest.mark.parametrize("size", [1, 4097, 2 * MIB + 512])
def test_odd_sizes(convert: Run, done: Any, tmp_path: Path, size: int) -> None:
    raw = filled(tmp_path / "a.raw", size)
    info = convert(raw, tmp_path / "a.qcow2", "qcow2")
    assert info.ok, info.errmsg
    assert bool(info.warnings) == bool(size % 512)
    done(tmp_path / "a.qcow2", tmp_path / "b.raw")
    assert (tmp_path / "b.raw").read_bytes() == raw.read_bytes().ljust(-(-size // 512) * 512, b"\0")


@pytest.mark.parametrize(
    ("kind", "args", "expected"),
    [("qcow2", {}, "zstd"), ("qcow2", {"compression_type": "zlib"}, "zlib"), ("vmdk", {}, "")],
)
def test_compression(done: Any, tmp_path: Path, kind: str, args: dict[str, str], expected: str) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"abcdefgh" * (MIB // 2))
    result = done(raw, tmp_path / "b", kind, compress=True, **args)
    assert result["allocated"] < MIB
    assert identical(raw, tmp_path / "b")
    details = about(tmp_path / "b", kind)["format-specific"]["data"]
    assert details.get("compression-type", "") == expected


def test_a_chain_becomes_flat_or_stays_one(done: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    filled(tmp_path / "base.raw", 4 * MIB)
    overlay(tmp_path / "mid.qcow2", "base.raw", "raw", "-P 3 1M 70k")
    top = overlay(tmp_path / "top.qcow2", "mid.qcow2", "qcow2", "-P 4 100k 1k", "-z 2M 64k")
    before = everything_in(tmp_path)
    flat, kept, raw = tmp_path / "flat.qcow2", tmp_path / "sub/kept.qcow2", tmp_path / "flat.raw"
    done(top, flat, "qcow2", cluster_size=128 * 1024)
    done(top, kept, "qcow2", flatten=False)
    done(top, raw)
    assert all(identical(top, image) for image in (flat, kept, raw))
    assert "backing-filename" not in about(flat, "qcow2")
    assert about(flat, "qcow2")["cluster-size"] == 128 * 1024
    assert about(kept, "qcow2")["backing-filename"] == "../mid.qcow2"
    assert kept.stat().st_blocks < flat.stat().st_blocks
    assert before.items() <= everything_in(tmp_path).items()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("how", ["metadata", "falloc", "full"])
def test_preallocation(done: Any, refused: Any, tmp_path: Path, kind: str, how: str) -> None:
    raw = scattered(tmp_path / "a.raw", 8 * MIB)
    if (kind, how) == ("raw", "metadata"):
        refused(raw, "raw", "--preallocation metadata is for qcow2, not for raw", preallocation=how)
        return
    result = done(raw, tmp_path / "b", kind, preallocation=how)
    assert (result["allocated"] >= 8 * MIB) == (how != "metadata")
    assert identical(raw, tmp_path / "b", "-f", "raw", "-F", kind)
    image = qcow2(tmp_path / "a.qcow2", raw)
    assert (done(image, tmp_path / "c", kind, preallocation=how)["allocated"] >= 8 * MIB) == (how != "metadata")
    assert identical(raw, tmp_path / "c", "-f", "raw", "-F", kind)
    if kind == "qcow2":
        qemu_img("check", tmp_path / "b")


def test_onto_a_device(done: Any, convert: Run, refused: Any, tmp_path: Path) -> None:
    raw = scattered(tmp_path / "a.raw", 4 * MIB)
    image = qcow2(tmp_path / "a.qcow2", raw)
    disk = filled(tmp_path / "disk.raw", 6 * MIB, seed=5)
    with loop_device(disk) as device:
        refused(image, "raw", "it exists already", target=device)
        refused(image, "vdi", "only raw and qcow2", target=device, replace=True)
        info = convert(image, device, replace=True)
        assert info.ok, info.errmsg
        assert info.warnings == [f"{device} is larger than {image}: its last {2 * MIB} bytes stay as they were"]
    assert disk.read_bytes()[: 4 * MIB] == raw.read_bytes()
    with loop_device(disk) as device:
        done(raw, device, "qcow2", replace=True)
        assert identical(raw, device)
    with loop_device(filled(tmp_path / "small.raw", MIB)) as device:
        refused(image, "raw", "the device has 1.0 MiB", cause=Cause.NO_SPACE, target=device, replace=True)


def test_replace(done: Any, refused: Any, tmp_path: Path) -> None:
    raw, old = filled(tmp_path / "a.raw", MIB), filled(tmp_path / "b.qcow2", 5000)
    refused(raw, "qcow2", "it exists already", "--replace", target=old)
    done(raw, old, "qcow2", replace=True)
    assert identical(raw, old)
    top = overlay(tmp_path / "top.qcow2", "b.qcow2", "qcow2")
    refused(top, "raw", "the source is based on it", target=old, replace=True)


def test_bad_input(refused: Any, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", 4 * MIB)
    half = qcow2(tmp_path / "half.qcow2", raw)
    os.truncate(half, 2 * MIB)
    top = overlay(tmp_path / "top.qcow2", "half.qcow2", "qcow2")
    luks = luks_header(tmp_path / "a.luks", 5000)
    refused(tmp_path / "missing", "raw", "missing: no such file")
    refused(raw, "raw", "no such directory", target=tmp_path / "none/new")
    refused(half, "raw", "is corrupt or cut off")
    refused(top, "raw", "half.qcow2 is corrupt or cut off")
    refused(luks, "qcow2", "needs a key")
    refused(raw, "raw", "--compress is for qcow2 and vmdk, not for raw", compress=True)
    refused(raw, "vdi", "--no-flatten is for qcow2 and qed, not for vdi", flatten=False)
    refused(raw, "qcow2", "exclude each other", compress=True, preallocation="full")
    refused(raw, "qcow2", "cannot convert", "luster size", cluster_size=1000)
    refused(raw, "qcow2", "not in qcow2 format", format="qcow2")
    with vm(raw):
        refused(raw, "qcow2", "in use by QEMU", cause=Cause.BUSY)


def test_no_room(refused: Any, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", 6 * MIB)
    image = qcow2(tmp_path / "a.qcow2", raw)
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        for source, kind in ((raw, "qcow2"), (image, "raw"), (raw, "raw"), (raw, "vdi"), (image, "vhdx")):
            info = refused(source, kind, "the filesystem has 4.0 MiB free", cause=Cause.NO_SPACE, target=where / "b")
            assert info.phase == "checks"
        full = f"cannot convert {raw} to {where}/b: No space left on device, although 4.0 MiB were free for it"
        info = refused(raw, "qcow2", full, cause=Cause.NO_SPACE, target=where / "b", compress=True)
        assert info.phase == "convert"
        assert (info.errmsg or "").endswith(f"; make room in {where}, or choose a target on another filesystem")


def test_much_room_is_not_wanted_for_little_data(convert: Run, tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", "1G")
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        info = convert(tmp_path / "a.qcow2", where / "b.raw")
        assert info.ok, info.errmsg


def test_a_dry_run_makes_nothing(convert: Run, tmp_path: Path) -> None:
    source = qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", MIB))
    before = everything_in(tmp_path)
    assert convert(source, tmp_path / "b.raw", dry_run=True).ok
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("end", ["abort", "kill"])
@pytest.mark.parametrize(("source", "kind"), [("a.raw", "raw"), ("a.raw", "qcow2"), ("a.qcow2", "raw")])
def test_an_end_on_the_way_leaves_nothing(
    supervisor: Supervisor, tmp_path: Path, source: str, kind: str, end: str
) -> None:
    qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", 32 * MIB))
    before = everything_in(tmp_path)
    args: dict[str, Any] = {"source": str(tmp_path / source), "target": str(tmp_path / "b"), "output_format": kind}
    job = supervisor.start("convert", **args, bandwidth=4 * MIB)
    wait_until(lambda: 0 < job.info().data_processed < 32 * MIB, "it converts")
    assert job.suspend().state == "suspended"
    pid = job.info().pid or 0
    if end == "abort":
        assert job.abort().state == "aborted"
    else:
        os.kill(pid, signal.SIGKILL)
        assert job.wait(60).state == "failed"
    assert everything_in(tmp_path) == before
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
