"""The job types on pools, as real jobs at a real libvirtd; virsh looks at what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Job, JobInfo, Supervisor, UsageError, WaitTimeout
from support.frozen import blocked, frozen
from support.images import MIB, filled
from support.libvirtd import Libvirtd
from support.lock_scenes import started, wait_until


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("home"), grace=0.2) as supervisor:
        yield supervisor


Start = Callable[..., Job]


@pytest.fixture
def start(supervisor: Supervisor, libvirtd: Libvirtd) -> Start:
    def start(verb: str, pool: str = "own", **args: Any) -> Job:
        return supervisor.start(f"pool-{verb}", pool=f"pool://{pool}", connect=libvirtd.uri, **args)

    return start


@pytest.fixture
def done(start: Start) -> Callable[..., dict[str, Any]]:
    def done(verb: str, pool: str = "own", **args: Any) -> dict[str, Any]:
        info = start(verb, pool, **args).wait(60)
        assert info.ok, info.errmsg
        assert (info.delegated, info.abort_effect) == (False, None)
        assert info.result is not None
        return info.result

    return done


@pytest.fixture
def refused(start: Start) -> Callable[..., JobInfo]:
    def refused(verb: str, *words: str, pool: str = "own", **args: Any) -> JobInfo:
        info = start(verb, pool, **args).wait(60)
        assert info.state == "failed", info
        for word in words:
            assert word in (info.errmsg or ""), info.errmsg
        return info

    return refused


@pytest.fixture
def own(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Path]:
    """The directory of a pool that is defined, and not built or started yet."""
    directory = libvirtd.directory / "an own pool"
    libvirtd.virsh("pool-define-as", "own", "dir", "--target", directory)
    yield directory
    libvirtd.run("pool-destroy", "own")
    libvirtd.virsh("pool-undefine", "own")
    if directory.exists():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def active(libvirtd: Libvirtd) -> set[str]:
    return set(libvirtd.virsh("pool-list", "--name").split())


def test_the_life_of_a_pool(libvirtd: Libvirtd, own: Path, done: Any, refused: Any) -> None:
    refused("start", "cannot start pool://own: ", "No such file or directory")
    assert done("build") == {"pool": "own", "active": False}
    assert own.is_dir()
    result = done("start")
    assert (result["active"], result["volumes"], "own" in active(libvirtd)) == (True, 0, True)
    refused("start", "it is active at", "stop it first")
    refused("build", "it is active at")
    refused("delete", "it is active at")
    filled(own / "one", MIB)
    assert libvirtd.volumes("own") == set()
    assert done("refresh")["volumes"] == 1
    assert libvirtd.volumes("own") == {"one"}
    assert done("destroy") == {"pool": "own", "active": False}
    assert "own" not in active(libvirtd)
    refused("destroy", "cannot stop pool://own: it is not active")
    refused("refresh", "it is not active")
    refused("delete", "cannot delete pool://own:", "Directory not empty")
    (own / "one").unlink()
    done("delete")
    assert not own.exists()
    done("start", build=True)
    assert own.is_dir()


def test_what_a_device_holds_is_overwritten_only_when_that_is_said(libvirtd: Libvirtd, done: Any, refused: Any) -> None:
    where = libvirtd.pool("ext4")
    filled(where / "kept", MIB)
    done("destroy", "ext4")
    refused("build", "cannot build pool://ext4:", pool="ext4", overwrite=False)
    done("start", "ext4")
    assert (where / "kept").exists()
    done("destroy", "ext4")
    done("build", "ext4", overwrite=True)
    done("start", "ext4")
    assert not (where / "kept").exists()
    (where / "lost+found").rmdir()


def test_what_cannot_be_mounted_is_said_at_once(
    supervisor: Supervisor, libvirtd: Libvirtd, start: Start, done: Any
) -> None:
    libvirtd.pool("ext4")
    done("destroy", "ext4")
    with open(libvirtd.device("ext4"), "r+b") as device:
        device.write(bytes(MIB))
    phases = set()
    with supervisor.events() as events:
        job = start("start", "ext4")
        for event in events:
            if event.job.id == job.id:
                phases.add(event.job.phase)
                if event.job.final:
                    break
    assert "cannot start pool://ext4: " in (job.info().errmsg or "")
    assert "wait for libvirtd" not in phases, "libvirt's code for a busy pool is that of many defects"
    done("build", "ext4", overwrite=True)
    done("start", "ext4")
    (libvirtd.directory / "ext4" / "lost+found").rmdir()


def test_bad_input(supervisor: Supervisor, libvirtd: Libvirtd, own: Path, refused: Any, start: Start) -> None:
    refused("start", "no storage pool with matching name 'none'", libvirtd.uri, pool="none")
    refused("start", "say nothing without --build", overwrite=True)
    info = supervisor.start("pool-start", pool="pool://own", connect=f"{libvirtd.uri}x").wait(60)
    assert "cannot pool-start: cannot reach libvirt at" in (info.errmsg or "")
    for wrong in ("own", "pool://", "pool://own/", "vol://own/one", "pool://a%2fb"):
        with pytest.raises(UsageError):
            supervisor.start("pool-start", pool=wrong, connect=libvirtd.uri)
    assert start("build", dry_run=True).wait(60).ok
    assert not own.exists()
    with pytest.raises(UsageError, match="a pool-build job cannot be suspended"):
        start("build", dry_run=True).suspend()


@pytest.fixture
def slow(libvirtd: Libvirtd) -> Iterator[Path]:
    """The directory of a pool called slow, on a filesystem that can be frozen."""
    directory = libvirtd.pool("ext4") / "slow"
    libvirtd.virsh("pool-define-as", "slow", "dir", "--target", directory)
    yield directory
    libvirtd.run("pool-destroy", "slow")
    libvirtd.virsh("pool-undefine", "slow")


def test_an_abort_waits_for_libvirtd(libvirtd: Libvirtd, slow: Path, start: Start) -> None:
    with frozen(slow.parent):
        job = start("build", "slow")
        wait_until(lambda: blocked(libvirtd), "libvirtd is at work")
        info = job.abort(wait=False)
        assert (info.state, info.delegated) == ("aborting", True)
        assert info.abort_effect == "nothing is stopped: libvirtd goes on until pool://slow is built"
        behind = start("build", "slow")
        assert behind.info().state == "queued"
        with pytest.raises(WaitTimeout):  # five times the grace period
            job.wait(1)
    ended = job.wait(60)
    assert (ended.state, ended.cause, ended.delegated) == ("aborted", None, False)
    assert ended.warnings == ["libvirtd could not be stopped: pool://slow is built all the same"]
    assert slow.is_dir()
    assert behind.wait(60).ok


def test_a_killed_worker_leaves_libvirtd_at_work(libvirtd: Libvirtd, slow: Path, start: Start) -> None:
    with frozen(slow.parent):
        job = start("build", "slow")
        wait_until(lambda: blocked(libvirtd), "libvirtd is at work")
        info = job.abort(force=True)
    assert info.state == "aborted"
    assert info.warnings == [
        "its worker was killed, and left: nothing is stopped: libvirtd goes on until pool://slow is built"
    ]
    wait_until(slow.is_dir, "libvirtd has built it")


def test_libvirtd_killed_on_the_way(libvirtd: Libvirtd, slow: Path, start: Start) -> None:
    assert libvirtd.process is not None
    with frozen(slow.parent):
        job = start("build", "slow")
        wait_until(lambda: blocked(libvirtd), "libvirtd is at work")
        libvirtd.process.kill()
    info = job.wait(60)
    assert (info.state, info.cause) == ("failed", "error")
    assert "cannot build pool://slow: " in (info.errmsg or "")
    assert f"the connection to {libvirtd.uri} was lost" in (info.errmsg or "")
    libvirtd.process.wait()
    libvirtd.start()


def test_a_busy_pool_is_waited_for(libvirtd: Libvirtd, start: Start) -> None:
    where = libvirtd.pool("ext4")
    libvirtd.make_volume("ext4", "one", MIB)
    filled(where / "two", MIB)
    wipe = ("virsh", "-c", libvirtd.uri, "vol-wipe", "one", "--pool", "ext4")
    with frozen(where), started(*wipe):
        wait_until(lambda: blocked(libvirtd), "libvirtd wipes")
        job = start("refresh", "ext4")
        wait_until(lambda: job.info().phase == "wait for libvirtd", "the refresh was refused")
        assert not job.info().delegated
    info = job.wait(60)
    assert info.ok, info.errmsg
    assert libvirtd.volumes("ext4") == {"one", "two"}


def test_jobs_on_its_volumes_go_first(libvirtd: Libvirtd, supervisor: Supervisor, start: Start) -> None:
    libvirtd.make_volume("dir", "one", 8 * MIB).write_bytes(b"x" * 8 * MIB)
    names: dict[str, Any] = {"source": "vol://dir/one", "target": "vol://dir/two"}
    copying = supervisor.start("clone", **names, reflink=False, connect=libvirtd.uri, bandwidth=MIB)
    wait_until(lambda: copying.info().data_processed > 0, "it copies")
    stopping = start("destroy", "dir")
    assert stopping.info().state == "queued"
    assert copying.abort().state == "aborted"
    assert stopping.wait(60).ok
    assert "dir" not in active(libvirtd)
