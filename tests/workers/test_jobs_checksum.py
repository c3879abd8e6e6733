"""The job type checksum, as real jobs on real images."""

from __future__ import annotations

import hashlib
import os
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from jobvisor_workers.jobs.checksum import Checksum
from support.images import MIB, everything_in, filled, overlay, qcow2, qemu_img, scattered
from support.lock_scenes import loop_device, need, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def checksum(supervisor: Supervisor) -> Run:
    def checksum(volume: Path, **args: Any) -> JobInfo:
        return supervisor.start("checksum", volume=str(volume), **args).wait(60)

    return checksum


@pytest.fixture
def done(checksum: Run) -> Callable[..., dict[str, Any]]:
    def done(volume: Path, **args: Any) -> dict[str, Any]:
        info = checksum(volume, **args)
        assert info.ok, info.errmsg
        assert info.result is not None
        assert info.data_processed == info.data_total == info.result["size"]
        return info.result

    return done


def content(image: Path, algorithm: str = "sha256") -> str:
    """The digest of what qemu-img makes a raw file of."""
    raw = image.with_name(f"{image.name}.content")
    qemu_img("convert", "-O", "raw", image, raw)
    value = hashlib.new(algorithm, raw.read_bytes()).hexdigest()
    raw.unlink()
    return value


@pytest.mark.parametrize("size", [0, 1, 4097, 20 * MIB + 513])
def test_the_digest_of_a_file(done: Any, tmp_path: Path, size: int) -> None:
    volume = scattered(tmp_path / "a.raw", size)
    expected = {"algorithm": "sha512", "digest": hashlib.sha512(volume.read_bytes()).hexdigest(), "size": size}
    assert done(volume, algorithm="sha512") == {**expected, "content": False}
    assert done(volume, algorithm="sha512", content=True) == {**expected, "content": True}


@pytest.mark.parametrize("algorithm", typing.get_args(typing.get_type_hints(Checksum)["algorithm"]))
def test_every_algorithm(done: Any, tmp_path: Path, algorithm: str) -> None:
    raw = scattered(tmp_path / "a.raw", 3 * MIB + 512)
    image = qcow2(tmp_path / "a.qcow2", raw)
    one = done(raw, algorithm=algorithm)
    assert done(image, algorithm=algorithm, content=True) == {**one, "content": True}
    assert done(image, algorithm=algorithm)["digest"] != one["digest"]
    if algorithm in hashlib.algorithms_available:
        assert one["digest"] == hashlib.new(algorithm, raw.read_bytes()).hexdigest()


def test_a_device(done: Any, tmp_path: Path) -> None:
    disk = filled(tmp_path / "disk.raw", 3 * MIB)
    with loop_device(disk) as device:
        assert done(device)["digest"] == hashlib.sha256(disk.read_bytes()).hexdigest()
    image = qcow2(tmp_path / "a.qcow2", disk)
    os.truncate(image, 8 * MIB)
    with loop_device(image) as device:
        assert done(device, content=True)["digest"] == hashlib.sha256(disk.read_bytes()).hexdigest()


def test_the_content_of_a_chain(done: Any, tmp_path: Path) -> None:
    filled(tmp_path / "base.raw", 5 * MIB)
    (tmp_path / "sub").mkdir()
    overlay(tmp_path / "mid.qcow2", "base.raw", "raw", "-P 3 1M 70k", "-z 2M 1M")
    top = overlay(tmp_path / "sub/top.qcow2", "../mid.qcow2", "qcow2", "-P 4 100k 1k")
    qemu_img("resize", "-q", top, "9M")
    assert done(top, content=True)["digest"] == content(top)


@pytest.mark.parametrize("size", [0, 512])
def test_a_tiny_qcow2(done: Any, tmp_path: Path, size: int) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", size)
    assert done(tmp_path / "a.qcow2", content=True)["digest"] == hashlib.sha256(bytes(size)).hexdigest()


@pytest.mark.parametrize("kind", ["vdi", "vmdk", "vhdx", "qed"])
def test_other_formats(done: Any, tmp_path: Path, kind: str) -> None:
    raw = scattered(tmp_path / "a.raw", 6 * MIB)
    qemu_img("convert", "-O", kind, raw, tmp_path / "a")
    assert done(tmp_path / "a", content=True)["digest"] == done(raw)["digest"]


def test_a_disguised_raw_disk(done: Any, tmp_path: Path) -> None:
    filled(tmp_path / "secret.raw", MIB)
    guest = overlay(tmp_path / "guest.raw", "secret.raw", "raw")
    assert done(guest, content=True, format="raw")["digest"] == hashlib.sha256(guest.read_bytes()).hexdigest()


def test_what_cannot_be_read(checksum: Run, tmp_path: Path) -> None:
    image = qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", 4 * MIB))
    half = Path(shutil.copy(image, tmp_path / "half.qcow2"))
    os.truncate(half, 2 * MIB)
    bottom = overlay(tmp_path / "top.qcow2", "half.qcow2", "qcow2")
    secret = ["--object", "secret,id=key,data=abc", "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=key"]
    qemu_img("create", "-q", *secret, tmp_path / "e.qcow2", "1M")
    before = everything_in(tmp_path)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("missing", {}, "missing: no such file"),
        (".", {}, "is a directory"),
        ("half.qcow2", {"content": True}, "half.qcow2 is corrupt or cut off"),
        (bottom.name, {"content": True}, "half.qcow2 is corrupt or cut off"),
        ("e.qcow2", {"content": True}, "e.qcow2 is encrypted"),
        ("a.raw", {"content": True, "format": "qcow2"}, "not in qcow2 format"),
        ("a.raw", {"format": "raw"}, "says nothing without --content"),
    ]
    for name, args, words in cases:
        info = checksum(tmp_path / name, **args)
        assert (info.state, info.cause) == ("failed", Cause.ERROR), (name, info.errmsg)
        assert words in (info.errmsg or "")
    assert everything_in(tmp_path) == before


def test_an_abort_ends_the_child_too(supervisor: Supervisor, tmp_path: Path) -> None:
    image = qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", 16 * MIB))
    job = supervisor.start("checksum", volume=str(image), content=True, bandwidth=2 * MIB)
    wait_until(lambda: 0 < job.info().data_processed < 16 * MIB, "it reads")
    pid = job.info().pid
    info = job.abort()
    assert info.state == "aborted"
    with pytest.raises(ProcessLookupError):
        os.killpg(pid or 0, 0)
