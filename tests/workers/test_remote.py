"""Jobs on volumes that only libvirtd gets at; virsh and the files of the daemon say what became of them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Job, JobInfo, State, Supervisor, UsageError
from jobvisor.asking import Options
from jobvisor.testing import halt_at, kill_at
from jobvisor_workers.protocol import Requester
from support.far import far
from support.frozen import blocked, frozen
from support.images import MIB, filled, identical, overlay, qcow2, qemu_img, scattered
from support.libvirtd import Libvirtd
from support.lock_scenes import wait_until
from support.users import NOBODY

SIZE = 9 * MIB


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    home = tmp_path_factory.mktemp("home")
    with Supervisor(home, types=["jobvisor_workers.testing"]) as supervisor:
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


# --- what libvirtd does by itself ------------------------------------------------------------------------------------


def test_wipe(run: Run, libvirtd: Libvirtd) -> None:
    path = libvirtd.make_volume("ext4", "one", SIZE)
    filled(path, SIZE)
    info = run("wipe", volume=ONE)
    assert info.ok, info.errmsg
    assert (info.result or {})["overwritten"] is True
    assert (info.warnings, info.delegated, info.abort_effect) == ([], False, None)
    assert path.read_bytes()[:SIZE] == bytes(SIZE)
    os.truncate(path, 2 * SIZE)
    libvirtd.refresh("ext4")
    info = run("wipe", volume=ONE)
    assert (info.result or {})["overwritten"] is False
    assert info.warnings == [f"{ONE} has holes: libvirtd then gives all of its blocks back instead of overwriting them"]


def test_resize_and_delete(run: Run, volume: Path, libvirtd: Libvirtd) -> None:
    assert "it would lose what lies beyond byte 1048576" in (run("resize", volume=ONE, capacity=MIB).errmsg or "")
    info = run("resize", volume=ONE, capacity=MIB, delta=True)
    assert info.ok, info.errmsg
    assert (info.result or {})["capacity"] == volume.stat().st_size == SIZE + MIB
    info = run("resize", volume=ONE, capacity=SIZE, shrink=True)
    assert info.ok, info.errmsg
    assert volume.stat().st_size == libvirtd.info("ext4", "one")[0] == SIZE
    assert run("delete", volume=ONE, zeroed=True).ok
    assert libvirtd.volumes("ext4") == set()
    assert not volume.exists()


def test_create(run: Run, libvirtd: Libvirtd, tmp_path: Path) -> None:
    filled(tmp_path / "key", 8)
    where = libvirtd.pool("ext4")
    info = run("create", target=ONE, capacity=64 * MIB)
    assert info.ok, info.errmsg
    assert info.result == {
        "target": ONE, "format": "raw", "capacity": 64 * MIB, "allocation": 0, "backing": None,
        "backing_format": None, "encryption": None,
    }  # fmt: skip
    assert libvirtd.info("ext4", "one") == (64 * MIB, 0)
    assert "exists already" in (run("create", target=ONE, capacity=MIB).errmsg or "")
    two = "vol://ext4/two"
    info = run("create", target=two, capacity=0, format="qcow2", backing_vol=ONE, cluster_size=128 << 10)
    assert info.ok, info.errmsg
    assert "--encrypt: libvirtd does the work" in (
        run("create", target="vol://ext4/x", capacity=MIB, encrypt="luks", secret_file=str(tmp_path / "key")).errmsg
        or ""
    )
    assert libvirtd.info("ext4", "two")[0] == 64 * MIB
    assert "cluster_size: 131072" in qemu_img("info", where / "two")
    assert "cannot create" in (run("create", target="vol://ext4/x", capacity=MIB, prealloc="full").errmsg or "")
    assert libvirtd.volumes("ext4") == {"one", "two"}


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_clone_there(run: Run, volume: Path, libvirtd: Libvirtd, format: str, tmp_path: Path) -> None:
    if format == "qcow2":
        volume.unlink()
        qcow2(volume, scattered(tmp_path / "content", SIZE))
        libvirtd.refresh("ext4")
    libvirtd.pool("xfs")
    for target in ("vol://ext4/two", "vol://xfs/two"):
        info = run("clone", source=ONE, target=target)
        assert info.ok, info.errmsg
        assert ((info.result or {})["method"], (info.result or {})["format"]) == ("libvirt", format)
        assert info.data_processed == info.data_total
        pool = target.split("/")[2]
        assert identical(volume, libvirtd.path(pool, "two"))
        assert "exists already" in (run("clone", source=ONE, target=target).errmsg or "")
        assert "two" in libvirtd.volumes(pool)


def test_clone_from_there_and_to_there(run: Run, volume: Path, libvirtd: Libvirtd, tmp_path: Path) -> None:
    info = run("clone", source=ONE, target=str(tmp_path / "b"))
    assert info.ok, info.errmsg
    assert (tmp_path / "b").read_bytes() == volume.read_bytes()
    assert (tmp_path / "b").stat().st_blocks * 512 < SIZE // 2
    image = overlay(tmp_path / "c", "b", "raw", "1M 1M")
    for source, name in (("b", "two"), ("c", "three")):
        info = run("clone", source=str(tmp_path / source), target=f"vol://ext4/{name}")
        assert info.ok, info.errmsg
        there = libvirtd.path("ext4", name)
        assert there.read_bytes() == (tmp_path / source).read_bytes()
        assert there.stat().st_blocks * 512 < SIZE // 2
    assert info.warnings == [f"{image} is based on b, and so is the clone, wherever it is"]
    # Its pool knows what it is now.
    assert "<format type='qcow2'/>" in libvirtd.virsh("vol-dumpxml", "three", "--pool", "ext4")


def test_a_clone_that_ends_early_leaves_no_volume(
    run: Run, start: Start, supervisor: Supervisor, libvirtd: Libvirtd, tmp_path: Path
) -> None:
    libvirtd.pool("ext4")
    filled(tmp_path / "a", SIZE)
    with halt_at(supervisor, "copy", after=2 * MIB) as halt:
        job = start("clone", source=str(tmp_path / "a"), target=ONE)
        halt.wait()
        assert libvirtd.volumes("ext4") == {"one"}
        assert job.abort().state is State.ABORTED
    assert libvirtd.volumes("ext4") == set()
    libvirtd.pool("tiny")
    info = run("clone", source=str(tmp_path / "a"), target="vol://tiny/one")
    assert info.cause == "no-space"
    assert libvirtd.volumes("tiny") == set()


def test_an_abort_waits_for_libvirtd_and_takes_back_what_it_made(
    start: Start, volume: Path, libvirtd: Libvirtd
) -> None:
    with frozen(volume.parent):
        job = start("clone", source=ONE, target="vol://ext4/two")
        wait_until(lambda: blocked(libvirtd), "libvirtd is at work")
        with pytest.raises(UsageError, match="another program does its work"):
            job.suspend()
        assert job.info().delegated
        info = job.abort(wait=False)
        assert info.abort_effect == "nothing is stopped: libvirtd goes on until vol://ext4/two is made"
        assert job.info().state is State.ABORTING
    ended = job.wait(20)
    assert ended.state is State.ABORTED
    assert ended.warnings == ["libvirtd could not be stopped: vol://ext4/two is made all the same"]
    assert libvirtd.volumes("ext4") == {"one"}


def test_libvirtd_is_killed_at_its_work(start: Start, libvirtd: Libvirtd, volume: Path) -> None:
    with frozen(volume.parent):
        job = start("clone", source=ONE, target="vol://ext4/two")
        wait_until(lambda: blocked(libvirtd), "libvirtd is at work")
        assert libvirtd.process is not None
        libvirtd.process.kill()
    info = job.wait(20)
    libvirtd.process.wait()
    libvirtd.start()
    assert (info.state, info.cause) == ("failed", "error")
    assert "the connection to qemu+ext://far.example/" in (info.errmsg or "")
    assert info.warnings[0].startswith("libvirtd may go on and make vol://ext4/two, ")


def test_a_killed_worker_says_what_it_leaves(
    run: Run, start: Start, supervisor: Supervisor, libvirtd: Libvirtd, tmp_path: Path
) -> None:
    libvirtd.pool("ext4")
    filled(tmp_path / "a", SIZE)
    with kill_at(supervisor, "copy", after=2 * MIB) as death:
        start("clone", source=str(tmp_path / "a"), target=ONE)
    assert death.info.cause == "killed"
    assert f"{ONE} may be left" in death.info.warnings[-1]
    assert run("delete", volume=ONE).ok
    assert libvirtd.volumes("ext4") == set()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("upload", {"volume": ONE, "source": "a"}),
        ("download", {"volume": ONE, "target": "b"}),
        ("checksum", {"volume": ONE}),
        ("wipe", {"volume": ONE}),
        ("resize", {"volume": ONE, "capacity": 2 * SIZE}),
        ("delete", {"volume": ONE}),
        ("create", {"target": "vol://ext4/two", "capacity": MIB}),
        ("clone", {"source": ONE, "target": "vol://ext4/two"}),
        ("clone", {"source": ONE, "target": "b"}),
        ("clone", {"source": "a", "target": "vol://ext4/two"}),
    ],
)
def test_a_dry_run_changes_nothing(
    run: Run, libvirtd: Libvirtd, volume: Path, tmp_path: Path, name: str, args: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    filled(tmp_path / "a", MIB)
    before = volume.read_bytes()
    info = run(name, **args, dry_run=True)
    assert info.ok, info.errmsg
    assert info.result is not None
    assert [each["path"] for each in info.result["reads"] + info.result["writes"]]
    assert (volume.read_bytes(), libvirtd.volumes("ext4"), os.path.exists("b")) == (before, {"one"}, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for somebody else")
def test_a_user_who_may_ask_libvirtd_and_not_open_the_files(
    supervisor: Supervisor, libvirtd: Libvirtd, volume: Path
) -> None:
    content = volume.read_bytes()
    user = Requester(NOBODY.uid, NOBODY.uid, list(NOBODY.groups), NOBODY.name, "/")
    core = supervisor._core.seen_by(user)
    options = Options(connect=libvirtd.uri)
    job = supervisor.job(core.start("checksum", options, {"volume": ONE}).result(10).id)
    info = job.wait(20)
    assert info.ok, info.errmsg
    assert (info.result or {})["digest"] == hashlib.sha256(content).hexdigest()
    job = supervisor.job(core.start("convert", options, {"source": ONE, "target": "/tmp/none"}).result(10).id)
    assert "as a user who may open it" in (job.wait(20).errmsg or "")
