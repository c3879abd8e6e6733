"""The job type download, as real jobs on real files, devices and pipes."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, Job, JobInfo, State, Supervisor
from support.images import MIB, everything_in, filled, scattered
from support.lock_scenes import loop_device

SIZE = 9 * MIB + 777


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


Start = Callable[..., Job]
Run = Callable[..., JobInfo]


@pytest.fixture
def start(supervisor: Supervisor) -> Start:
    def start(volume: Path, target: Path | str, **options: Any) -> Job:
        return supervisor.start("download", volume=str(volume), target=str(target), **options)

    return start


@pytest.fixture
def download(start: Start) -> Run:
    return lambda *where, **options: start(*where, **options).wait(60)


def received(job: Job) -> bytes:
    file = io.BytesIO()
    job.receive(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("offset", "length", "checksum"),
    [(0, None, None), (0, None, "sha256"), (12345, None, "md5"), (4096, 5 * MIB + 1, None), (0, 1, None)],
)
def test_file_and_pipe_get_the_same_bytes(
    start: Start, tmp_path: Path, offset: int, length: int | None, checksum: str | None
) -> None:
    volume = scattered(tmp_path / "a.raw", SIZE)
    end = None if length is None else offset + length
    content = volume.read_bytes()[offset:end]
    options = {"offset": offset, "length": length, "checksum": checksum}
    info = start(volume, tmp_path / "b", **options).wait(60)
    assert info.ok, info.errmsg
    assert (tmp_path / "b").read_bytes() == content
    assert info.data_processed == info.data_total == len(content)
    job = start(volume, "-", **options)
    assert received(job) == content
    piped = job.wait(60)
    assert piped.ok, piped.errmsg
    assert piped.resources == [str(volume)]
    for found in (info.result, piped.result):
        assert found is not None
        assert (found["offset"], found["size"]) == (offset, len(content))
        if checksum:
            assert (found["algorithm"], found["digest"]) == (checksum, hashlib.new(checksum, content).hexdigest())
        else:
            assert "digest" not in found


@pytest.mark.parametrize("offset", [0, 4096], ids=["whole", "part"])
@pytest.mark.parametrize(("sparse", "least", "most"), [(None, 1, 4), (True, 0, 3), (False, 8, 11)])
def test_how_much_space_it_takes(
    download: Run, tmp_path: Path, sparse: bool | None, least: int, most: int, offset: int
) -> None:
    volume = scattered(tmp_path / "a.raw", SIZE)
    assert download(volume, tmp_path / "b", sparse=sparse, offset=offset).ok
    assert least * MIB <= (tmp_path / "b").stat().st_blocks * 512 <= most * MIB
    assert (tmp_path / "b").read_bytes() == volume.read_bytes()[offset:]


@pytest.mark.parametrize("checksum", [None, "sha256"])
def test_onto_a_device_only_with_replace_and_only_what_fits(
    download: Run, tmp_path: Path, checksum: str | None
) -> None:
    volume = scattered(tmp_path / "a.raw", 3 * MIB)
    with loop_device(filled(tmp_path / "backing", 4 * MIB)) as device:
        assert "exists already" in (download(volume, device).errmsg or "")
        info = download(volume, device, replace=True, checksum=checksum)
        assert info.ok, info.errmsg
        assert info.warnings == [f"the last {MIB} bytes of {device} stay as they were"]
        content = Path(device).read_bytes()
        assert content[: 3 * MIB] == volume.read_bytes()
        assert content[3 * MIB :] == filled(tmp_path / "again", 4 * MIB).read_bytes()[3 * MIB :]
        filled(tmp_path / "large", 5 * MIB)
        info = download(tmp_path / "large", device, replace=True)
        assert info.cause is Cause.NO_SPACE


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"offset": SIZE}, f"from byte {SIZE} on: it has {SIZE} bytes"),
        ({"offset": 1, "length": SIZE}, f"up to byte {SIZE + 1}: it has {SIZE} bytes"),
        ({"expect": "12"}, "a sha256 has 64 hexadecimal digits, not '12'"),
        ({"expect": "0" * 32, "checksum": "md5"}, "not 00000000000000000000000000000000"),
        ({"target": "-", "sparse": False}, "with --no-sparse: its target is a pipe"),
        ({"target": "-", "replace": True}, "with --replace: its target is a pipe"),
        ({"target": "nix/b"}, "no such directory"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(
    download: Run, tmp_path: Path, options: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    volume = filled(tmp_path / "a.raw", SIZE)
    before = everything_in(tmp_path)
    info = download(volume, options.pop("target", "b"), **options)
    assert (info.state, info.cause) == (State.FAILED, Cause.ERROR)
    assert (info.errmsg or "").startswith(("cannot download ", "cannot create "))
    assert why in (info.errmsg or "")
    assert everything_in(tmp_path) == before


def test_a_digest_that_was_expected(download: Run, tmp_path: Path) -> None:
    volume = filled(tmp_path / "a.raw", SIZE)
    value = hashlib.sha256(volume.read_bytes()).hexdigest()
    info = download(volume, tmp_path / "b", expect=value.upper())
    assert info.ok, info.errmsg
    assert info.result is not None
    assert info.result["digest"] == value
    wrong = download(volume, tmp_path / "c", expect="0" * 64)
    assert wrong.errmsg == f"cannot download {volume}: its sha256 is {value}, not {'0' * 64}"
    assert wrong.result == {"algorithm": "sha256", "digest": value}
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("checksum", [None, "sha256"])
def test_an_abort_leaves_nothing(start: Start, tmp_path: Path, checksum: str | None) -> None:
    volume = filled(tmp_path / "a.raw", SIZE)
    before = everything_in(tmp_path)
    job = start(volume, tmp_path / "b", checksum=checksum, bandwidth=20 * MIB)
    job.wait(10, until=State.RUNNING)
    assert job.suspend().state is State.SUSPENDED
    job.resume()
    assert job.abort().state is State.ABORTED
    assert everything_in(tmp_path) == before


def test_a_reader_that_leaves(start: Start, tmp_path: Path) -> None:
    job = start(filled(tmp_path / "a.raw", SIZE), "-")

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        job.receive(Full())
    info = job.wait(10)
    assert info.state is State.FAILED
    assert (info.errmsg or "").startswith("cannot download: the reader of its output left after ")


@pytest.mark.parametrize("target", ["b", "-"])
def test_a_dry_run_says_what_it_would_do(download: Run, tmp_path: Path, target: str) -> None:
    volume = tmp_path / "a.raw"
    volume.write_bytes(bytes(MIB))
    os.truncate(volume, 5 * MIB)
    name = target if target == "-" else str(tmp_path / target)
    info = download(volume, name, offset=4096, dry_run=True)
    assert info.result is not None, info.errmsg
    assert info.result["reads"] == [{"path": str(volume), "bytes": MIB - 4096}]
    written, space = (5 * MIB - 4096, None) if target == "-" else (MIB - 4096, MIB - 4096)
    assert info.result["writes"] == [{"path": name, "bytes": written}]
    assert (info.result["space"], info.result["exact"]) == (space, True)
    assert not (tmp_path / "b").exists()


def test_nothing_is_something_too(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a.raw").touch()
    assert start(tmp_path / "a.raw", tmp_path / "b", checksum="sha256").wait(10).ok
    assert (tmp_path / "b").read_bytes() == b""
    job = start(tmp_path / "a.raw", "-")
    assert received(job) == b""
    assert job.wait(10).ok
