"""qemu_locks.py: QEMU's own tools and VMs judge whether it is their language."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from jobvisor_workers import qemu_locks
from jobvisor_workers.jobtype import READ, WRITE, Access
from support.lock_scenes import bytes_are_free, image, need, started, vm, wait_until


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return image(tmp_path / "disk.raw")


@contextmanager
def opened(path: Path, access: Access) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR if access is WRITE else os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def qemu(program: str, *words: str | Path) -> str:
    """What it complains about; empty when it succeeds."""
    need(program)
    done = subprocess.run([program, *(str(word) for word in words)], capture_output=True, text=True)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr


def write(path: Path) -> str:
    return qemu("qemu-io", "-f", "raw", "-c", "write 0 4096", path)


def copy(path: Path) -> str:
    return qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", path, path.with_suffix(".copy"))


def test_while_we_write_no_qemu_opens_the_image(disk: Path) -> None:
    with opened(disk, WRITE) as fd:
        assert qemu_locks.take(fd, WRITE)
        assert "Failed to get" in write(disk)
        assert "Failed to get" in copy(disk)
    assert write(disk) == copy(disk) == ""


def test_while_we_write_a_qcow2_not_even_info_opens_it(tmp_path: Path) -> None:
    """Of a raw image `info` reads no byte, and asks for no permission."""
    disk = tmp_path / "disk.qcow2"
    assert qemu("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M") == ""
    with opened(disk, WRITE) as fd:
        assert qemu_locks.take(fd, WRITE)
        assert "Failed to get" in qemu("qemu-img", "info", disk)
        assert qemu("qemu-img", "info", "-U", disk) == ""
    with opened(disk, READ) as fd:
        assert qemu_locks.take(fd, READ)
        assert qemu("qemu-img", "info", disk) == ""


def test_while_we_write_a_vm_does_not_start(disk: Path) -> None:
    need("qemu-system-x86_64")
    argv = [
        "-S",
        "-display",
        "none",
        "-machine",
        "none",
        "-nodefaults",
        "-drive",
        f"file={disk},format=raw,if=none,id=d",
    ]
    with opened(disk, WRITE) as fd:
        assert qemu_locks.take(fd, WRITE)
        assert "lock" in qemu("qemu-system-x86_64", *argv)


def test_while_we_read_qemu_may_read_too_but_not_write(disk: Path) -> None:
    with opened(disk, READ) as fd:
        assert qemu_locks.take(fd, READ)
        assert copy(disk) == ""
        assert 'Failed to get "write" lock' in write(disk)
    assert write(disk) == ""


@pytest.mark.parametrize("access", [READ, WRITE])
def test_a_vm_refuses_both(disk: Path, access: Access) -> None:
    with opened(disk, access) as fd:
        with vm(disk):
            assert not qemu_locks.take(fd, access)
            assert "lock:" not in Path(f"/proc/self/fdinfo/{fd}").read_text(), "nothing is left when it is refused"
        assert qemu_locks.take(fd, access)


def test_a_reading_qemu_refuses_only_who_writes(disk: Path) -> None:
    need("qemu-io")
    with started("qemu-io", "-r", "-f", "raw", disk):
        wait_until(lambda: not bytes_are_free(disk), "qemu-io has it open")
        with opened(disk, READ) as reading, opened(disk, WRITE) as writing:
            assert qemu_locks.take(reading, READ)
            assert not qemu_locks.take(writing, WRITE)


def test_readers_share(disk: Path) -> None:
    with opened(disk, READ) as one, opened(disk, READ) as two:
        assert qemu_locks.take(one, READ)
        assert qemu_locks.take(two, READ)


def test_taking_twice_is_taking_once(disk: Path) -> None:
    with opened(disk, WRITE) as fd:
        assert qemu_locks.take(fd, WRITE)
        assert qemu_locks.take(fd, WRITE)


def taker(path: Path, rounds: int, barrier: Barrier, wins: list[int]) -> None:
    for index in range(rounds):
        fd = os.open(path, os.O_RDWR)
        barrier.wait()
        if qemu_locks.take(fd, WRITE):
            wins[index] += 1
        barrier.wait()
        os.close(fd)
        barrier.wait()


def test_of_two_that_take_at_once_never_both_win_and_seldom_none(disk: Path) -> None:
    """As QEMU does it, without the flock that settles job against job first."""
    context = multiprocessing.get_context("fork")
    rounds, barrier = 60, context.Barrier(2)
    shared = [context.Array("i", rounds, lock=False) for _ in range(2)]
    processes = [context.Process(target=taker, args=(disk, rounds, barrier, wins)) for wins in shared]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    winners = [one + two for one, two in zip(*shared, strict=True)]
    assert max(winners) == 1
    assert winners.count(0) <= rounds // 10


def test_what_passes_by_itself_is_outlasted(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(disk, WRITE) as ours:
        passing = os.open(disk, os.O_RDWR)
        assert qemu_locks.take(passing, WRITE)
        monkeypatch.setattr("jobvisor_workers.qemu_locks.time.sleep", lambda _: os.close(passing))
        assert qemu_locks.take(ours, WRITE)


def test_who_steps_back_leaves_no_byte_behind(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free at the probe, opposed after taking: two that take at once."""
    answers = iter([False, True])
    monkeypatch.setattr(qemu_locks, "_opposed", lambda fd, access: next(answers, True))
    with opened(disk, WRITE) as fd:
        assert not qemu_locks.take(fd, WRITE)
        assert "lock:" not in Path(f"/proc/self/fdinfo/{fd}").read_text()
