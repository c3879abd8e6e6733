"""The job type clone, as real jobs on real images."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
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
from support.lock_scenes import loop_device, need, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Clone = Callable[..., JobInfo]


@pytest.fixture
def clone(supervisor: Supervisor) -> Clone:
    def clone(source: Path, target: Path, **args: Any) -> JobInfo:
        return supervisor.start("clone", source=str(source), target=str(target), **args).wait(60)

    return clone


@pytest.fixture
def done(clone: Clone) -> Callable[..., dict[str, Any]]:
    """A clone that must complete; its result."""

    def done(source: Path, target: Path, **args: Any) -> dict[str, Any]:
        info = clone(source, target, **args)
        assert info.ok, info.errmsg
        assert info.result is not None
        assert info.data_processed == info.data_total
        return info.result

    return done


@pytest.fixture
def refused(clone: Clone, tmp_path: Path) -> Callable[..., JobInfo]:
    """A clone that must fail, and leave everything as it was."""

    def refused(source: Path, target: Path, *words: str, cause: Cause = Cause.ERROR, **args: Any) -> JobInfo:
        before = everything_in(tmp_path)
        info = clone(source, target, **args)
        assert (info.state, info.cause) == ("failed", cause), info.errmsg
        assert info.errmsg is not None
        assert "\n" not in info.errmsg
        for word in words:
            assert word in info.errmsg
        assert everything_in(tmp_path) == before
        return info

    return refused


# --- raw ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 511, 4095, 4097, 3 * MIB + 1, 40 * MIB + 513])
def test_a_raw_image_is_exact_and_as_sparse_as_it_was(done: Any, tmp_path: Path, size: int) -> None:
    source = scattered(tmp_path / "a.raw", size)
    result = done(source, tmp_path / "b.raw")
    assert sha256(tmp_path / "b.raw") == sha256(source)
    assert result["size"] == size == os.path.getsize(tmp_path / "b.raw")
    assert result["format"] == "raw"
    spaces = os.stat(source).st_blocks * 512, os.stat(tmp_path / "b.raw").st_blocks * 512
    assert spaces[1] <= spaces[0] + 65536
    assert result["allocated"] == spaces[1]


def test_no_sparse_stores_the_holes_and_sparse_leaves_out_zeroes(done: Any, tmp_path: Path) -> None:
    source = scattered(tmp_path / "a.raw", 16 * MIB)
    full, lean = tmp_path / "full.raw", tmp_path / "lean.raw"
    assert done(source, full, sparse=False)["allocated"] >= 16 * MIB
    assert done(full, lean, sparse=True)["allocated"] < 8 * MIB
    assert sha256(full) == sha256(lean) == sha256(source)


def test_the_mode_is_the_sources_without_the_umask(done: Any, tmp_path: Path) -> None:
    source = filled(tmp_path / "a.raw", 5000)
    source.chmod(0o666)
    old = os.umask(0o027)
    try:
        done(source, tmp_path / "b.raw")
    finally:
        os.umask(old)
    assert (tmp_path / "b.raw").stat().st_mode & 0o777 == 0o640


def test_a_raw_disk_that_looks_like_a_qcow2_is_copied_as_raw_when_told(done: Any, refused: Any, tmp_path: Path) -> None:
    secret = filled(tmp_path / "secret.raw", MIB)
    disguise = overlay(tmp_path / "guest.raw", "secret.raw", "raw")
    result = done(disguise, tmp_path / "b.raw", format="raw")
    assert result["format"] == "raw"
    assert sha256(tmp_path / "b.raw") == sha256(disguise) != sha256(secret)


def test_reflink_shares_blocks_where_the_filesystem_can(done: Any, tmp_path: Path) -> None:
    with filesystem(tmp_path, "xfs", 400 * MIB) as where:
        source = filled(where / "a.raw", 40 * MIB + 7)
        result = done(source, where / "b.raw", reflink=True)
        assert result["method"] == "reflink"
        assert sha256(where / "b.raw") == sha256(source)
        image = qcow2(where / "a.qcow2", source)
        qemu_img("snapshot", "-c", "kept", image)
        assert done(image, where / "b.qcow2", reflink=True)["method"] == "reflink"
        assert sha256(where / "b.qcow2") == sha256(image)
        assert done(source, where / "c.raw", reflink=False)["method"] != "reflink"


def test_reflink_that_cannot_be_is_an_error(refused: Any, tmp_path: Path) -> None:
    with filesystem(tmp_path, "tmpfs", 8 * MIB) as where:
        source = filled(where / "a.raw", MIB)
        refused(source, where / "b.raw", "cannot share blocks", reflink=True)
        refused(source, where / "b.raw", "--reflink and --no-sparse", reflink=True, sparse=False)


# --- qcow2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=4096,refcount_bits=1",
        "lazy_refcounts=on,cluster_size=2M",
        "extended_l2=on,compression_type=zstd,cluster_size=128k",
    ],
)
def test_a_qcow2_keeps_its_content_and_properties(done: Any, tmp_path: Path, options: str) -> None:
    source = qcow2(tmp_path / "a.qcow2", scattered(tmp_path / "a.raw", 24 * MIB), "-o", options)
    result = done(source, tmp_path / "b.qcow2")
    assert identical(source, tmp_path / "b.qcow2")
    qemu_img("check", tmp_path / "b.qcow2")
    old, new = about(source), about(tmp_path / "b.qcow2")
    for key in ("format", "virtual-size", "cluster-size", "format-specific"):
        assert new[key] == old[key]
    assert result["method"] == "qemu-img"
    assert result["size"] == 24 * MIB
    assert result["allocated"] <= os.stat(source).st_blocks * 512 + 4 * MIB


def test_a_compressed_qcow2(done: Any, tmp_path: Path) -> None:
    source = qcow2(tmp_path / "a.qcow2", scattered(tmp_path / "a.raw", 8 * MIB), "-c")
    done(source, tmp_path / "b.qcow2")
    assert identical(source, tmp_path / "b.qcow2")


def test_a_qcow2_that_was_not_closed(done: Any, tmp_path: Path) -> None:
    source = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", source, "4M")
    crash = ["qemu-io", "-c", "write -P 7 1M 1M", "-c", "flush", "-c", "abort", str(source)]
    assert subprocess.run(crash, capture_output=True).returncode == -signal.SIGABRT
    assert about(source)["dirty-flag"]
    done(source, tmp_path / "b.qcow2")
    assert identical(source, tmp_path / "b.qcow2")
    assert not about(tmp_path / "b.qcow2")["dirty-flag"]


@pytest.mark.parametrize("size", [0, 512, 33 * 512])
def test_a_tiny_qcow2(done: Any, tmp_path: Path, size: int) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", size)
    assert done(tmp_path / "a.qcow2", tmp_path / "b.qcow2")["size"] == size
    assert about(tmp_path / "b.qcow2")["virtual-size"] == size


def test_no_sparse_stores_every_cluster(done: Any, tmp_path: Path) -> None:
    source = qcow2(tmp_path / "a.qcow2", scattered(tmp_path / "a.raw", 8 * MIB))
    assert done(source, tmp_path / "b.qcow2", sparse=False)["allocated"] >= 8 * MIB
    assert identical(source, tmp_path / "b.qcow2")


def test_a_backing_chain_is_kept_with_relative_names(done: Any, tmp_path: Path) -> None:
    for name in ("images", "base", "clones"):
        (tmp_path / name).mkdir()
    filled(tmp_path / "base/base.raw", 12 * MIB)
    overlay(tmp_path / "base/mid.qcow2", "base.raw", "raw", "-P 7 1M 300k", "-z 6M 1M")
    source = overlay(tmp_path / "images/top.qcow2", "../base/mid.qcow2", "qcow2", "-P 9 1100k 1M", "-z 0 5000")
    qemu_img("resize", "-q", source, "20M")
    near, far = tmp_path / "images/near.qcow2", tmp_path / "clones/far.qcow2"
    for target, name in (
        (near, "../base/mid.qcow2"),
        (far, "../base/mid.qcow2"),
        (tmp_path / "t.qcow2", "base/mid.qcow2"),
    ):
        done(source, target)
        assert about(target)["backing-filename"] == name
        assert about(target)["backing-filename-format"] == "qcow2"
        assert identical(source, target)
        # Nothing of what lies below was copied up.
        assert os.stat(target).st_blocks <= os.stat(source).st_blocks + 256


def test_an_absolute_backing_name_is_kept(done: Any, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", MIB)
    (tmp_path / "there").mkdir()
    source = overlay(tmp_path / "a.qcow2", str(base), "raw", "-P 1 0 64k")
    done(source, tmp_path / "there/b.qcow2")
    assert about(tmp_path / "there/b.qcow2")["backing-filename"] == str(base)


def test_a_chain_through_links_leads_to_the_same_files(done: Any, tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    filled(tmp_path / "real/base.raw", MIB)
    overlay(tmp_path / "real/deep/a.qcow2", "../base.raw", "raw", "-P 1 0 64k")
    (tmp_path / "out").symlink_to("real")
    done(tmp_path / "link/a.qcow2", tmp_path / "out/b.qcow2")
    assert about(tmp_path / "real/b.qcow2")["backing-filename"] == "base.raw"
    assert identical(tmp_path / "link/a.qcow2", tmp_path / "out/b.qcow2")


def test_a_chain_longer_than_the_runtime_looks(done: Any, tmp_path: Path) -> None:
    filled(tmp_path / "0", MIB)
    for number in range(1, 31):
        overlay(
            tmp_path / str(number), str(number - 1), "raw" if number == 1 else "qcow2", f"-P {number} {number * 20}k 9k"
        )
    done(tmp_path / "30", tmp_path / "clone")
    assert identical(tmp_path / "30", tmp_path / "clone")


def test_backing_files_are_locked_while_it_runs(supervisor: Supervisor, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", 8 * MIB)
    source = overlay(tmp_path / "a.qcow2", "base.raw", "raw", "-P 1 0 8M")
    job = supervisor.start("clone", source=str(source), target=str(tmp_path / "b.qcow2"), bandwidth=MIB)
    wait_until(lambda: job.info().phase == "copy", "it copies")
    assert subprocess.run(["flock", "-n", "-x", base, "true"]).returncode == 1
    assert subprocess.run(["flock", "-n", "-s", base, "true"]).returncode == 0
    job.abort()
    assert not (tmp_path / "b.qcow2").exists()


def test_what_a_clone_does_not_carry_is_said(clone: Clone, tmp_path: Path) -> None:
    source = qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", MIB))
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, source)
    qemu_img("bitmap", "--add", source, "dirty")
    info = clone(source, tmp_path / "b.qcow2")
    assert info.ok
    assert [text.split(" has ")[1] for text in info.warnings] == [
        "2 internal snapshots, which the clone does not carry",
        "1 bitmaps, which the clone does not carry",
    ]


@pytest.mark.parametrize("target", ["qed", "vdi", "vmdk", "vpc", "vhdx", "qcow", "parallels"])
def test_other_formats(done: Any, tmp_path: Path, target: str) -> None:
    raw = scattered(tmp_path / "a.raw", 24 * MIB)
    options = {"vpc": "force_size=on", "vmdk": "adapter_type=lsilogic"}.get(target)
    qemu_img("convert", "-O", target, *(["-o", options] if options else []), raw, tmp_path / "a")
    result = done(tmp_path / "a", tmp_path / "b")
    assert result["format"] == about(tmp_path / "b")["format"] == target
    assert about(tmp_path / "b")["virtual-size"] == 24 * MIB
    assert identical(raw, tmp_path / "b", "-F", target)
    if target == "vmdk":
        assert b'adapterType = "lsilogic"' in (tmp_path / "b").read_bytes()[:65536]


def test_an_encrypted_image_is_copied_byte_by_byte(done: Any, tmp_path: Path) -> None:
    secret = ["--object", "secret,id=key,data=abc", "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=key"]
    qemu_img("create", "-q", *secret, tmp_path / "a.qcow2", "1M")
    luks_header(tmp_path / "a.luks", MIB)
    for name, kind in (("a.qcow2", "qcow2"), ("a.luks", "luks")):
        assert done(tmp_path / name, tmp_path / f"clone-{name}")["format"] == kind
        assert sha256(tmp_path / f"clone-{name}") == sha256(tmp_path / name)


# --- devices -----------------------------------------------------------------------------------------------------


def test_from_a_device_and_onto_a_device(done: Any, clone: Clone, refused: Any, tmp_path: Path) -> None:
    source = filled(tmp_path / "source.raw", 8 * MIB)
    disk = filled(tmp_path / "disk.raw", 8 * MIB + 4096, seed=2)
    with loop_device(source) as read, loop_device(disk) as written:
        assert done(read, tmp_path / "copy.raw")["size"] == 8 * MIB
        refused(read, written, "it exists already", "--replace")
        info = clone(read, written, replace=True)
        assert info.ok, info.errmsg
        assert info.warnings == [f"{written} is larger than {read}: its last 4096 bytes stay as they were"]
    assert sha256(tmp_path / "copy.raw") == sha256(source)
    assert disk.read_bytes()[: 8 * MIB] == source.read_bytes()


def test_a_qcow2_onto_a_device(done: Any, tmp_path: Path) -> None:
    filled(tmp_path / "base.raw", 4 * MIB)
    source = overlay(tmp_path / "a.qcow2", "base.raw", "raw", "-P 1 1M 2M", "-z 3M 64k")
    disk = filled(tmp_path / "disk.raw", 8 * MIB)
    with loop_device(disk) as device:
        assert done(source, device, replace=True)["format"] == "qcow2"
        assert about(device)["backing-filename"] == str(tmp_path / "base.raw")
        assert identical(source, device)


def test_a_device_that_is_too_small_is_not_touched(refused: Any, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", 4 * MIB + 512)
    image = qcow2(tmp_path / "a.qcow2", raw)
    vdi = tmp_path / "a.vdi"
    qemu_img("convert", "-O", "vdi", raw, vdi)
    with loop_device(filled(tmp_path / "disk.raw", 4 * MIB)) as device:
        refused(raw, device, f"needs {4 * MIB + 512} bytes", cause=Cause.NO_SPACE, replace=True)
        refused(image, device, "the device has 4.0 MiB", cause=Cause.NO_SPACE, replace=True)
        refused(vdi, device, "only raw and qcow2", replace=True)


def test_what_an_abort_leaves_of_a_device_is_said_in_time(supervisor: Supervisor, tmp_path: Path) -> None:
    source = filled(tmp_path / "a.raw", 32 * MIB)
    with loop_device(filled(tmp_path / "disk.raw", 32 * MIB, seed=3)) as device:
        job = supervisor.start("clone", source=str(source), target=str(device), replace=True, bandwidth=4 * MIB)
        wait_until(lambda: job.info().phase == "copy", "it copies")
        effect = f"partly overwritten: {device} holds neither its old content nor the clone"
        assert job.info().abort_effect == effect
        assert effect in job.abort().warnings


# --- replace -----------------------------------------------------------------------------------------------------


def test_replace_gives_up_a_file_only_when_the_clone_is_complete(done: Any, tmp_path: Path) -> None:
    source, target = filled(tmp_path / "a.raw", MIB), filled(tmp_path / "b.raw", 5000, seed=2)
    other = tmp_path / "other-name"
    os.link(target, other)
    old = sha256(target)
    done(source, target, replace=True)
    assert sha256(target) == sha256(source)
    assert sha256(other) == old


def test_replace_of_what_the_source_is_based_on(refused: Any, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", MIB)
    source = overlay(tmp_path / "a.qcow2", "base.raw", "raw", "-P 1 0 64k")
    refused(source, base, "the source is based on it", replace=True)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_sources_and_targets_that_make_no_sense(refused: Any, tmp_path: Path) -> None:
    source = filled(tmp_path / "a.raw", 5000)
    (tmp_path / "dir").mkdir()
    (tmp_path / "taken").write_text("precious")
    (tmp_path / "link").symlink_to("a.raw")
    os.mkfifo(tmp_path / "pipe")
    new = tmp_path / "new"
    refused(tmp_path / "missing", new, "missing: no such file")
    refused(tmp_path / "dir", new, "is a directory")
    refused(tmp_path / "pipe", new, "is a pipe")
    refused(source, tmp_path / "taken", "it exists already")
    refused(source, tmp_path / "taken/new", "not a directory")
    refused(source, tmp_path / "none/new", "no such directory")
    refused(source, tmp_path / "dir", "is a directory")
    refused(source, source, "same file")
    refused(source, tmp_path / "link", "same file", replace=True)


def test_a_read_only_directory(refused: Any, tmp_path: Path) -> None:
    source = filled(tmp_path / "a.raw", 5000)
    with filesystem(tmp_path, "tmpfs", MIB) as where:
        done = subprocess.run(["mount", "-o", "remount,ro", where], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        refused(source, where / "b.raw", "cannot create", "the filesystem is read-only")


def test_corrupt_images(refused: Any, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", 8 * MIB)
    new = tmp_path / "new"
    image = qcow2(tmp_path / "a.qcow2", raw)
    half = Path(shutil.copy(image, tmp_path / "half.qcow2"))
    os.truncate(half, 4 * MIB)
    refused(half, new, "half.qcow2 is corrupt or cut off")
    stub = tmp_path / "stub.qcow2"
    stub.write_bytes(image.read_bytes()[:60])
    refused(stub, new, "cannot clone", "as qcow2", "--format raw")
    scratched = Path(shutil.copy(image, tmp_path / "scratched.qcow2"))
    with open(scratched, "r+b") as file:
        file.seek(3 * 65536)
        file.write(b"\x7f" * 65536)
    refused(scratched, new, "is corrupt or cut off")
    huge = Path(shutil.copy(image, tmp_path / "huge.qcow2"))
    with open(huge, "r+b") as file:
        file.seek(24)
        file.write(b"\x7f" + b"\xff" * 7)
    refused(huge, new, "cannot clone")
    vdi = tmp_path / "a.vdi"
    qemu_img("convert", "-O", "vdi", raw, vdi)
    os.truncate(vdi, 4 * MIB)
    refused(vdi, new, "is cut off")
    refused(raw, new, "cannot clone", "not in qcow2 format", format="qcow2")


def test_images_in_several_files_are_refused(refused: Any, tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data.raw", tmp_path / "a.qcow2", "1M")
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "a.vmdk", "1M")
    refused(tmp_path / "a.qcow2", tmp_path / "new", "data.raw; that is not supported")
    refused(tmp_path / "a.vmdk", tmp_path / "new", "data lies in other files")


def test_broken_chains(refused: Any, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", MIB)
    new = tmp_path / "new"
    source = overlay(tmp_path / "a.qcow2", "base.raw", "raw")
    base.rename(tmp_path / "moved.raw")
    refused(source, new, "base.raw, the backing file of", "does not exist")
    (tmp_path / "base.raw").mkdir()
    refused(source, new, "is a directory")
    (tmp_path / "base.raw").rmdir()
    qemu_img("rebase", "-u", "-F", "qcow2", "-b", "b.qcow2", source)
    overlay(tmp_path / "b.qcow2", "moved.raw", "raw")
    qemu_img("rebase", "-u", "-F", "qcow2", "-b", "a.qcow2", tmp_path / "b.qcow2")
    refused(source, new, "loop")
    qemu_img("rebase", "-u", "-F", "raw", "-b", "nbd://127.0.0.1/x", source)
    refused(source, new, "nbd://127.0.0.1/x, no file on this machine")


# --- no space ----------------------------------------------------------------------------------------------------


def test_no_space_is_known_before_the_first_byte(refused: Any, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", 6 * MIB)
    image = qcow2(tmp_path / "a.qcow2", raw)
    packed = tmp_path / "packed.qcow2"
    qemu_img(
        "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", scattered(tmp_path / "s.raw", 40 * MIB), packed
    )
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        for source in (raw, image):
            info = refused(source, where / "b", "needs 6.0 MiB, the filesystem has 4.0 MiB free", cause=Cause.NO_SPACE)
            assert info.phase == "checks"
        refused(image, where / "b", "needs", cause=Cause.NO_SPACE, sparse=False)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_no_space_on_the_way_leaves_nothing(refused: Any, tmp_path: Path, kind: str) -> None:
    raw = filled(tmp_path / "a.raw", 6 * MIB)
    source = raw if kind == "raw" else qcow2(tmp_path / "a.qcow2", raw)
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        full = f"to {where}/b: No space left on device, although 4.0 MiB were free for it; make room in {where}"
        info = refused(source, where / "b", full, cause=Cause.NO_SPACE, sparse=True)
        assert info.phase == "copy"
        wait_until(lambda: os.statvfs(where).f_bfree * 4096 >= 3.9 * MIB, "the space is given back")


def test_sparse_tries_where_zeroes_make_it_fit(done: Any, tmp_path: Path) -> None:
    raw = tmp_path / "a.raw"
    raw.write_bytes(bytes(6 * MIB))
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        assert done(raw, where / "b.raw", sparse=True)["allocated"] < MIB


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_file_size_limit(tmp_path: Path, kind: str) -> None:
    raw = filled(tmp_path / "a.raw", 6 * MIB)
    source = raw if kind == "raw" else qcow2(tmp_path / "a.qcow2", raw)
    before = everything_in(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    home = tmp_path.parent / f"{tmp_path.name}-home"
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * MIB, limits[1]))
    try:
        with Supervisor(home) as limited:
            info = limited.start("clone", source=str(source), target=str(tmp_path / "b")).wait(60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        shutil.rmtree(home)
    assert info.cause == Cause.NO_SPACE, info.errmsg
    assert "File too large" in (info.errmsg or "")
    assert everything_in(tmp_path) == before


# --- what is told ------------------------------------------------------------------------------------------------


def test_a_dry_run_looks_and_makes_nothing(clone: Clone, tmp_path: Path) -> None:
    source = qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", MIB))
    before = everything_in(tmp_path)
    assert clone(source, tmp_path / "b.qcow2", dry_run=True).ok
    assert everything_in(tmp_path) == before


def test_progress_under_a_limit_counts_what_was_written(supervisor: Supervisor, tmp_path: Path) -> None:
    source = qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", 12 * MIB))
    job = supervisor.start("clone", source=str(source), target=str(tmp_path / "b.qcow2"), bandwidth=6 * MIB)
    seen = 0

    def true_to_the_end() -> bool:
        nonlocal seen
        info = job.info()
        if info.final or info.pid is None or info.phase != "copy":
            return info.final
        written = [os.stat(f"/proc/{info.pid}/fd/{fd}") for fd in unnamed_of(info.pid, tmp_path)]
        assert not written or info.data_processed <= sum(facts.st_blocks for facts in written) * 512
        seen += bool(written and info.data_processed)
        return False

    wait_until(true_to_the_end, "its end")
    assert job.info().ok
    assert seen > 2


def unnamed_of(pid: int, directory: Path) -> list[str]:
    """Descriptors of files without a name in that directory."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
            if name.startswith(f"{directory}/") and name.endswith(" (deleted)"):
                found.append(fd)
    return found


def test_progress_of_qemu_img_is_relayed(supervisor: Supervisor, tmp_path: Path) -> None:
    source = qcow2(tmp_path / "a.qcow2", filled(tmp_path / "a.raw", 64 * MIB))
    job = supervisor.start("clone", source=str(source), target=str(tmp_path / "b.qcow2"), bandwidth=48 * MIB)
    seen: set[int] = set()

    def halfway() -> bool:
        info = job.info()
        seen.add(info.data_processed)
        return info.final or len({value for value in seen if 0 < value < 64 * MIB}) > 2

    wait_until(halfway, "progress")
    assert job.info().data_total == 64 * MIB
    assert job.wait(60).ok
    assert len({value for value in seen if 0 < value < 64 * MIB}) > 2
