"""Copies are exact, as sparse as asked for, and leave no thread; on real files, filesystems and devices."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobvisor_workers.data import copy as module
from jobvisor_workers.data import libc, reflink, zeros
from jobvisor_workers.data.copy import copy
from jobvisor_workers.data.extents import allocated
from jobvisor_workers.data.window import MIB, Window
from jobvisor_workers.errors import BadArgument, JobError, NoSpace
from support.images import filesystem, filled, scattered, sha256
from support.lock_scenes import loop_device, need, started, wait_until

BLOCK = 4096
#: ext4 keeps the list of more than four extents in a block that counts as the file's; in 512 bytes.
EXTENT_TREE = 8


class Copied:
    """The outcome of one copy into a new file: its descriptor, the method, and what was told on the way."""

    def __init__(self, source: Path, directory: Path, **options: Any) -> None:
        self.advanced: list[int] = []
        self.skipped: list[int] = []
        self.size = options.pop("size", source.stat().st_size)
        name = directory / f"copy {random.randrange(1 << 60)}"
        self.fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.path = name
        options.setdefault("window", Window(self.fd))
        options.setdefault("advance", self.advanced.append)
        fd = os.open(source, os.O_RDONLY)
        try:
            self.method = copy(fd, self.fd, self.size, skip=self.skipped.append, **options)
        except BaseException:
            os.close(self.fd)
            raise
        finally:
            os.close(fd)

    def __enter__(self) -> Copied:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        self.path.unlink()

    @property
    def blocks(self) -> int:
        os.fsync(self.fd)
        return os.fstat(self.fd).st_blocks


@pytest.fixture(autouse=True)
def no_thread_and_no_descriptor_is_left() -> Iterator[None]:
    before, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    yield
    assert set(threading.enumerate()) <= before
    assert len(os.listdir("/proc/self/fd")) == descriptors


def same(source: Path, copied: Copied) -> bool:
    return source.stat().st_size == copied.path.stat().st_size and sha256(source) == sha256(copied.path)


@contextmanager
def elsewhere() -> Iterator[Path]:
    """A directory on a tmpfs, so that a copy crosses filesystems."""
    where = Path("/dev/shm")
    if not os.path.ismount(where):
        pytest.skip("/dev/shm is no tmpfs of its own")
    directory = where / f"jobvisor-test-{os.getpid()}-{random.randrange(1 << 30)}"
    directory.mkdir()
    try:
        yield directory
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


layouts = st.lists(
    st.tuples(st.sampled_from(["hole", "data", "zeros", "dots"]), st.integers(1, 40), st.integers(0, 4095)),
    max_size=14,
)


def image(path: Path, layout: list[tuple[str, int, int]], odd: int) -> Path:
    """Stretches one after another, some blocks and bytes long; zeros are stored, dots are few bytes among zeros."""
    offset = 0
    with open(path, "wb") as file:
        for kind, blocks, more in layout:
            length = blocks * BLOCK + more
            stretch = {"data": random.Random(offset).randbytes(length), "zeros": bytes(length), "hole": b""}
            dots = bytearray(length)
            dots[more :: 9 * BLOCK] = b"x" * len(dots[more :: 9 * BLOCK])
            os.pwrite(file.fileno(), stretch.get(kind, bytes(dots)), offset)
            offset += length
        os.ftruncate(file.fileno(), max(0, offset - odd))
    return path


@settings(max_examples=100, deadline=None)
@given(
    layout=layouts,
    odd=st.integers(0, 5000),
    sparse=st.sampled_from([None, True, False]),
    step=st.sampled_from([24 * 1024, 24 * 1024 + 1, None]),
)
def test_a_copy_of_any_layout_is_exact(
    tmp_path_factory: pytest.TempPathFactory,
    layout: list[tuple[str, int, int]],
    odd: int,
    sparse: bool | None,
    step: int | None,
) -> None:
    directory = tmp_path_factory.mktemp("copy")
    source = image(directory / "source", layout, odd)
    blocks = source.stat().st_blocks
    with pytest.MonkeyPatch.context() as patch:
        if step:  # many steps for both threads, direct I/O in small parts, borders inside blocks
            patch.setattr(module, "STEP", step)
            patch.setattr(module, "LEAST", BLOCK)
            patch.setattr(zeros, "PIECE", 8 * 1024)
            patch.setattr(module, "PIECE", 8 * 1024)
        with Copied(source, directory, sparse=sparse) as copied:
            assert same(source, copied)
            assert sum(copied.advanced) + sum(copied.skipped) == copied.size
            if sparse is False:
                assert copied.blocks * 512 >= copied.size
            else:
                assert copied.blocks <= blocks + EXTENT_TREE
    source.unlink()


def direct_calls(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], None] = lambda name: None) -> list[str]:
    """The names of the calls made with direct I/O, as they come; `answer` may fail one."""
    calls: list[str] = []
    for name, function in (("preadv", os.preadv), ("pwrite", os.pwrite)):

        def call(fd: int, *rest: Any, name: str = name, real: Any = function) -> int:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                calls.append(name)
                answer(name)
            return int(real(fd, *rest))

        monkeypatch.setattr(os, name, call)
    return calls


def cold(path: Path) -> Path:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def test_what_is_not_in_memory_passes_it_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = filled(tmp_path / "a", 20 * MIB + 7)
    calls = direct_calls(monkeypatch)
    with Copied(source, tmp_path, reflink=False):
        if not calls:
            pytest.skip("the test directory's filesystem has no direct I/O")
        assert set(calls) == {"pwrite"}, "what is in memory is read there"
    calls.clear()
    with Copied(cold(source), tmp_path, reflink=False) as copied:
        assert calls.count("preadv") == 5
        assert same(source, copied)


@pytest.mark.parametrize("refused", ["preadv", "pwrite", "open"])
def test_where_direct_io_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    source = cold(filled(tmp_path / "a", 20 * MIB + 7))

    def answer(name: str) -> None:
        if name == refused:
            raise OSError(errno.EINVAL, "x")

    def deny(path: str, flags: int, *rest: Any, real: Any = os.open) -> int:
        if flags & os.O_DIRECT:
            raise PermissionError(errno.EACCES, "x")
        return int(real(path, flags, *rest))

    calls = direct_calls(monkeypatch, answer)
    if refused == "open":
        monkeypatch.setattr(os, "open", deny)
    with Copied(source, tmp_path, reflink=False) as copied:
        # Each of the two threads tries once.
        assert calls.count(refused) <= 2
        assert same(source, copied)


def test_holes_stay_and_cost_no_bandwidth(tmp_path: Path) -> None:
    source = tmp_path / "a"
    with open(source, "wb") as file:
        file.truncate(300 * MIB + 1)
        os.pwrite(file.fileno(), b"x" * MIB, 100 * MIB)
    with Copied(source, tmp_path) as copied:
        assert same(source, copied)
        assert sum(copied.advanced) == MIB
        assert sum(copied.skipped) == 299 * MIB + 1
        assert copied.blocks == source.stat().st_blocks


def test_no_step_is_longer_than_4_mib(tmp_path: Path) -> None:
    source = filled(tmp_path / "a", 21 * MIB + 3)
    with Copied(source, tmp_path) as copied:
        assert same(source, copied)
        assert max(copied.advanced) == 4 * MIB


def test_stored_zeros_are_reserved_and_not_written(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(bytes(20 * MIB) + b"end")
    with Copied(source, tmp_path) as copied:
        assert copied.blocks * 512 >= 20 * MIB, "as allocated as the source"
        # Before it is read: what is in the page cache counts as data.
        assert allocated(copied.fd, copied.size) <= MIB, "and not written"
        assert same(source, copied)
    with Copied(source, tmp_path, sparse=True) as copied:
        assert same(source, copied)
        assert copied.blocks * 512 <= BLOCK


def test_sparse_leaves_out_single_blocks(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes((b"x" * BLOCK + bytes(BLOCK)) * 64 + bytes(100))
    with Copied(source, tmp_path, sparse=True) as copied:
        assert same(source, copied)
        assert copied.blocks <= 64 * BLOCK // 512 + EXTENT_TREE


def test_no_sparse_knows_before_the_first_byte_that_there_is_no_room(tmp_path: Path) -> None:
    source = tmp_path / "a"
    with open(source, "wb") as file:
        file.truncate(64 * MIB)
        file.write(b"x" * MIB)
    with filesystem(tmp_path, "tmpfs", 16 * MIB) as where:
        said: list[int] = []
        with pytest.raises(OSError, match="No space") as caught:
            Copied(source, where, sparse=False, advance=said.append)
        assert caught.value.errno == errno.ENOSPC
        assert said == []


@pytest.mark.parametrize("sparse", [None, True])
def test_no_space_midway(tmp_path: Path, sparse: bool | None) -> None:
    source = filled(tmp_path / "a", 32 * MIB)
    with filesystem(tmp_path, "tmpfs", 16 * MIB) as where:
        with pytest.raises(OSError, match="No space") as caught:
            Copied(source, where, sparse=sparse)
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("sparse", [None, False])
def test_where_space_cannot_be_reserved_zeros_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparse: bool | None
) -> None:
    source = scattered(tmp_path / "a", 20 * MIB + 5)
    blocks = source.stat().st_blocks

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "x")

    monkeypatch.setattr(libc, "fallocate", refuse)
    with Copied(source, tmp_path, sparse=sparse) as copied:
        assert same(source, copied)
        assert sum(copied.advanced) + sum(copied.skipped) == copied.size
        if sparse is None:
            assert copied.blocks >= blocks - EXTENT_TREE
        else:
            assert copied.blocks * 512 >= copied.size


LIMITED = """
import os, resource, sys
from jobvisor_workers.data.copy import copy
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
try:
    copy(source, target, 2 << 20, advance=print, window=None)
except OSError as error:
    sys.exit(error.errno)
"""


def test_a_limit_on_file_sizes_is_found_before_the_first_byte(tmp_path: Path) -> None:
    source = filled(tmp_path / "a", 2 * MIB)
    done = subprocess.run([sys.executable, "-c", LIMITED, source, tmp_path / "b"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (errno.EFBIG, ""), done.stderr
    assert (tmp_path / "b").stat().st_size == 0


def test_across_filesystems_in_both_directions(tmp_path: Path) -> None:
    source = scattered(tmp_path / "a", 24 * MIB + 77)
    with elsewhere() as directory, Copied(source, directory) as copied:
        assert same(source, copied)
        assert copied.method == "read-write"
        with Copied(copied.path, tmp_path) as back:
            assert same(source, back)


# --- sharing blocks ----------------------------------------------------------------------------------------------


def shared_blocks(path: Path) -> bool:
    return "shared" in subprocess.run(["filefrag", "-v", path], capture_output=True, text=True).stdout


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_sharing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflink, "STEP", 8 * MIB)
    with filesystem(tmp_path, kind, 400 * MIB) as where:
        source = scattered(where / "a", 60 * MIB + 1001)
        filled(where / "full", 20 * MIB + 77)
        for name in ("a", "full"):
            source = where / name
            for asked in (None, True):
                with Copied(source, where, reflink=asked) as copied:
                    assert copied.method == "reflink"
                    assert same(source, copied)
                    assert sum(copied.skipped) == copied.size
                    assert copied.advanced == []
                    assert shared_blocks(copied.path)
                    os.pwrite(copied.fd, b"changed", 5)
                    with open(source, "rb") as file:
                        assert os.pread(file.fileno(), 7, 5) != b"changed"
            for options in ({"reflink": False}, {"sparse": True}, {"sparse": False}):
                with Copied(source, where, **options) as copied:
                    assert copied.method == "read-write"
                    assert same(source, copied)
                    os.fsync(copied.fd)
                    assert not shared_blocks(copied.path)
        # The source grew since its size was taken: what is asked for ends inside one of its blocks.
        with Copied(where / "full", where, size=9 * MIB + 3) as copied:
            assert (where / "full").read_bytes()[: 9 * MIB + 3] == copied.path.read_bytes()
            assert shared_blocks(copied.path)
            assert copied.method == "reflink"
            assert sum(copied.advanced) == (9 * MIB + 3) % reflink.ALIGNMENT


def test_sharing_where_it_cannot_be(tmp_path: Path) -> None:
    source = filled(tmp_path / "a", 10_000)
    with (
        elsewhere() as directory,
        pytest.raises(JobError, match=r"cannot share blocks with .*/a: .*leave out --reflink"),
    ):
        Copied(source, directory, reflink=True)
    for sparse in (True, False):
        with pytest.raises(BadArgument, match="--reflink excludes --sparse"):
            Copied(source, tmp_path, reflink=True, sparse=sparse)


# --- the server copies -------------------------------------------------------------------------------------------


def test_a_filesystem_whose_server_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scattered(tmp_path / "a", 30 * MIB + 5)
    with open(source, "rb") as file:
        monkeypatch.setattr(module, "OFFLOADING", {libc.filesystem_type(file.fileno())})
    monkeypatch.setattr(reflink, "share", lambda *_: 0)
    with Copied(source, tmp_path) as copied:
        assert copied.method == "copy_file_range"
        assert same(source, copied)
    # reflink=False: such a server may share blocks.
    with Copied(source, tmp_path, reflink=False) as copied:
        assert copied.method == "read-write"

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "x")

    for answer in (refuse, lambda *_: 0):
        monkeypatch.setattr(os, "copy_file_range", answer)
        with Copied(source, tmp_path) as copied:
            assert copied.method == "read-write"
            assert same(source, copied)


def test_fuse(tmp_path: Path) -> None:
    need("bindfs", "fusermount3")
    (tmp_path / "below").mkdir()
    (tmp_path / "fuse").mkdir()
    source = scattered(tmp_path / "below" / "a", 20 * MIB + 5)
    with started("bindfs", "-f", tmp_path / "below", tmp_path / "fuse") as process:
        wait_until(lambda: os.path.ismount(tmp_path / "fuse") or process.poll() is not None, "it is mounted")
        if process.poll() is not None:
            pytest.skip("bindfs cannot mount")
        try:
            for sparse in (None, True, False):
                with Copied(tmp_path / "fuse" / "a", tmp_path / "fuse", sparse=sparse) as copied:
                    assert same(source, copied)
        finally:
            subprocess.run(["fusermount3", "-u", tmp_path / "fuse"], check=True)


# --- devices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [None, True, False])
def test_onto_a_device_and_back(tmp_path: Path, sparse: bool | None) -> None:
    size = 70 * MIB + 513
    source = scattered(tmp_path / "a", size)
    filled(tmp_path / "disk", 80 * MIB)
    with loop_device(tmp_path / "disk") as device:
        told: list[int] = []
        fd = os.open(device, os.O_RDWR)
        with open(source, "rb") as file:
            copy(file.fileno(), fd, size, sparse=sparse, advance=told.append, window=Window(fd))
        assert sum(told) == size
        os.fsync(fd)
        os.close(fd)
        with Copied(device, tmp_path, size=size, sparse=sparse) as copied:
            assert same(source, copied)
    content = (tmp_path / "disk").read_bytes()
    assert content[:size] == source.read_bytes()
    assert content[size:] == filled(tmp_path / "again", 80 * MIB).read_bytes()[size:], "the rest is untouched"


def test_a_device_that_cannot_zero_gets_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scattered(tmp_path / "a", 20 * MIB + 9)
    filled(tmp_path / "disk", 21 * MIB)

    def refuse(fd: int, request: int, argument: bytes) -> None:
        raise OSError(errno.EOPNOTSUPP, "x")

    monkeypatch.setattr(libc, "ioctl", refuse)
    with loop_device(tmp_path / "disk") as device, open(device, "r+b") as target, open(source, "rb") as file:
        copy(file.fileno(), target.fileno(), 20 * MIB + 9, advance=lambda _: None, window=None)
    assert (tmp_path / "disk").read_bytes()[: 20 * MIB + 9] == source.read_bytes()


def test_a_device_that_is_too_small(tmp_path: Path) -> None:
    source = filled(tmp_path / "a", 2 * MIB)
    before = filled(tmp_path / "disk", MIB, seed=2).read_bytes()
    with (
        loop_device(tmp_path / "disk") as device,
        open(device, "r+b") as target,
        open(source, "rb") as file,
        pytest.raises(NoSpace, match=f"cannot copy {2 * MIB} bytes to /dev/loop.*: it has {MIB}"),
    ):
        copy(file.fileno(), target.fileno(), 2 * MIB, advance=print, window=None)
    assert (tmp_path / "disk").read_bytes() == before


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_a_source_that_shrinks(tmp_path: Path) -> None:
    source = filled(tmp_path / "a", 40 * MIB)

    def shrink(_: int) -> None:
        os.truncate(source, 9 * MIB)

    with pytest.raises(JobError, match=r"cannot copy .*/a: it became shorter while it was copied"):
        Copied(source, tmp_path, advance=shrink)
    # In a hole: nothing is read there.
    with open(source, "r+b") as file:
        file.truncate(60 * MIB)
    with pytest.raises(JobError, match="became shorter"):
        Copied(source, tmp_path, advance=shrink)


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), RuntimeError("x")])
def test_an_exception_from_advance_leaves_no_thread_that_writes(tmp_path: Path, error: BaseException) -> None:
    source = filled(tmp_path / "a", 40 * MIB)
    calls = []

    def fail(count: int) -> None:
        calls.append(count)
        if len(calls) == 3:
            raise error

    target = os.open(tmp_path / "b", os.O_RDWR | os.O_CREAT)
    with open(source, "rb") as file, pytest.raises(type(error)):
        copy(file.fileno(), target, 40 * MIB, reflink=False, advance=fail, window=Window(target))
    before = sha256(tmp_path / "b")
    assert not any(thread.name == "data" for thread in threading.enumerate())
    assert sha256(tmp_path / "b") == before
    os.close(target)
    assert len(calls) == 3


def test_a_read_error_names_the_source_and_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = filled(tmp_path / "a", MIB)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(JobError, match=r"cannot read .*/a at byte 0: Input/output error") as caught:
        Copied(source, tmp_path, reflink=False)
    assert caught.value.cause == "io-error"


def test_a_target_with_content_is_refused(tmp_path: Path) -> None:
    source, target = filled(tmp_path / "a", 10), filled(tmp_path / "b", 10, seed=2)
    with open(source, "rb") as file, open(target, "r+b") as out, pytest.raises(ValueError, match="empty"):
        copy(file.fileno(), out.fileno(), 10, advance=print, window=None)
    assert target.read_bytes() == filled(tmp_path / "c", 10, seed=2).read_bytes()
