"""The job type create, as real jobs; qemu-img and qemu-io look at what they made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor, UsageError
from support.images import MIB, about, everything_in, filesystem, filled, identical, overlay, qcow2, qemu_img
from support.lock_scenes import loop_device, need, vm, wait_until

SECRET = "öpen sesame, 99 %"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def supervisor(home: Path) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(home) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def create(supervisor: Supervisor) -> Run:
    def create(target: Path, capacity: int, **args: Any) -> JobInfo:
        fields: dict[str, Any] = {
            name: str(value) if isinstance(value, Path) else value for name, value in args.items()
        }
        return supervisor.start("create", target=str(target), capacity=capacity, **fields).wait(60)

    return create


@pytest.fixture
def done(create: Run) -> Callable[..., dict[str, Any]]:
    def done(target: Path, capacity: int, **args: Any) -> dict[str, Any]:
        info = create(target, capacity, **args)
        assert info.ok, info.errmsg
        assert info.result is not None
        assert info.data_processed == (info.data_total or 0)
        assert info.result["allocation"] == (target.stat().st_blocks * 512 if target.is_file() else None)
        return info.result | {"warnings": info.warnings}

    return done


@pytest.fixture
def refused(create: Run, tmp_path: Path) -> Callable[..., JobInfo]:
    """A volume that must not come to be, and everything else is as it was."""

    def refused(capacity: int, *words: str, cause: Cause = Cause.ERROR, **args: Any) -> JobInfo:
        before = everything_in(tmp_path)
        info = create(args.pop("target", tmp_path / "new"), capacity, **args)
        assert (info.state, info.cause) == ("failed", cause), info.errmsg
        for word in words:
            assert word in (info.errmsg or ""), info.errmsg
        assert everything_in(tmp_path) == before
        return info

    return refused


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(SECRET)
    return path


@pytest.mark.parametrize("kind", ["raw", "qcow2", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels"])
def test_every_format(done: Any, tmp_path: Path, kind: str) -> None:
    target, model = tmp_path / "new", tmp_path / "model.raw"
    with open(model, "wb") as file:
        file.truncate(8 * MIB)
    result = done(target, 8 * MIB, format=kind)
    assert (result["format"], result["capacity"], result["warnings"]) == (kind, 8 * MIB, [])
    assert about(target, kind)["virtual-size"] == 8 * MIB
    assert identical(target, model, "-f", kind, "-F", "raw")
    assert target.stat().st_mode & 0o777 == 0o644
    if kind not in ("raw", "vpc"):
        qemu_img("check", "-f", kind, target)


@pytest.mark.parametrize("capacity", [0, 1, 4097])
def test_odd_sizes(done: Any, tmp_path: Path, capacity: int) -> None:
    done(tmp_path / "a.raw", capacity)
    assert (tmp_path / "a.raw").read_bytes() == bytes(capacity)
    result = done(tmp_path / "a.qcow2", capacity, format="qcow2")
    assert about(tmp_path / "a.qcow2", "qcow2")["virtual-size"] == result["capacity"] == -(-capacity // 512) * 512
    assert len(result["warnings"]) == bool(capacity % 512)


def test_allocation(done: Any, tmp_path: Path) -> None:
    for allocation in (0, MIB, 3 * MIB + 5):
        result = done(tmp_path / str(allocation), 3 * MIB + 5, allocation=allocation)
        assert allocation <= result["allocation"] <= allocation + 65536
        assert (tmp_path / str(allocation)).read_bytes() == bytes(3 * MIB + 5)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("how", ["metadata", "falloc", "full"])
def test_preallocation(done: Any, refused: Any, tmp_path: Path, kind: str, how: str) -> None:
    if (kind, how) == ("raw", "metadata"):
        refused(MIB, "--prealloc metadata is for qcow2, not for raw", prealloc=how)
        return
    target, model = tmp_path / "new", tmp_path / "model.raw"
    with open(model, "wb") as file:
        file.truncate(20 * MIB + 512)
    result = done(target, 20 * MIB + 512, format=kind, prealloc=how)
    assert (result["allocation"] >= 20 * MIB + 512) == (how != "metadata")
    assert identical(target, model, "-f", kind, "-F", "raw")
    if kind == "qcow2":
        assert json.loads(qemu_img("check", "--output=json", target))["allocated-clusters"] == 321
    if how == "full":
        # Written, not only reserved: no extent of it is marked unwritten.
        extents = subprocess.run(["filefrag", "-v", target], capture_output=True, text=True, check=True).stdout
        assert "unwritten" not in extents


def test_an_overlay(done: Any, tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base.qcow2", filled(tmp_path / "base.raw", 2 * MIB))
    os.chmod(base, 0o444)
    before = everything_in(tmp_path)
    top = tmp_path / "sub" / "top.qcow2"
    top.parent.mkdir()
    result = done(top, 0, format="qcow2", backing_vol=base, backing_vol_format="qcow2", cluster_size=131072)
    said = about(top, "qcow2")
    assert (said["backing-filename"], said["backing-filename-format"]) == (str(base), "qcow2")
    assert (said["virtual-size"], said["cluster-size"], result["warnings"]) == (2 * MIB, 131072, [])
    assert top.stat().st_mode & 0o777 == 0o644
    assert identical(top, base)
    assert before.items() <= everything_in(tmp_path).items()


@pytest.mark.parametrize("capacity", [MIB, 3 * MIB])
def test_an_overlay_of_another_size(done: Any, tmp_path: Path, capacity: int) -> None:
    base = filled(tmp_path / "base.raw", 2 * MIB)
    top = tmp_path / "top.qed"
    warnings = done(top, capacity, format="qed", backing_vol=base, backing_vol_format="raw")["warnings"]
    said = f"{top} shows only the first {MIB} of the {2 * MIB} bytes of {base}"
    assert warnings == ([said] if capacity == MIB else [])
    flat = tmp_path / "flat"
    qemu_img("convert", "-O", "raw", top, flat)
    assert flat.read_bytes() == base.read_bytes()[:capacity].ljust(capacity, b"\0")


def test_first_bytes_are_not_believed_in_silence(done: Any, tmp_path: Path) -> None:
    guest = qcow2(tmp_path / "disk.raw", filled(tmp_path / "a", MIB))
    result = done(tmp_path / "one", 0, format="qcow2", backing_vol=guest)
    assert "is taken for a qcow2 by its first bytes" in result["warnings"][0]
    result = done(tmp_path / "two", 0, format="qcow2", backing_vol=guest, backing_vol_format="raw")
    assert (result["capacity"], result["warnings"]) == (guest.stat().st_size, [])
    assert about(tmp_path / "two", "qcow2")["backing-filename-format"] == "raw"


def test_luks(supervisor: Supervisor, tmp_path: Path, key: Path, home: Path) -> None:
    model = filled(tmp_path / "model", 2 * MIB)
    plain = tmp_path / "plain"
    secret = "--object", f"secret,id=s,file={key}"
    jobs = {}
    for kind, options in (  # at once: making a key takes seconds
        ("raw", "driver=luks,key-secret=s"),
        ("qcow2", "driver=qcow2,encrypt.format=luks,encrypt.key-secret=s"),
    ):
        target = tmp_path / f"a.{kind}"
        args: dict[str, Any] = {
            "target": str(target),
            "capacity": 2 * MIB,
            "format": kind,
            "prealloc": "full",
            "iter_time": 10,
        }
        jobs[target, options] = supervisor.start("create", **args, encrypt="luks", secret_file=str(key))
    for (target, options), job in jobs.items():
        info = job.wait(60)
        assert (info.errmsg, info.warnings) == (None, [])
        assert info.result is not None
        assert (info.result["encryption"], info.result["capacity"]) == ("luks", 2 * MIB)
        assert info.result["allocation"] >= 4 * MIB - 65536
        opened = f"{options},file.filename={target}"
        qemu_img("convert", "-n", "--target-image-opts", *secret, "-f", "raw", model, opened)
        qemu_img("convert", "--image-opts", *secret, "-O", "raw", opened, plain)
        assert plain.read_bytes() == model.read_bytes()
        assert model.read_bytes()[:512] not in target.read_bytes()
    wrong = tmp_path / "wrong"
    wrong.write_text("closed")
    opened = f"driver=luks,key-secret=s,file.filename={tmp_path / 'a.raw'}"
    said = subprocess.run(
        ["qemu-img", "info", "--image-opts", "--object", f"secret,id=s,file={wrong}", opened], capture_output=True
    )
    assert said.returncode == 0, "info needs no key"
    said = subprocess.run(
        ["qemu-io", "--object", f"secret,id=s,file={wrong}", "--image-opts", opened, "-c", "read 0 1"],
        capture_output=True,
    )
    assert b"Invalid password" in said.stderr
    for path in home.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_a_secret_that_is_none(create: Run, refused: Any, tmp_path: Path, key: Path) -> None:
    luks = {"encrypt": "luks", "iter_time": 10}
    bad = tmp_path / "bad"
    for content, words in (
        (b"", "bad is empty"),
        (b"\xff\xfe", "bad is no secret: QEMU takes only text, in UTF-8"),
        (b"a\0b", "only text"),
        (bytes(70000), "bad is no secret: it has more than 65536 bytes"),
    ):
        bad.write_bytes(content)
        refused(MIB, "cannot create", words, **luks, secret_file=bad)
    refused(MIB, "missing: no such file", **luks, secret_file=tmp_path / "missing")
    refused(MIB, "is a directory", **luks, secret_file=tmp_path)
    refused(MIB, "--encrypt and --secret-file need each other", **luks)
    refused(MIB, "--encrypt and --secret-file need each other", secret_file=key)
    refused(MIB, "--iter-time says nothing without --encrypt", iter_time=10)
    refused(MIB, "--encrypt is for raw and qcow2, not for vdi", **luks, secret_file=key, format="vdi")
    bad.write_text("sesame\n")
    info = create(tmp_path / "new", MIB, **luks, secret_file=bad, dry_run=True)
    assert info.warnings == [f"the newline at the end of {bad} is part of the secret; printf writes a file without one"]


def test_nocow(done: Any, refused: Any, tmp_path: Path) -> None:
    refused(MIB, "its filesystem is no btrfs", nocow=True)
    with filesystem(tmp_path, "btrfs", 120 * MIB) as where:
        for kind in ("raw", "qcow2"):
            done(where / kind, MIB, format=kind, nocow=True)
            flags = subprocess.run(["lsattr", where / kind], capture_output=True, text=True, check=True).stdout
            assert "C" in flags.split()[0]


def test_onto_a_device(done: Any, refused: Any, tmp_path: Path) -> None:
    disk = filled(tmp_path / "disk", 4 * MIB)
    with loop_device(disk) as device:
        refused(MIB, "it exists already", target=device, format="qcow2")
        to = {"target": device, "replace": True}
        refused(MIB, "it is a raw volume already", **to)
        refused(MIB, "only a qcow2 can live there", format="vdi", **to)
        refused(MIB, "omit --prealloc", format="qcow2", prealloc="full", **to)
        done(device, 64 * MIB, format="qcow2", replace=True)
        assert about(device, "qcow2")["virtual-size"] == 64 * MIB


def test_replace(done: Any, refused: Any, tmp_path: Path) -> None:
    old = filled(tmp_path / "old", 5000)
    refused(MIB, "it exists already", "--replace", target=old)
    base = overlay(tmp_path / "base.qcow2", "old", "raw")
    based = {"target": old, "replace": True, "format": "qcow2"}
    refused(MIB, "is based on it", backing_vol=base, backing_vol_format="qcow2", **based)
    refused(MIB, "it is the same file as", backing_vol=old, backing_vol_format="raw", **based)
    base.unlink()
    done(old, MIB, replace=True)
    assert old.read_bytes() == bytes(MIB)


def test_bad_input(refused: Any, supervisor: Supervisor, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", MIB)
    (tmp_path / "loop").symlink_to(raw)
    with pytest.raises(UsageError, match="capacity"):
        supervisor.start("create", target=str(tmp_path / "new"), capacity=-1)
    refused(MIB, "no such directory", target=tmp_path / "none/new")
    refused(MIB, "is not a directory", target=raw / "new")
    refused(1 << 70, f"no file can have {1 << 70} bytes")
    refused((1 << 63) - 512, "File too large", cause=Cause.NO_SPACE)
    refused((1 << 63) - 512, "cannot create", format="qcow2")
    refused(MIB, "more than its", allocation=2 * MIB)
    refused(MIB, "missing: no such file", format="qcow2", backing_vol=tmp_path / "missing")
    refused(MIB, "is a directory", format="qcow2", backing_vol=tmp_path)
    refused(MIB, "not in qcow2 format", format="qcow2", backing_vol=raw, backing_vol_format="qcow2")
    refused(MIB, "--backing-vol is for qcow2 and qed, not for raw", backing_vol=raw)
    refused(MIB, "exclude each other", backing_vol=raw, format="qcow2", prealloc="full")
    refused(MIB, "exclude each other", allocation=1, prealloc="full")
    refused(MIB, "says nothing without --backing-vol", backing_vol_format="raw")
    refused(MIB, "luster size", format="qcow2", cluster_size=1000)
    refused(MIB, "--cluster-size is for qcow2 and qed, not for vdi", format="vdi", cluster_size=65536)
    with vm(raw):
        refused(MIB, "in use by QEMU", cause=Cause.BUSY, target=raw, replace=True)


def test_no_room(refused: Any, create: Run, tmp_path: Path) -> None:
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        target = where / "new"
        for args in (
            {"allocation": 5 * MIB},
            {"prealloc": "falloc"},
            {"prealloc": "full"},
            {"prealloc": "full", "format": "qcow2"},
        ):
            info = refused(6 * MIB, "the filesystem has 4.0 MiB free", cause=Cause.NO_SPACE, target=target, **args)
            assert info.phase == "checks"
        info = refused(4 << 40, "No space left", cause=Cause.NO_SPACE, target=target, format="vdi")
        assert info.phase == "create"
        assert create(target, 6 * MIB).ok


def test_a_dry_run_makes_nothing(create: Run, tmp_path: Path) -> None:
    target, said = tmp_path / "new", []
    for args in ({}, {"prealloc": "falloc"}, {"prealloc": "full"}, {"prealloc": "full", "format": "qcow2"}):
        info = create(target, MIB, **args, dry_run=True)
        assert info.ok, info.errmsg
        assert info.result is not None
        said.append((info.result["writes"][0]["bytes"], info.result["space"], info.result["exact"]))
    assert said[:3] == [(0, 0, True), (0, MIB, True), (MIB, MIB, True)]
    assert said[3][0] == said[3][1] > MIB
    assert not said[3][2]
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("end", ["abort", "kill"])
def test_an_end_on_the_way_leaves_nothing(supervisor: Supervisor, tmp_path: Path, kind: str, end: str) -> None:
    args: dict[str, Any] = {"target": str(tmp_path / "new"), "capacity": 64 * MIB, "format": kind}
    job = supervisor.start("create", **args, prealloc="full", bandwidth=8 * MIB)
    wait_until(lambda: job.info().phase == "fill" and job.info().data_processed > 0, "it fills")
    assert job.suspend().state == "suspended"
    stopped = job.info()
    assert 0 < stopped.data_processed < (stopped.data_total or 0)
    if end == "abort":
        assert job.abort().state == "aborted"
    else:
        os.kill(stopped.pid or 0, signal.SIGKILL)
        assert job.wait(60).state == "failed"
    assert everything_in(tmp_path) == {}
    again = job.retry()
    assert again.abort().state == "aborted"
    assert everything_in(tmp_path) == {}


def test_suspended_and_resumed_it_completes(supervisor: Supervisor, tmp_path: Path) -> None:
    target = tmp_path / "new"
    job = supervisor.start("create", target=str(target), capacity=8 * MIB, prealloc="full", bandwidth=4 * MIB)
    wait_until(lambda: job.info().phase == "fill", "it fills")
    job.suspend()
    assert not target.exists()
    job.resume()
    assert job.wait(60).ok
    assert target.read_bytes() == bytes(8 * MIB)
