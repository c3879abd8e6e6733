"""The job type compare, as real jobs on real images."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from support.images import MIB, everything_in, filled, overlay, qcow2, qemu_img, scattered
from support.lock_scenes import loop_device, need, vm, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def compare(supervisor: Supervisor) -> Run:
    def compare(first: Path, second: Path, **args: Any) -> JobInfo:
        return supervisor.start("compare", first=str(first), second=str(second), **args).wait(60)

    return compare


@pytest.fixture
def equal(compare: Run) -> Callable[..., JobInfo]:
    def equal(first: Path, second: Path, **args: Any) -> JobInfo:
        info = compare(first, second, **args)
        assert info.ok, info.errmsg
        assert info.result is not None
        assert info.result["equal"] is True
        assert info.data_processed == info.data_total == max(info.result["sizes"])
        return info

    return equal


@pytest.fixture
def differ(compare: Run) -> Callable[..., None]:
    def differ(first: Path, second: Path, at: int | None, words: str = "", **args: Any) -> None:
        info = compare(first, second, **args)
        assert (info.state, info.cause) == ("failed", Cause.ERROR), info.errmsg
        assert info.result is not None
        assert (info.result["equal"], info.result["first_difference"]) == (False, at)
        assert f"{first} and {second} differ" in (info.errmsg or "")
        assert (words or f"from byte {at} on") in (info.errmsg or "")

    return differ


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vdi", "vmdk", "vhdx", "qed"])
def test_equal_content_in_any_format(equal: Any, differ: Any, tmp_path: Path, kind: str) -> None:
    raw = scattered(tmp_path / "a.raw", 6 * MIB)
    other = tmp_path / f"b.{kind}"
    qemu_img("convert", "-O", kind, raw, other)
    assert equal(raw, other).warnings == []
    with open(raw, "r+b") as file:
        file.seek(5 * MIB + 700)
        file.write(b"!")
    assert subprocess.run(["cmp", "-s", raw, other]).returncode == 1
    differ(raw, other, 5 * MIB + 512)
    differ(other, raw, 5 * MIB + 512)


def test_sizes(equal: Any, differ: Any, tmp_path: Path) -> None:
    short = filled(tmp_path / "a.raw", MIB)
    long = Path(shutil.copy(short, tmp_path / "b.raw"))
    os.truncate(long, MIB + 4096)
    assert equal(short, long).warnings == [f"{long} is longer than {short}: 4096 bytes more, all of them zeroes"]
    differ(long, short, None, f"in size: {MIB + 4096} and {MIB} bytes", strict=True)
    full = Path(shutil.copy(short, tmp_path / "c.raw"))
    equal(short, full, strict=True)
    zeroes = tmp_path / "z.raw"
    zeroes.write_bytes(bytes(MIB))
    hole = tmp_path / "h.raw"
    hole.touch()
    os.truncate(hole, MIB)
    equal(zeroes, hole)
    differ(zeroes, hole, 0, "from byte 0 on one is allocated only", strict=True)
    with open(long, "r+b") as file:
        file.seek(MIB + 512)
        file.write(b"!")
    differ(short, long, MIB + 512)


def test_chains_and_devices(equal: Any, differ: Any, tmp_path: Path) -> None:
    base = filled(tmp_path / "base.raw", 3 * MIB)
    top = overlay(tmp_path / "top.qcow2", "base.raw", "raw")
    equal(top, base)
    with loop_device(base) as device:
        equal(device, top)
    subprocess.run(["qemu-io", "-c", "write -P 7 2M 512", top], check=True, capture_output=True)
    differ(top, base, 2 * MIB)
    differ(base, overlay(tmp_path / "next.qcow2", "top.qcow2", "qcow2"), 2 * MIB)


def test_a_disguised_raw_disk(equal: Any, tmp_path: Path) -> None:
    filled(tmp_path / "secret.raw", MIB)
    guest = overlay(tmp_path / "guest.raw", "secret.raw", "raw")
    copy = Path(shutil.copy(guest, tmp_path / "copy.raw"))
    assert equal(guest, copy, format="raw", second_format="raw").result["sizes"] == [guest.stat().st_size] * 2


def test_what_cannot_be_compared(compare: Run, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", 4 * MIB)
    half = qcow2(tmp_path / "half.qcow2", raw)
    os.truncate(half, 2 * MIB)
    (tmp_path / "link").symlink_to("a.raw")
    before = everything_in(tmp_path)
    cases: list[tuple[str, str, dict[str, Any], str]] = [
        ("a.raw", "missing", {}, "missing: no such file"),
        ("a.raw", ".", {}, "is a directory"),
        ("a.raw", "link", {}, "the same file"),
        ("a.raw", "half.qcow2", {}, "half.qcow2 is corrupt or cut off"),
        ("a.raw", "half.qcow2", {"format": "qcow2"}, "not in qcow2 format"),
    ]
    for first, second, args, words in cases:
        info = compare(tmp_path / first, tmp_path / second, **args)
        assert (info.state, info.cause) == ("failed", Cause.ERROR), info.errmsg
        assert words in (info.errmsg or ""), info.errmsg
        assert info.result is None
    with vm(raw):
        info = compare(half, raw)
        assert (info.cause, "in use by QEMU" in (info.errmsg or "")) == (Cause.BUSY, True)
    assert everything_in(tmp_path) == before


def test_a_dry_run_compares_nothing(compare: Run, tmp_path: Path) -> None:
    info = compare(filled(tmp_path / "a.raw", MIB), filled(tmp_path / "b.raw", MIB, seed=2), dry_run=True)
    assert info.ok
    assert (info.result or {})["dry_run"] is True


@pytest.mark.parametrize("end", ["abort", "kill"])
def test_the_limit_holds_and_an_end_leaves_nothing(supervisor: Supervisor, tmp_path: Path, end: str) -> None:
    raw = filled(tmp_path / "a.raw", 32 * MIB)
    image = qcow2(tmp_path / "a.qcow2", raw)
    job = supervisor.start("compare", first=str(raw), second=str(image), bandwidth=4 * MIB)
    wait_until(lambda: 0 < job.info().data_processed < 32 * MIB, "it compares")
    assert job.suspend().state == "suspended"
    assert job.resume().state == "running"
    pid = job.info().pid or 0
    if end == "abort":
        assert job.abort().state == "aborted"
    else:
        os.kill(pid, signal.SIGKILL)
        assert job.wait(60).state == "failed"
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
