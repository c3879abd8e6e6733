"""A worker's hold on its map: what is written when, and what a later worker concludes from it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor_workers import finished, keeping, unchanged
from jobvisor_workers.errors import Held, JobError
from jobvisor_workers.keeping import Keeping
from jobvisor_workers.protocol import Exit, Request, encode

Begin = Callable[..., Keeping]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.write_bytes(bytes(1000))
    return path


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Closes what a test has opened; a worker's own go with its process."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    for name in set(os.listdir("/proc/self/fd")) - before:
        try:
            os.close(int(name))
        except OSError:
            pass


@pytest.fixture
def begin(tmp_path: Path, descriptors: None) -> Begin:
    """Job number n, which is a retry of the one before it, with the map of that."""

    def begin(number: int = 1, warn: Callable[[str], None] = print) -> Keeping:
        directory = tmp_path / "jobs" / str(number)
        directory.mkdir(parents=True, exist_ok=True)
        before = tmp_path / "jobs" / str(number - 1) / finished.NAME
        if before.exists():
            os.link(before, directory / finished.NAME)
        request = Request(number, "clone", {}, 0.0, retry_of=number - 1 or None)
        return Keeping(os.open(directory, os.O_RDONLY), request, warn)

    return begin


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR)


def gone(begin: Begin, target: Path, partial: str | None = None) -> None:
    """A worker that was killed: nothing but its map is left."""
    first = begin()
    first.take(opened(target), [], partial)
    first.finished(500)
    os.close(first._fd)


def test_a_line_is_written_after_its_data_and_before_anything_else(
    begin: Begin, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = begin()
    fd = opened(target)
    held.take(fd, [], None)
    calls: list[object] = []
    append = finished.Map.append
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("fsync", fd)))
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append(("fdatasync", fd)))

    def told(*args: Any) -> None:
        calls.append("line")
        append(*args)

    monkeypatch.setattr(finished.Map, "append", told)
    held.finished(500)
    assert calls == [("fsync", fd), "line", ("fdatasync", held._fd)]


def test_what_does_not_reach_the_disk_is_not_noted(
    begin: Begin, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = begin()
    held.take(opened(target), [], None)

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        held.finished(500)
    assert finished.read(str(tmp_path / "jobs/1")).processed == 0


def test_a_map_that_cannot_be_written_does_not_end_the_job(
    begin: Begin, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    held = begin(warn=warnings.append)
    held.take(opened(target), [], None)
    held.finished(300)

    def full(fd: int, data: bytes, offset: int) -> int:
        return os.write(os.open("/dev/full", os.O_WRONLY), data)

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        held.finished(500)
    held.finished(700)
    assert warnings == ["a retry will not go on from here: its map cannot be written: No space left on device"]
    assert held.leave()
    assert finished.read(str(tmp_path / "jobs/1")).processed == 300


def test_one_worker_at_a_time(begin: Begin, target: Path) -> None:
    first = begin()
    first.take(opened(target), [], None)
    first.finished(500)
    with pytest.raises(Held):
        begin(2).take(opened(target), [], None)
    os.close(first._fd)
    begin(3).take(opened(target), [], None)


def test_slow_disks_are_asked_less_often(begin: Begin, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "EVERY", 3.0)  # support.keep_types may have been here
    monkeypatch.setattr(keeping, "COST", 30)
    held = begin()
    held.take(opened(target), [], None)
    assert not held.due()
    assert keeping.EVERY - 0.5 < held._due - time.monotonic() <= keeping.EVERY
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.2))
    held.finished(500)
    assert held._due - time.monotonic() > 0.19 * keeping.COST


@pytest.mark.parametrize("known", [True, False])
def test_after_a_kill_the_kernels_word_on_the_end_decides(
    begin: Begin, target: Path, tmp_path: Path, known: bool
) -> None:
    gone(begin, target)
    if known:
        (tmp_path / "jobs/1/exit").write_bytes(encode(Exit(1, time.time() - 60)))
    late = begin(2)
    if known:
        with pytest.raises(JobError, match=f"{target} is not what it was: it was changed at"):
            late.take(opened(target), [], None)
    else:
        late.take(opened(target), [], None)
        assert (late.done, late.continues) == (500, True)


@pytest.mark.parametrize("before_the_start", [True, False])
def test_after_a_loss_of_power_the_start_of_the_host_decides(
    begin: Begin, target: Path, before_the_start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone(begin, target)
    now = time.time()
    unchanged.boot_id.cache_clear()
    monkeypatch.setattr(unchanged, "boot_id", lambda: "the next")
    monkeypatch.setattr(unchanged, "boot_moment", lambda: now + (60 if before_the_start else -60))
    late = begin(2)
    if before_the_start:
        late.take(opened(target), [], None)
        assert late.done == 500
    else:
        with pytest.raises(JobError, match="it was changed at"):
            late.take(opened(target), [], None)


def test_what_was_restored_from_before_is_noticed(begin: Begin, target: Path) -> None:
    """As after the filesystem went back to a snapshot: the file is the same one, and older than the map."""
    gone(begin, target)
    os.utime(target, (1, 1))
    with pytest.raises(JobError, match="older than what was written to it"):
        begin(2).take(opened(target), [], None)


def test_a_partial_is_nobody_elses_again(begin: Begin, target: Path) -> None:
    """Its worker was killed between the last mode and the name."""
    gone(begin, target, str(target))
    target.chmod(0o664)
    begin(2).take(opened(target), [], str(target))
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_partial_that_is_another_users_is_not_believed(begin: Begin, target: Path) -> None:
    gone(begin, target, str(target))
    os.chown(target, 65533, 65533)
    with pytest.raises(JobError, match="it is another user's"):
        begin(2).take(opened(target), [], str(target))


def test_nothing_finished_is_nothing_kept(begin: Begin, target: Path, tmp_path: Path) -> None:
    held = begin()
    held.take(opened(target), [], None)
    assert not held.leave()
    assert (tmp_path / "jobs/1" / finished.NAME).read_bytes() == b""
