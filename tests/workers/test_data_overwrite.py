"""Every byte is overwritten, with what the pass says, and read back from the device itself."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from jobvisor_workers.data import libc, overwrite
from jobvisor_workers.data.overwrite import STEP, run_pass, trim
from jobvisor_workers.data.passes import PASSES, Pass
from jobvisor_workers.errors import InputOutput, JobError
from support.images import MIB, filesystem, filled, scattered
from support.lock_scenes import loop_device, need, started, wait_until

ZERO, RANDOM = Pass("fill", b"\0"), Pass("random")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def on_the_device(path: Path) -> bytes:
    """The content past the page cache, where that can be passed by."""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        except OSError:
            return path.read_bytes()
        buffer = mmap.mmap(-1, (size or 1) + mmap.PAGESIZE)
        try:
            count, done = 1, 0
            while count and done < size:
                with memoryview(buffer) as view, view[done : done + (size - done + 4095) // 4096 * 4096] as part:
                    count = os.preadv(fd, [part], done)
                done += count
            return buffer[:size]
        finally:
            buffer.close()
    finally:
        os.close(fd)


def over(path: Path, step: Pass) -> list[int]:
    """One pass over the file; what advance was told."""
    told: list[int] = []
    fd = os.open(path, os.O_RDWR)
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        run_pass(fd, libc.size_of(fd), step, advance=told.append)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) == flags
    finally:
        os.close(fd)
    return told


SIZES = [0, 1, 511, 4096, 4097, 3 * 4096 - 1, STEP - 1, STEP, STEP + 4096, STEP + 4099, 2 * STEP + 777]


@pytest.mark.parametrize("size", SIZES)
def test_a_pattern_runs_on_over_the_whole_file(tmp_path: Path, size: int) -> None:
    path = scattered(tmp_path / "a", size)
    for pattern in (b"\x00", b"\x92\x49\x24", b"\xff"):
        told = over(path, Pass("fill", pattern))
        assert sum(told) == size
        assert on_the_device(path) == (pattern * (size // len(pattern) + 1))[:size]
        assert path.stat().st_blocks * 512 >= size, "holes are written too"


@pytest.mark.parametrize("size", [0, 5, 4097, STEP + 4099])
def test_random_changes_every_byte_anew(tmp_path: Path, size: int) -> None:
    path = scattered(tmp_path / "a", size)
    contents = [path.read_bytes()]
    for _ in range(2):
        assert sum(over(path, RANDOM)) == size
        contents.append(on_the_device(path))
        assert len(contents[-1]) == size
    for before, after in pairwise(contents):
        equal = sum(map(int.__eq__, before, after))
        # One byte in 256 is the same by chance.
        assert equal <= size / 256 * 1.2 + 5
    if size > MIB:
        counts = [contents[-1].count(value) for value in range(256)]
        assert max(counts) < 1.1 * size / 256
        assert len({contents[-1][at : at + 16] for at in range(0, size - 16, 16)}) == len(range(0, size - 16, 16))


@pytest.mark.parametrize("algorithm", PASSES)
def test_each_pass_of_each_algorithm_in_its_order(tmp_path: Path, algorithm: str) -> None:
    size = 2 * 4096 + 1234
    path = scattered(tmp_path / "a", size)
    before = on_the_device(path)
    for step in PASSES[algorithm]:
        assert over(path, step) == [size]
        after = on_the_device(path)
        assert len(after) == size
        if step.kind == "random":
            assert sum(map(int.__eq__, before, after)) < size / 10
        else:
            assert after == (step.pattern * size)[:size]
            assert (step.kind == "verify") <= (after == before), "a verification changes nothing"
        before = after


@pytest.mark.parametrize("size", [100, STEP + 5000])
def test_a_verification_names_the_byte_that_differs(tmp_path: Path, size: int) -> None:
    path = filled(tmp_path / "a", size)
    over(path, Pass("fill", b"\x92\x49\x24"))
    assert sum(over(path, Pass("verify", b"\x92\x49\x24"))) == size
    for offset in (0, size // 2, size - 1):
        with open(path, "r+b") as file:
            original = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), b"\x01", offset)
        words = f"cannot verify .*/a: byte {offset} reads back as 0x01 and not 0x{original.hex()}"
        with pytest.raises(InputOutput, match=words):
            over(path, Pass("verify", b"\x92\x49\x24"))
        with open(path, "r+b") as file:
            os.pwrite(file.fileno(), original, offset)


@pytest.mark.parametrize("direct", [True, False])
def test_a_verification_reads_the_device_and_not_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if not direct:
        monkeypatch.setattr(os, "O_DIRECT", 0)
    disk = filled(tmp_path / "disk", 4 * MIB)
    with loop_device(disk) as device:
        over(device, ZERO)
        with open(device, "rb") as file:
            assert file.read() == bytes(4 * MIB), "all of it is in the page cache now"
            with open(disk, "r+b") as below:
                os.pwrite(below.fileno(), b"\x07", MIB + 3)
                os.fsync(below.fileno())
            assert os.pread(file.fileno(), 1, MIB + 3) == b"\0"
            with pytest.raises(InputOutput, match=f"byte {MIB + 3} reads back as 0x07 and not 0x00"):
                over(device, Pass("verify", b"\0"))


def test_a_verification_of_a_file_that_shrank(tmp_path: Path) -> None:
    path = filled(tmp_path / "a", 3 * STEP)
    over(path, ZERO)
    with open(path, "r+b") as file, pytest.raises(JobError, match="became shorter"):
        run_pass(file.fileno(), 3 * STEP, Pass("verify", b"\0"), advance=lambda _: os.truncate(path, STEP))


def test_whole_blocks_pass_the_page_cache_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = filled(tmp_path / "a", STEP + 2 * 4096 + 7), []
    real = os.pwrite

    def pwrite(fd: int, part: memoryview, offset: int) -> int:
        calls.append((offset, len(part), bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)))
        return real(fd, part, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    over(path, ZERO)
    if len(calls) == 2:
        pytest.skip("the test directory's filesystem has no direct I/O")
    assert calls == [(0, STEP, True), (STEP, 2 * 4096, True), (STEP + 2 * 4096, 7, False)]


@pytest.mark.parametrize("step", [ZERO, RANDOM])
def test_a_device(tmp_path: Path, step: Pass) -> None:
    disk = filled(tmp_path / "disk", 5 * MIB + 512)
    before = disk.read_bytes()
    with loop_device(disk) as device:
        assert sum(over(device, step)) == len(before)
    after = disk.read_bytes()
    assert sum(map(int.__eq__, before, after)) < len(before) / 200
    assert step is RANDOM or after == bytes(len(before))


@pytest.mark.parametrize("step", [ZERO, RANDOM, Pass("fill", b"\x92\x49\x24")])
def test_without_direct_io(tmp_path: Path, step: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    size = STEP + 5000
    path = scattered(tmp_path / "a", size)
    real = os.pwrite

    def refuse(fd: int, part: memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "x")
        return real(fd, part, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    assert sum(over(path, step)) == size
    if step.kind == "fill":
        assert path.read_bytes() == (step.pattern * size)[:size]
        over(path, Pass("verify", step.pattern))


def test_fuse(tmp_path: Path) -> None:
    need("bindfs", "fusermount3")
    (tmp_path / "below").mkdir()
    (tmp_path / "fuse").mkdir()
    scattered(tmp_path / "below" / "a", STEP + 77)
    with started("bindfs", "-f", tmp_path / "below", tmp_path / "fuse") as process:
        wait_until(lambda: os.path.ismount(tmp_path / "fuse") or process.poll() is not None, "it is mounted")
        if process.poll() is not None:
            pytest.skip("bindfs cannot mount")
        try:
            for step in (RANDOM, Pass("fill", b"\x55"), Pass("verify", b"\x55")):
                over(tmp_path / "fuse" / "a", step)
        finally:
            subprocess.run(["fusermount3", "-u", tmp_path / "fuse"], check=True)
    assert (tmp_path / "below" / "a").read_bytes() == b"\x55" * (STEP + 77)


def test_no_room_for_the_holes(tmp_path: Path) -> None:
    with filesystem(tmp_path, "tmpfs", 8 * MIB) as where:
        with open(where / "a", "wb") as file:
            file.truncate(32 * MIB)
        with pytest.raises(OSError, match="No space"):
            over(where / "a", ZERO)
        assert (where / "a").stat().st_size == 32 * MIB


def test_a_limit_on_file_sizes_does_not_matter_in_place(tmp_path: Path) -> None:
    path = filled(tmp_path / "a", 3000)
    code = (
        "import os, resource, sys; from jobvisor_workers.data.overwrite import run_pass; "
        "from jobvisor_workers.data.passes import PASSES; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "run_pass(os.open(sys.argv[1], os.O_RDWR), 3000, PASSES['zero'][0], advance=print)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3000\n"), done.stderr
    assert path.read_bytes() == bytes(3000)


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), RuntimeError("x")])
@pytest.mark.parametrize("step", [ZERO, RANDOM])
def test_an_exception_from_advance_leaves_nothing_behind(tmp_path: Path, step: Pass, error: BaseException) -> None:
    path = filled(tmp_path / "a", 4 * STEP)

    def fail(_: int) -> None:
        raise error

    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(type(error)):
            run_pass(fd, 4 * STEP, step, advance=fail)
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        assert not any(thread.name == "data" for thread in threading.enumerate())
    finally:
        os.close(fd)
    assert path.read_bytes()[STEP:] == filled(tmp_path / "b", 4 * STEP).read_bytes()[STEP:]


@pytest.mark.parametrize("size", [0, 1, 4096, 5 * MIB + 3])
def test_trim_gives_back_all_blocks_and_keeps_the_size(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overwrite, "DISCARD_STEP", 2 * MIB)
    told: list[int] = []
    path = filled(tmp_path / "a", size)
    with open(path, "r+b") as file:
        trim(file.fileno(), size, advance=told.append)
        assert os.fstat(file.fileno()).st_blocks == 0
    assert sum(told) == size
    assert path.read_bytes() == bytes(size)


def test_trim_of_a_device_reaches_what_is_below(tmp_path: Path) -> None:
    told: list[int] = []
    disk = filled(tmp_path / "disk", 4 * MIB)
    with loop_device(disk) as device, open(device, "r+b", buffering=0) as file:
        trim(file.fileno(), 4 * MIB, advance=told.append)
    assert sum(told) == 4 * MIB
    assert disk.stat().st_size == 4 * MIB
    assert disk.stat().st_blocks == 0


def test_trim_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "a", MIB)

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "x")

    monkeypatch.setattr(libc, "fallocate", refuse)
    monkeypatch.setattr(libc, "ioctl", refuse)
    with open(path, "r+b") as file, pytest.raises(JobError, match=r"cannot trim .*/a: its filesystem cannot discard"):
        trim(file.fileno(), MIB, advance=print)
    before = path.read_bytes()
    with (
        loop_device(path) as device,
        open(device, "r+b", buffering=0) as opened,
        pytest.raises(JobError, match=r"cannot trim /dev/loop.*: the device cannot discard"),
    ):
        trim(opened.fileno(), MIB, advance=print)
    assert path.read_bytes() == before
