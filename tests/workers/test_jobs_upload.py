"""The job type upload, as real jobs on real files, devices and pipes."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, Job, JobInfo, State, Supervisor
from jobvisor.testing import halt_at
from support.images import MIB, everything_in, filesystem, filled, identical, qcow2, scattered
from support.lock_scenes import loop_device

SIZE = 9 * MIB + 777


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("home"), types=["jobvisor_workers.testing"]) as supervisor:
        yield supervisor


Start = Callable[..., Job]
Run = Callable[..., JobInfo]


@pytest.fixture
def start(supervisor: Supervisor) -> Start:
    def start(volume: Path | str, source: Path | str, **options: Any) -> Job:
        return supervisor.start("upload", volume=str(volume), source=str(source), **options)

    return start


@pytest.fixture
def upload(start: Start) -> Run:
    """`source`: bytes are sent through a pipe."""

    def upload(volume: Path | str, source: Path | bytes, **options: Any) -> JobInfo:
        if isinstance(source, Path):
            return start(volume, source, **options).wait(60)
        job = start(volume, "-", **options)
        job.send(io.BytesIO(source))
        return job.wait(60)

    return upload


@pytest.fixture(params=["file", "pipe"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], Path | bytes]:
    """Content as what a job reads: of a file with holes where there are zeros, or of a pipe."""

    def given(content: bytes) -> Path | bytes:
        if request.param == "pipe":
            return content
        (tmp_path / "source").write_bytes(content)
        os.system(f"fallocate --dig-holes {tmp_path}/source")
        return tmp_path / "source"

    return given


Given = Callable[[bytes], Path | bytes]


def lines(count: int) -> bytes:
    """Every byte there is, in many orders."""
    return b"".join(bytes(range(256)) + line.to_bytes(8, "big") for line in range(count))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("offset", [0, 4096, 12345])
@pytest.mark.parametrize("kind", ["file", "device"])
def test_the_bytes_arrive_and_the_rest_stays(
    upload: Run, given: Given, tmp_path: Path, offset: int, sparse: bool, kind: str
) -> None:
    content = lines(5000) + bytes(3 * MIB) + lines(3000) + bytes(MIB + 1)
    volume = filled(tmp_path / "a.raw", 8 * MIB)
    before = volume.read_bytes()

    def check(target: Path | str) -> None:
        info = upload(target, given(content), offset=offset, sparse=sparse, checksum="sha256")
        assert info.ok, info.errmsg
        assert info.result is not None
        assert (info.result["size"], info.result["offset"]) == (len(content), offset)
        assert info.result["digest"] == hashlib.sha256(content).hexdigest()
        assert info.data_processed == len(content)
        expected = before[:offset] + content + before[offset + len(content) :]
        assert Path(target).read_bytes() == expected

    if kind == "device":
        with loop_device(volume) as device:
            check(device)
    else:
        check(volume)
        assert (volume.stat().st_blocks * 512 < 6 * MIB) == sparse


def test_zeros_replace_what_was_there_also_where_no_range_can_be_zeroed(upload: Run, tmp_path: Path) -> None:
    with filesystem(tmp_path, "tmpfs", 16 * MIB) as where:
        volume = filled(where / "a.raw", 4 * MIB)
        source = scattered(tmp_path / "source", 4 * MIB)
        assert upload(volume, source).ok
        assert volume.read_bytes() == source.read_bytes()


def test_a_whole_raw_volume_by_default_without_a_warning(upload: Run, given: Given, tmp_path: Path) -> None:
    volume, content = filled(tmp_path / "a.raw", 5000 * 264), lines(5000)
    inode = volume.stat().st_ino
    info = upload(volume, given(content))
    assert (info.ok, info.warnings) == (True, []), info.errmsg
    assert volume.read_bytes() == content
    assert volume.stat().st_ino == inode
    assert info.data_total == (None if isinstance(given(b""), bytes) else len(content))


def test_less_than_the_volume_has_is_warned_of(upload: Run, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", 2 * MIB)
    info = upload(volume, filled(tmp_path / "b", MIB, seed=2))
    assert info.ok
    assert info.warnings == [f"the last {MIB} bytes of {volume} stay as they are"]


@pytest.mark.parametrize("kind", ["raw", "device"])
def test_what_does_not_fit_is_refused_before_the_first_byte_where_it_can_be_known(
    start: Start, upload: Run, tmp_path: Path, kind: str
) -> None:
    volume = filled(tmp_path / "a.raw", 2 * MIB)
    long = filled(tmp_path / "long", 3 * MIB, seed=2)
    before = everything_in(tmp_path)

    def check(target: Path | str) -> None:
        for job in (
            start(target, long),
            start(target, "-", length=3 * MIB),
            start(target, "-", length=MIB, offset=MIB + 1),
        ):
            info = job.wait(10)
            assert info.cause is Cause.NO_SPACE
            assert (info.errmsg or "").startswith(f"cannot upload to {target} from ")
        assert everything_in(tmp_path) == before
        info = upload(target, long.read_bytes())
        assert (info.state, info.cause) == (State.FAILED, Cause.NO_SPACE)
        assert f"standard input has more than the {2 * MIB} bytes that fit into it" in (info.errmsg or "")
        assert info.warnings == [f"{target} is partly overwritten: between byte 0 and byte {2 * MIB}"]
        # Nothing was lost that fits.
        assert Path(target).read_bytes() == long.read_bytes()[: 2 * MIB]

    if kind == "device":
        with loop_device(volume) as device:
            check(device)
    else:
        check(volume)


def test_images_and_empty_files_grow(upload: Run, given: Given, tmp_path: Path) -> None:
    disk = filled(tmp_path / "disk", 3 * MIB)
    content = qcow2(tmp_path / "full.qcow2", disk).read_bytes()
    small = qcow2(tmp_path / "small.qcow2", scattered(tmp_path / "none", 3 * MIB))
    (tmp_path / "empty").touch()
    for volume in (small, tmp_path / "empty"):
        info = upload(volume, given(content))
        assert info.ok, info.errmsg
        assert volume.read_bytes() == content
        assert identical(volume, disk)


@pytest.mark.parametrize("sent", [0, MIB, 3 * MIB])
def test_another_length_than_was_said(upload: Run, given: Given, tmp_path: Path, sent: int) -> None:
    volume = filled(tmp_path / "a.raw", 4 * MIB)
    before, content = volume.read_bytes(), filled(tmp_path / "b", sent, seed=2).read_bytes()
    source = given(content)
    info = upload(volume, source, length=2 * MIB)
    assert (info.state, info.cause) == (State.FAILED, Cause.ERROR)
    if isinstance(source, Path):
        assert (
            info.errmsg == f"cannot upload to {volume} from {source}: it has {sent} bytes, and --length says {2 * MIB}"
        )
        assert volume.read_bytes() == before
        return
    assert info.data_total == 2 * MIB
    written = min(sent, 2 * MIB)
    assert volume.read_bytes() == content[:written] + before[written:]
    many = f"has more than the {2 * MIB} bytes of --length"
    few = f"ended after {sent} of the {2 * MIB} bytes of --length"
    assert info.errmsg == f"cannot upload to {volume}: standard input {many if sent > 2 * MIB else few}"
    left = f"{volume} is partly overwritten: between byte 0 and byte {written}; elsewhere it is as it was"
    assert info.warnings == ([left] if written else [])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"offset": SIZE + 1}, f"from byte {SIZE + 1} on: it has {SIZE} bytes"),
        ({"expect": "xyz"}, "a sha256 has 64 hexadecimal digits, not 'xyz'"),
        ({"source": "a.raw"}, "is the same file as"),
        ({"source": "nix"}, "no such file"),
        ({"volume": "nix"}, "no such file"),
        ({"volume": "-"}, "no such file"),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    upload: Run, tmp_path: Path, options: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    filled(tmp_path / "a.raw", SIZE)
    filled(tmp_path / "b", MIB)
    before = everything_in(tmp_path)
    info = upload(options.pop("volume", "a.raw"), Path(options.pop("source", "b")), **options)
    assert (info.state, info.cause) == (State.FAILED, Cause.ERROR)
    assert why in (info.errmsg or "")
    assert everything_in(tmp_path) == before


def test_another_digest_than_expected(upload: Run, given: Given, tmp_path: Path) -> None:
    volume, content = filled(tmp_path / "a.raw", 5000 * 264), lines(5000)
    digest = hashlib.sha256(content).hexdigest()
    assert upload(volume, given(content), expect=digest).ok
    info = upload(volume, given(content), expect="1" * 64)
    assert info.errmsg == f"cannot upload to {volume}: its sha256 is {digest}, not {'1' * 64}"
    assert info.result == {"algorithm": "sha256", "digest": digest}
    assert info.warnings == [f"{volume} is partly overwritten: between byte 0 and byte {len(content)}"]


def test_an_input_that_is_cut_off(start: Start, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", SIZE)
    before = volume.read_bytes()
    job = start(volume, "-")

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError(5, "unreadable")
            return super().read(100_000)

    with pytest.raises(OSError, match="unreadable"):
        job.send(Broken(bytes(1 << 20)))
    info = job.wait(10)
    sent = 65536  # of which no part was sent
    assert info.state is State.FAILED
    assert "before its sender was done" in (info.errmsg or "")
    count = int((info.errmsg or "").split(" after ")[1].split()[0])
    assert 0 <= count <= 2 * sent
    assert volume.read_bytes() == bytes(count) + before[count:]
    assert info.warnings == [
        f"{volume} is partly overwritten: between byte 0 and byte {count}; elsewhere it is as it was"
    ]


@pytest.mark.parametrize(("length", "space"), [(2 * MIB, MIB), (None, None)])
def test_a_dry_run_says_what_it_would_do(start: Start, tmp_path: Path, length: int | None, space: int | None) -> None:
    volume = filled(tmp_path / "a.raw", MIB)
    os.truncate(volume, 3 * MIB)
    before = everything_in(tmp_path)
    info = start(volume, "-", length=length, dry_run=True).wait(10)
    assert info.result is not None, info.errmsg
    assert info.result["reads"] == [{"path": "-", "bytes": length}]
    assert info.result["writes"] == [{"path": str(volume), "bytes": length}]
    assert info.result["space"] == space
    assert everything_in(tmp_path) == before


def test_an_abort_says_before_what_it_leaves(start: Start, supervisor: Supervisor, tmp_path: Path) -> None:
    volume, content = filled(tmp_path / "a.raw", 32 * MIB), filled(tmp_path / "b", 32 * MIB, seed=2)
    before = volume.read_bytes()
    with halt_at(supervisor, "write", after=8 * MIB) as halt:
        job = start(volume, content)
        halt.wait()
        effect = job.info().abort_effect or ""
        assert effect.startswith("partly overwritten: between byte 0 and byte ")
        most = int(effect.split("byte ")[2].split(";")[0])
        assert 8 * MIB <= most <= 24 * MIB
        info = job.abort()
    assert info.state is State.ABORTED
    assert info.warnings == [f"{volume} is {effect}".replace(f"byte {most}", f"byte {8 * MIB}")]
    after = volume.read_bytes()
    assert after[: 8 * MIB] == content.read_bytes()[: 8 * MIB]
    assert after[most:] == before[most:]


def test_an_abort_of_what_grew_gives_that_back(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a.raw").touch()
    job = start(tmp_path / "a.raw", filled(tmp_path / "b", SIZE), bandwidth=20 * MIB)
    job.wait(10, until=State.RUNNING)
    assert job.suspend().state is State.SUSPENDED
    info = job.abort()
    assert (info.state, info.abort_effect, info.warnings) == (State.ABORTED, None, [])
    assert (tmp_path / "a.raw").stat().st_size == 0


def test_pipes_of_two_jobs_side_by_side(start: Start, tmp_path: Path, supervisor: Supervisor) -> None:
    """What one job writes another one reads."""
    source = scattered(tmp_path / "a.raw", SIZE)
    target = filled(tmp_path / "b.raw", SIZE)
    reading, writing = os.pipe()
    there = supervisor.start("download", volume=str(source), target="-")
    here = start(target, "-", length=SIZE, sparse=True)

    def relay() -> None:
        with open(writing, "wb") as file:
            there.receive(file)

    thread = threading.Thread(target=relay)
    thread.start()
    with open(reading, "rb") as file:
        assert here.send(file) == SIZE
    thread.join()
    assert there.wait(10).ok
    assert here.wait(10).ok
    assert target.read_bytes() == source.read_bytes()
