"""What tells that a file or device is not what it was."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobvisor_workers import unchanged
from jobvisor_workers.unchanged import Facts, change, change_between, look, other, settled

FILE = Facts(False, "boot", 1, 2, 100, 1000, 2000)
DEVICE = Facts(True, "boot", 1, 2, 100, 0, 0, 50)


def but(facts: Facts, **changes: Any) -> Facts:
    return msgspec.structs.replace(facts, **changes)


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        (FILE, FILE, None),
        (FILE, but(FILE, device=9), "another file"),
        (FILE, but(FILE, inode=9), "another file"),
        (FILE, but(FILE, size=99), "it had 100 bytes and has 99"),
        (FILE, but(FILE, mtime=1001), "written to"),
        (FILE, but(FILE, ctime=2001), "attributes"),
        # The numbers of filesystems are given out anew; what else there is must do.
        (FILE, but(FILE, boot="next", device=9), None),
        (FILE, but(FILE, boot="next", device=9, inode=9), "another file"),
        (FILE, DEVICE, "was a file and is a device"),
        (DEVICE, DEVICE, None),
        (DEVICE, but(DEVICE, device=9), "another device"),
        (DEVICE, but(DEVICE, inode=9), "another device"),
        (DEVICE, but(DEVICE, written=51), "written to"),
        (DEVICE, but(DEVICE, boot="next"), "started anew"),
    ],
)
def test_a_change(before: Facts, now: Facts, why: str | None) -> None:
    found = change(before, now)
    assert found is None if why is None else why in (found or "")
    if why in (None, "another file", "another device"):
        assert (other(before, now) is None) == (why is None)


@pytest.mark.parametrize(
    ("now", "latest", "why"),
    [
        (but(FILE, mtime=3000, ctime=3000), 3000, None),
        (but(FILE, mtime=3000, ctime=3001), 3000, "wrote no more"),
        (but(FILE, mtime=3000, ctime=3001), None, None),
        (but(FILE, mtime=999, ctime=2500), 3000, "older than what was written"),
        (but(FILE, inode=9), None, "another file"),
    ],
)
def test_a_change_beyond_our_own(now: Facts, latest: int | None, why: str | None) -> None:
    found = change_between(FILE, latest, now)
    assert found is None if why is None else why in (found or "")


def test_whatever_is_written_after_a_settled_look_shows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in range(30):
        path.write_bytes(bytes([content]))
        fd = os.open(path, os.O_RDWR)
        try:
            before = settled(fd)
            os.pwrite(fd, b"x", 0)
            os.utime(fd, ns=(before.mtime, before.mtime))
            assert change(before, look(fd))
        finally:
            os.close(fd)


def test_another_clock_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(unchanged, "look", lambda _: but(FILE, ctime=time.time_ns() + 3600 * 10**9))
    with open(tmp_path / "file") as file:
        assert settled(file.fileno()).size == 100


def test_the_moment_of_the_start_is_past() -> None:
    assert 0 < unchanged.boot_moment() < time.time()
    assert unchanged.boot_id()
