"""The job type commit, as real jobs on real images."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from support.images import MIB, everything_in, filesystem, filled, identical, overlay, qcow2, qemu_img, sha256
from support.lock_scenes import need, vm, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def commit(supervisor: Supervisor) -> Run:
    def commit(volume: Path, **args: Any) -> JobInfo:
        return supervisor.start("commit", volume=str(volume), **args).wait(60)

    return commit


def flat(image: Path) -> Path:
    """What a guest sees in it, now."""
    raw = image.with_name(f"{image.name}.flat")
    qemu_img("convert", "-O", "raw", image, raw)
    return raw


def leaks_at_most(image: Path) -> bool:
    return subprocess.run(["qemu-img", "check", image], capture_output=True).returncode in (0, 3)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_the_base_becomes_what_the_overlay_is(commit: Run, tmp_path: Path, kind: str) -> None:
    raw = filled(tmp_path / "base.raw", 4 * MIB)
    base = raw if kind == "raw" else qcow2(tmp_path / "base.qcow2", raw)
    top = overlay(tmp_path / "top.qcow2", base.name, kind, "-P 1 0 64k", "-z 1M 1M", "-P 2 3M 700")
    qemu_img("resize", "-q", top, "5M")
    before, expected = sha256(top), flat(top)
    info = commit(top)
    assert (info.ok, info.abort_effect) == (True, None), info.errmsg
    assert info.data_processed == info.data_total == 5 * MIB
    assert info.result == {"volume": str(top), "base": str(base), "size": 5 * MIB}
    assert f"{base} grows from {4 * MIB} to {5 * MIB} bytes" in info.warnings
    assert identical(base, expected, "-f", kind)
    assert identical(top, expected)
    assert sha256(top) == before


def test_to_a_base_further_down(commit: Run, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", 4 * MIB)
    mid = overlay(tmp_path / "mid.qcow2", "base.raw", "raw", "-P 3 1M 70k")
    top = overlay(tmp_path / "top.qcow2", "mid.qcow2", "qcow2", "-P 4 100k 1k")
    expected, untouched = flat(top), sha256(mid)
    info = commit(top, base=str(base))
    assert info.ok, info.errmsg
    assert f"{mid} lies between, and cannot be used alone any more" in info.warnings
    assert sha256(base) == sha256(expected)
    assert sha256(mid) == untouched
    assert identical(top, expected)


def test_bad_input(commit: Run, tmp_path: Path) -> None:
    raw = filled(tmp_path / "base.raw", 4 * MIB)
    other = filled(tmp_path / "other.raw", MIB)
    top = overlay(tmp_path / "top.qcow2", "base.raw", "raw", "-P 1 0 64k")
    lost = overlay(tmp_path / "lost.qcow2", "other.raw", "raw")
    cut = qcow2(tmp_path / "cut.qcow2", raw)
    os.truncate(cut, 2 * MIB)
    on_cut = overlay(tmp_path / "on_cut.qcow2", "cut.qcow2", "qcow2")
    other.unlink()
    before = everything_in(tmp_path)
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (raw, {}, "it has no backing file"),
        (top, {"base": str(cut)}, "none of its backing files"),
        (top, {"base": str(top)}, "the same file"),
        (top, {"base": str(tmp_path / "missing")}, "missing: no such file"),
        (lost, {}, "other.raw, the backing file of"),
        (on_cut, {}, "cut.qcow2 is corrupt or cut off"),
        (tmp_path / "missing", {}, "missing: no such file"),
    ]
    for volume, args, words in cases:
        info = commit(volume, **args)
        assert (info.state, info.cause) == ("failed", Cause.ERROR), info.errmsg
        assert words in (info.errmsg or ""), info.errmsg
    with vm(raw):
        info = commit(top)
        assert (info.cause, "in use by QEMU" in (info.errmsg or "")) == (Cause.BUSY, True), info.errmsg
    assert commit(top, dry_run=True).ok
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("end", ["abort", "kill"])
def test_whatever_ends_it_the_overlay_is_whole(
    supervisor: Supervisor, commit: Run, tmp_path: Path, kind: str, end: str
) -> None:
    base = filled(tmp_path / "base.raw", 16 * MIB)
    if kind == "qcow2":
        base = tmp_path / "base.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", base, 16 * MIB)
    top = overlay(tmp_path / "top.qcow2", base.name, kind, "-P 1 0 15M")
    before, expected = sha256(top), flat(top)
    for after in (1, 6):
        job = supervisor.start("commit", volume=str(top), bandwidth=4 * MIB)
        wait_until(lambda: job.info().data_processed >= after * MIB, "it commits")  # noqa: B023
        assert job.suspend().state == "suspended"
        pid = job.info().pid or 0
        if end == "abort":
            info = job.abort()
            assert info.state == "aborted"
            assert any("can be committed again" in text for text in info.warnings)
        else:
            os.killpg(pid, signal.SIGKILL)
            assert job.wait(60).state == "failed"
        assert sha256(top) == before
        assert identical(top, expected)
        assert kind == "raw" or leaks_at_most(base)
    assert commit(top).ok
    assert identical(base, expected, "-f", kind)


def test_no_room_in_the_backing_file(commit: Run, tmp_path: Path) -> None:
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        with open(where / "base.raw", "wb") as file:
            file.truncate(8 * MIB)
        top = overlay(tmp_path / "top.qcow2", str(where / "base.raw"), "raw", "-P 1 0 6M")
        info = commit(top)
        assert (info.state, info.cause) == ("failed", Cause.NO_SPACE)
        assert (info.errmsg or "").startswith(f"cannot commit {top} to {where}/base.raw: No space left on device, ")
        assert (info.errmsg or "").endswith(f" are free; make room in {where}, and do it again")
