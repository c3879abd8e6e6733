"""Jobs on volumes that only libvirtd gets at; virsh and the files of the daemon say what became of them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Job, JobInfo, State, Supervisor
from jobvisor.testing import halt_at
from support.far import far
from support.images import MIB, filled, scattered
from support.libvirtd import Libvirtd

SIZE = 9 * MIB


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    home = tmp_path_factory.mktemp("home")
    with Supervisor(home, types=["jobvisor_workers.testing"], grace=0.3) as supervisor:
        yield supervisor


Start = Callable[..., Job]
Run = Callable[..., JobInfo]


@pytest.fixture
def start(supervisor: Supervisor, libvirtd: Libvirtd, tmp_path: Path) -> Start:
    where = far(libvirtd, tmp_path)
    return lambda name, **args: supervisor.start(name, connect=where, **args)


@pytest.fixture
def run(start: Start) -> Run:
    return lambda name, **args: start(name, **args).wait(60)


@pytest.fixture
def volume(libvirtd: Libvirtd) -> Path:
    """vol://ext4/one, as the daemon sees it, with holes."""
    path = libvirtd.make_volume("ext4", "one", SIZE, "raw", "--allocation", "0")
    scattered(path, SIZE)
    libvirtd.refresh("ext4")
    return path


ONE = "vol://ext4/one"


def test_bytes_come_through_a_stream(run: Run, start: Start, volume: Path, tmp_path: Path) -> None:
    content = volume.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    info = run("download", volume=ONE, target=str(tmp_path / "b"), checksum="sha256")
    assert info.ok, info.errmsg
    assert info.result is not None
    assert (info.result["method"], info.result["digest"]) == ("stream", digest)
    assert info.data_processed == info.data_total == SIZE
    assert (tmp_path / "b").read_bytes() == content
    assert (tmp_path / "b").stat().st_blocks * 512 < SIZE // 2
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0
    job = start("download", volume=ONE, target="-", offset=4097, length=5 * MIB)
    file = io.BytesIO()
    job.receive(file)
    assert job.wait(10).ok, job.info().errmsg
    assert file.getvalue() == content[4097:][: 5 * MIB]
    info = run("checksum", volume=ONE)
    assert info.result == {"algorithm": "sha256", "digest": digest, "size": SIZE, "content": False}


@pytest.mark.parametrize("offset", [0, 4097])
@pytest.mark.parametrize("piped", [False, True])
def test_bytes_go_through_a_stream(
    run: Run, start: Start, volume: Path, tmp_path: Path, offset: int, piped: bool
) -> None:
    before, content = volume.read_bytes(), filled(tmp_path / "b", 2 * MIB).read_bytes() + bytes(3 * MIB) + b"end"
    (tmp_path / "b").write_bytes(content)
    job = start("upload", volume=ONE, source="-" if piped else str(tmp_path / "b"), offset=offset)
    if piped:
        job.send(io.BytesIO(content))
    info = job.wait(60)
    assert info.ok, info.errmsg
    assert (info.abort_effect, info.result and info.result["size"]) == (None, len(content))
    assert volume.read_bytes() == before[:offset] + content + before[offset + len(content) :]


def test_a_volume_from_another_one(run: Run, volume: Path, libvirtd: Libvirtd) -> None:
    two = libvirtd.make_volume("ext4", "two", SIZE)
    assert run("upload", volume="vol://ext4/two", source=ONE).ok
    assert two.read_bytes() == volume.read_bytes()


def test_a_raw_volume_does_not_grow_and_an_image_does(
    run: Run, start: Start, volume: Path, libvirtd: Libvirtd, tmp_path: Path
) -> None:
    before = volume.read_bytes()
    long = filled(tmp_path / "long", SIZE + 1)
    info = run("upload", volume=ONE, source=str(long))
    assert f"needs {SIZE + 1} bytes, the volume has {SIZE} bytes" in (info.errmsg or "")
    assert volume.read_bytes() == before
    job = start("upload", volume=ONE, source="-")
    job.send(io.BytesIO(long.read_bytes()))
    info = job.wait(10)
    assert f"more than the {SIZE} bytes that fit into it" in (info.errmsg or "")
    assert volume.stat().st_size == SIZE
    assert info.warnings == [f"{ONE} is partly overwritten: between byte 0 and byte {SIZE}"]
    image = libvirtd.make_volume("ext4", "two", 64 * MIB, "qcow2")
    assert run("upload", volume="vol://ext4/two", source=str(long)).ok
    assert image.read_bytes() == long.read_bytes()


def test_a_stream_is_suspended_and_aborted_like_any_copy(
    start: Start, supervisor: Supervisor, volume: Path, tmp_path: Path
) -> None:
    filled(volume, SIZE)
    with halt_at(supervisor, "copy", after=2 * MIB) as halt:
        job = start("download", volume=ONE, target=str(tmp_path / "b"))
        halt.wait()
        assert not job.info().delegated
        assert job.suspend().state is State.SUSPENDED
        halt.release()
        job.resume()
    assert job.wait(10).ok
    assert (tmp_path / "b").read_bytes() == volume.read_bytes()
    before, content = volume.read_bytes(), filled(tmp_path / "b", SIZE, seed=2)
    with halt_at(supervisor, "write", after=2 * MIB) as halt:
        job = start("upload", volume=ONE, source=str(content))
        halt.wait()
        info = job.abort()
    assert info.state is State.ABORTED
    assert info.warnings
    most = int(info.warnings[0].split("byte ")[2].split(";")[0])
    assert volume.read_bytes()[most:] == before[most:]


@pytest.mark.parametrize("way", ["download", "upload"])
def test_libvirtd_is_killed_on_the_way(
    start: Start, supervisor: Supervisor, libvirtd: Libvirtd, volume: Path, tmp_path: Path, way: str
) -> None:
    filled(volume, SIZE)
    other = {"target": str(tmp_path / "b")} if way == "download" else {"source": str(filled(tmp_path / "c", SIZE))}
    with halt_at(supervisor, "copy" if way == "download" else "write", after=2 * MIB) as halt:
        job = start(way, volume=ONE, **other)
        halt.wait()
        libvirtd.kill()
        halt.release()
        info = job.wait(20)
    libvirtd.start()
    assert (info.state, info.cause) == ("failed", "error")
    assert (info.errmsg or "").startswith(f"cannot {way}")
    assert "the connection to qemu+ext://far.example/" in (info.errmsg or "")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("name", "args", "why"),
    [
        ("download", {"target": "vol://ext4/two"}, "it has no path here; clone makes a volume"),
        ("download", {"volume": "vol://ext4/none", "target": "b"}, "no storage vol with matching name 'none'"),
        ("upload", {"source": "-", "sparse": True}, "leaves what was there before"),
        ("checksum", {"content": True}, "only its container can be read from here"),
        ("convert", {"source": ONE, "target": "b"}, "convert needs the file itself, and what qemu+ext://"),
        ("commit", {}, "commit needs the file itself"),
        ("rebase", {"flatten": True}, "rebase needs the file itself"),
        ("check", {}, "check needs the file itself"),
        ("compare", {"first": ONE, "second": "b"}, "compare needs the file itself"),
    ],
)
def test_what_cannot_be_done_from_here(
    run: Run, libvirtd: Libvirtd, volume: Path, tmp_path: Path, name: str, args: dict[str, Any], why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before, listed = volume.read_bytes(), libvirtd.volumes("ext4")
    needs_volume = not {"source", "first"} & args.keys() or name == "upload"
    info = run(name, **({"volume": ONE} if needs_volume else {}) | args)
    assert info.state is State.FAILED
    assert why in (info.errmsg or "")
    assert (volume.read_bytes(), libvirtd.volumes("ext4")) == (before, listed)
    assert not os.path.exists("b")
