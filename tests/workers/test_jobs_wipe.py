"""The job type wipe, as real jobs on real files and devices."""

from __future__ import annotations

import os
import subprocess
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, JobInfo, Supervisor
from jobvisor_workers.data.passes import PASSES
from jobvisor_workers.jobs.wipe import Wipe
from support.images import MIB, everything_in, filesystem, filled, scattered
from support.lock_scenes import loop_device, mounted, vm, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Run = Callable[..., JobInfo]


@pytest.fixture
def wipe(supervisor: Supervisor) -> Run:
    def wipe(volume: Path, algorithm: str = "zero", **options: Any) -> JobInfo:
        return supervisor.start("wipe", volume=str(volume), algorithm=algorithm, **options).wait(60)

    return wipe


def test_the_declaration_offers_what_the_data_layer_has() -> None:
    declared = typing.get_args(typing.get_type_hints(Wipe)["algorithm"])
    assert set(declared) == {*PASSES, "trim"}


#: libvirt's names: how many passes, and what the last one that writes leaves (None: random).
LEFT = {
    "zero": (1, b"\x00"),
    "nnsa": (4, b"\x00"),
    "dod": (4, b"\xff"),
    "bsi": (9, b"\x7f"),
    "gutmann": (35, None),
    "schneier": (7, None),
    "pfitzner7": (7, None),
    "pfitzner33": (33, None),
    "random": (1, None),
}


@pytest.mark.parametrize("algorithm", LEFT)
def test_every_byte_is_overwritten_and_the_size_stays(wipe: Run, tmp_path: Path, algorithm: str) -> None:
    size = 2 * MIB + 777
    volume = scattered(tmp_path / "a.raw", size)
    inode = volume.stat().st_ino
    info = wipe(volume, algorithm)
    assert info.ok, info.errmsg
    passes, left = LEFT[algorithm]
    assert info.result == {
        "algorithm": algorithm,
        "content": False,
        "passes": passes,
        "size": size,
        "overwritten": True,
        "verified": algorithm in ("nnsa", "dod"),
    }
    assert info.data_processed == info.data_total == passes * size
    after = volume.read_bytes()
    assert len(after) == size
    assert volume.stat().st_ino == inode
    # Holes were written too.
    assert volume.stat().st_blocks * 512 >= size
    if left is not None:
        assert after == left * size
    else:
        blocks = {after[offset : offset + 4096] for offset in range(0, size - 4096, 4096)}
        assert len(blocks) == size // 4096, "random blocks do not repeat"


@pytest.mark.parametrize("size", [0, 1, 511, 4097])
def test_small_and_empty_files(wipe: Run, tmp_path: Path, size: int) -> None:
    volume = filled(tmp_path / "a", size)
    assert wipe(volume, "dod").ok
    assert volume.read_bytes() == b"\xff" * size


def test_a_device(wipe: Run, tmp_path: Path) -> None:
    disk = filled(tmp_path / "disk.raw", 3 * MIB + 512)
    with loop_device(disk) as device:
        info = wipe(device)
        assert info.ok, info.errmsg
    assert disk.read_bytes() == bytes(3 * MIB + 512)


def test_trim_never_claims_to_have_overwritten(wipe: Run, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", 2 * MIB + 5)
    info = wipe(volume, "trim")
    assert info.ok, info.errmsg
    assert info.result is not None
    assert info.result["overwritten"] is False
    assert info.result["discarded"] is True
    assert any("does not overwrite" in text for text in info.warnings)
    assert volume.read_bytes() == bytes(2 * MIB + 5)
    assert volume.stat().st_blocks == 0


def test_what_an_abort_would_leave_is_told_live(supervisor: Supervisor, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", 16 * MIB)
    job = supervisor.start("wipe", volume=str(volume), algorithm="nnsa", bandwidth=24 * MIB)
    told: list[str] = []

    def second_pass() -> bool:
        info = job.info()
        if info.abort_effect and info.abort_effect not in told:
            told.append(info.abort_effect)
        return info.final or (info.phase or "").startswith("pass 2 of 4")

    wait_until(second_pass, "the second pass")
    wait_until(lambda: "pass 2 of 4 at" in (job.info().abort_effect or ""), "it is told")
    info = job.abort()
    assert info.state == "aborted"
    assert any(text.startswith(f"{volume} is partly overwritten: pass 2 of 4 at") for text in info.warnings)
    assert len({text for text in told if "pass 1 of 4 at" in text}) > 2
    assert volume.stat().st_size == 16 * MIB


def test_a_time_limit_says_what_it_leaves(supervisor: Supervisor, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", 16 * MIB)
    info = supervisor.start("wipe", volume=str(volume), bandwidth=2 * MIB, time_limit=1.5).wait(30)
    assert (info.state, info.cause) == ("failed", Cause.TIME_LIMIT)
    assert (info.errmsg or "").startswith(f"the time limit ended it; {volume} is partly overwritten: pass 1 of 1 at")


def test_other_names_of_the_file_are_mentioned(wipe: Run, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", 5000)
    os.link(volume, tmp_path / "b.raw")
    info = wipe(volume)
    assert info.warnings == [f"{volume} has 2 names (hard links): it is wiped under all of them"]


def test_a_filesystem_that_shares_blocks_is_warned_of(wipe: Run, tmp_path: Path) -> None:
    with filesystem(tmp_path, "btrfs", 200 * MIB) as where:
        info = wipe(filled(where / "a.raw", MIB))
        assert info.ok, info.errmsg
        assert any(text.startswith(f"old blocks of {where}/a.raw may live on") for text in info.warnings)


def test_what_is_in_use_is_not_touched(wipe: Run, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", MIB)
    before = everything_in(tmp_path)
    with vm(volume):
        info = wipe(volume)
        assert (info.state, info.cause) == ("failed", Cause.BUSY)
        assert (info.errmsg or "").startswith(f"cannot wipe {volume}: in use by QEMU pid")
        assert "VM web1" in (info.errmsg or "")
    assert everything_in(tmp_path) == before


def test_a_mounted_device_is_not_touched(wipe: Run, tmp_path: Path) -> None:
    disk = filled(tmp_path / "disk.raw", 16 * MIB)
    with loop_device(disk) as device, mounted(device) as where:
        (where / "file").write_text("precious")
        info = wipe(device)
        assert (info.state, info.cause) == ("failed", Cause.BUSY), info.errmsg
        assert str(where) in (info.errmsg or "")
        behind = wipe(disk)
        assert behind.cause == Cause.BUSY, behind.errmsg
        assert (where / "file").read_text() == "precious"


def test_nobody_opens_the_image_meanwhile(supervisor: Supervisor, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", 8 * MIB)
    job = supervisor.start("wipe", volume=str(volume), bandwidth=2 * MIB)
    wait_until(lambda: job.info().abort_effect, "it writes")
    tried = subprocess.run(["qemu-io", "-f", "raw", "-c", "read 0 512", volume], capture_output=True, text=True)
    assert "lock" in tried.stderr
    job.abort()


def test_bad_input(wipe: Run, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    for name, words in (("missing", "no such file"), ("dir", "is a directory")):
        info = wipe(tmp_path / name)
        assert (info.state, info.cause) == ("failed", Cause.ERROR)
        assert words in (info.errmsg or "")
    filled(tmp_path / "a.raw", 5000)
    before = everything_in(tmp_path)
    assert wipe(tmp_path / "a.raw", dry_run=True).ok
    assert everything_in(tmp_path) == before
