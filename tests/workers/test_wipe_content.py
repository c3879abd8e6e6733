"""Wipe --content: the image stays an image, and nothing of what its guest wrote is left in the file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobvisor import Cause, JobInfo, Supervisor
from jobvisor.testing import halt_at, kill_at
from support.images import MIB, everything_in, filled, identical, luks_header, overlay, qcow2, qemu_img
from support.lock_scenes import need, wait_until

MARK = b"\xa7" * 512
SIZE = 8 * MIB


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home"), types=["jobvisor_workers.testing"]) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def wipe(supervisor: Supervisor) -> Run:
    def wipe(volume: Path, **options: Any) -> JobInfo:
        return supervisor.start("wipe", volume=str(volume), content=True, **options).wait(60)

    return wipe


def image(path: Path, *options: str, format: str = "qcow2", size: int = SIZE) -> Path:
    qemu_img("create", "-q", "-f", format, *options, path, size)
    return written(path, "write -P 0xa7 64k 2M", f"write -P 0xa7 {size - 65536} 64k", format=format)


def written(path: Path, *commands: str, format: str = "qcow2") -> Path:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", format, *words, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def not_zero(path: Path) -> int:
    content = path.read_bytes()
    return len(content) - content.count(0)


def empty(path: Path, size: int = SIZE) -> bool:
    """As a guest sees it, by the format that the name says."""
    with open(path.parent / "zeroes", "wb") as file:
        file.truncate(size)
    return identical(path, path.parent / "zeroes")


def facts(path: Path) -> tuple[int, str]:
    said = msgspec.json.decode(qemu_img("info", "--output=json", path))
    return said["virtual-size"], said["format"]


def discarded(path: Path) -> None:
    """Clusters that were given back, with what was in them."""
    written(image(path), "discard 64k 1M")


def zeroed(path: Path) -> None:
    """Clusters that a flag calls zeroes, with what was in them."""
    written(image(path), "write -z 64k 1M")


def snapshot_deleted(path: Path) -> None:
    image(path)
    qemu_img("snapshot", "-c", "before", path)
    written(path, "write -P 1 64k 2M")
    qemu_img("snapshot", "-d", "before", path)


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "plain": image,
    "old": lambda path: image(path, "-o", "compat=0.10"),
    "small clusters": lambda path: image(path, "-o", "cluster_size=512"),
    "large clusters": lambda path: image(path, "-o", "cluster_size=2M"),
    "subclusters": lambda path: written(image(path, "-o", "extended_l2=on"), "discard 66k 2k", "write -P 0xa7 5M 2k"),
    "allocated": lambda path: image(path, "-o", "preallocation=falloc"),
    "narrow counts": lambda path: image(path, "-o", "refcount_bits=1"),
    "odd length": lambda path: image(path, size=SIZE - 512),
    "discarded": discarded,
    "zeroed": zeroed,
    "snapshot deleted": snapshot_deleted,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_left_in_a_qcow2(wipe: Run, tmp_path: Path, layout: str) -> None:
    volume = tmp_path / "a.qcow2"
    LAYOUTS[layout](volume)
    before, inode = facts(volume), volume.stat().st_ino
    assert MARK in volume.read_bytes()
    info = wipe(volume, verify=layout == "plain")
    assert info.ok, info.errmsg
    assert info.warnings == []
    assert not_zero(volume) < 40_000 if layout == "small clusters" else not_zero(volume) < 2000, "tables only"
    assert MARK[:32] not in volume.read_bytes()
    qemu_img("check", volume)
    assert (facts(volume), volume.stat().st_ino) == (before, inode)
    assert empty(volume, before[0])
    # It can be used on.
    qemu_img("check", written(volume, "write -P 5 3M 1M", "read -P 5 3M 1M", "read -P 0 4M 1M"))


@pytest.mark.parametrize("how", ["zlib", "zstd", "old"])
def test_compressed_data_is_not_left_either(wipe: Run, tmp_path: Path, how: str) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"".join(os.urandom(8).hex().encode() for _ in range(MIB // 16 + 32)))
    options = ["-o", "compat=0.10"] if how == "old" else ["-o", f"compression_type={how}"]
    volume = qcow2(tmp_path / "a.qcow2", raw, "-c", *options)
    assert not_zero(volume) > 500_000
    info = wipe(volume)
    assert info.ok, info.errmsg
    assert not_zero(volume) < 2000
    qemu_img("check", volume)
    assert empty(volume, MIB + 512)


@pytest.mark.parametrize("format", ["vdi", "vmdk", "vpc", "qed", "parallels", "qcow"])
def test_other_formats(wipe: Run, tmp_path: Path, format: str) -> None:
    volume = image(tmp_path / f"a.{format}", format=format)
    before = facts(volume)
    assert MARK in volume.read_bytes()
    info = wipe(volume, format=format)
    assert info.ok, info.errmsg
    assert info.warnings == [f"what the tables of {volume} do not point at any more is not overwritten"]
    assert MARK[:32] not in volume.read_bytes()
    assert facts(volume) == before
    assert empty(volume, before[0])


def test_a_backing_file_is_left_alone_and_not_pulled_in(wipe: Run, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", 4 * MIB)
    top = overlay(tmp_path / "top.qcow2", "base.raw", "raw", "-P 0xa7 1M 1M")
    content, size = base.read_bytes(), top.stat().st_size
    info = wipe(top)
    assert info.ok, info.errmsg
    assert info.warnings == [f"what {top} has from its backing file base.raw stays there, and is still seen"]
    assert base.read_bytes() == content
    assert (MARK in top.read_bytes(), top.stat().st_size) == (False, size)
    base.write_bytes(content[:MIB] + bytes(MIB) + content[2 * MIB :])
    assert identical(top, base)


def test_raw_is_wiped_as_without(wipe: Run, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", MIB + 5)
    info = wipe(volume, algorithm="dod")
    assert (info.ok, volume.read_bytes()) == (True, b"\xff" * (MIB + 5))
    assert (info.result or {})["size"] == MIB + 5


def test_other_algorithms_leave_what_they_leave(wipe: Run, tmp_path: Path) -> None:
    volume = image(tmp_path / "a.qcow2")
    info = wipe(volume, algorithm="dod")
    assert (info.result or {})["verified"] is True
    written(volume, "read -P 0xff 64k 2M", "read -P 0 3M 1M")
    assert info.data_processed == info.data_total == 4 * (info.result or {})["size"]


def test_refusals(wipe: Run, tmp_path: Path) -> None:
    shot = image(tmp_path / "shot.qcow2")
    qemu_img("snapshot", "-c", "one", shot)
    mapped = image(tmp_path / "mapped.qcow2")
    qemu_img("bitmap", "--add", mapped, "b")
    image(tmp_path / "a.vhdx", format="vhdx")
    luks_header(tmp_path / "a.luks", MIB)
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", shot, tmp_path / "a.vmdk")
    plain = image(tmp_path / "plain.qcow2")
    future = image(tmp_path / "future.qcow2")
    with open(future, "r+b") as file:
        file.seek(95)
        file.write(b"\x04")  # an autoclear feature that nobody knows yet
    before = everything_in(tmp_path)
    for name, words, options in (
        ("shot.qcow2", "it has 1 internal snapshots, which share its data; delete them first", {}),
        ("mapped.qcow2", "it has 1 bitmaps; remove them first", {}),
        ("a.vhdx", "nobody tells where in a vhdx its data lies; omit --content", {}),
        ("a.luks", "it is encrypted, and its content needs a key", {}),
        ("a.vmdk", "some of its data is compressed", {}),
        ("future.qcow2", "it has features that are not known here", {}),
        ("plain.qcow2", "--algorithm trim overwrites nothing; omit --content", {"algorithm": "trim"}),
        ("plain.qcow2", "as qed: Image not in QED format", {"format": "qed"}),
    ):
        info = wipe(tmp_path / name, **options)
        assert (info.state, info.cause) == ("failed", Cause.ERROR)
        assert words in (info.errmsg or ""), info.errmsg
    assert wipe(plain, dry_run=True).ok
    assert everything_in(tmp_path) == before


def test_options_that_say_nothing_without_it(supervisor: Supervisor, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", 4096)
    for options, words in (
        ({"format": "raw"}, "--format raw says nothing without --content"),
        ({"algorithm": "trim", "verify": True}, "--algorithm trim overwrites nothing; omit --verify"),
    ):
        info = supervisor.start("wipe", volume=str(volume), **options).wait(60)
        assert words in (info.errmsg or "")


def test_what_an_abort_leaves_is_an_image(supervisor: Supervisor, tmp_path: Path) -> None:
    volume = image(tmp_path / "a.qcow2")
    job = supervisor.start("wipe", volume=str(volume), content=True, bandwidth=4 * MIB)
    wait_until(lambda: "pass 1 of 1 at" in (job.info().abort_effect or ""), "it writes")
    info = job.abort()
    assert info.state == "aborted"
    assert any(text.endswith("some of what its guest wrote is still there") for text in info.warnings), info.warnings
    qemu_img("check", volume)


@pytest.mark.parametrize("who", ["worker", "child"])
def test_killed_while_compressed_data_is_given_up(supervisor: Supervisor, tmp_path: Path, who: Any) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"some text that becomes shorter " * 100_000)
    volume = qcow2(tmp_path / "a.qcow2", raw, "-c")
    with kill_at(supervisor, "compressed data", who=who):
        supervisor.start("wipe", volume=str(volume), content=True)
    qemu_img("check", volume)
    assert supervisor.start("wipe", volume=str(volume), content=True).wait(60).ok
    assert not_zero(volume) < 2000


@pytest.mark.parametrize("algorithm", ["zero", "random", "dod"])
def test_verify_names_the_byte_that_differs(supervisor: Supervisor, tmp_path: Path, algorithm: str) -> None:
    volume = filled(tmp_path / "a.raw", 2 * MIB)
    phase = {"zero": "pass 2 of 2: verify 0x00", "random": "pass 2 of 2: verify random"}.get(
        algorithm, "pass 4 of 4: verify 0xff"
    )
    with halt_at(supervisor, phase) as halt:
        job = supervisor.start("wipe", volume=str(volume), algorithm=algorithm, verify=True)
        halt.wait()
        with open(volume, "r+b") as file:
            file.seek(MIB + 5)
            other = bytes([file.read(1)[0] ^ 1])
            file.seek(MIB + 5)
            file.write(other)
    info = job.wait(60)
    assert (info.state, info.cause) == ("failed", Cause.IO_ERROR)
    assert f"byte {MIB + 5} reads back as 0x{other.hex()} and not" in (info.errmsg or "")
    good = supervisor.start("wipe", volume=str(volume), algorithm=algorithm, verify=True).wait(60)
    assert (good.ok, (good.result or {})["verified"]) == (True, True)
