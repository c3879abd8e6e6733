"""Volumes that only their pool's driver can make and delete: partitions, filled as devices."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, Job, JobInfo, Supervisor
from jobvisor.testing import halt_at
from support.images import MIB, filled, identical, qcow2
from support.libvirtd import Libvirtd
from support.lock_scenes import wait_until

SIZE = 4 * MIB + 512


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("home"), types=["jobvisor_workers.testing"]) as supervisor:
        yield supervisor


@pytest.fixture
def name(libvirtd: Libvirtd) -> str:
    """Of the first partition."""
    return libvirtd.partition(1)


Start = Callable[..., Job]


@pytest.fixture
def start(supervisor: Supervisor, libvirtd: Libvirtd) -> Start:
    return lambda job_type, **args: supervisor.start(job_type, connect=libvirtd.uri, **args)


@pytest.fixture
def done(start: Start) -> Callable[..., JobInfo]:
    def done(job_type: str, **args: Any) -> JobInfo:
        info = start(job_type, **args).wait(60)
        assert info.ok, info.errmsg
        return info

    return done


@pytest.fixture
def refused(start: Start, libvirtd: Libvirtd) -> Callable[..., JobInfo]:
    def refused(job_type: str, *words: str, cause: Cause = Cause.ERROR, **args: Any) -> JobInfo:
        before = libvirtd.volumes("disk")
        info = start(job_type, **args).wait(60)
        assert (info.state, info.cause) == ("failed", cause), info.errmsg
        for word in words:
            assert word in (info.errmsg or ""), info.errmsg
        assert libvirtd.volumes("disk") == before
        return info

    return refused


def content(device: Path, size: int) -> bytes:
    """Its first bytes; all behind them is to be zeroes."""
    with open(device, "rb") as file:
        held = file.read()
    assert held[size:] == bytes(len(held) - size)
    return held[:size]


def dirty(libvirtd: Libvirtd) -> None:
    """What was on the disk before must not show through."""
    path = libvirtd.make_volume("disk", libvirtd.partition(1), 16 * MIB)
    path.write_bytes(b"x" * 16 * MIB)
    libvirtd.virsh("vol-delete", path.name, "--pool", "disk")


def test_a_clone_and_a_conversion_make_a_partition(libvirtd: Libvirtd, name: str, done: Any, tmp_path: Path) -> None:
    dirty(libvirtd)
    raw = filled(tmp_path / "a.raw", SIZE)
    info = done("clone", source=str(raw), target=f"vol://disk/{name}")
    assert (info.result["size"], info.warnings) == (SIZE, [])
    assert libvirtd.volumes("disk") == {name}
    assert content(libvirtd.path("disk", name), SIZE) == raw.read_bytes()
    done("delete", volume=f"vol://disk/{name}")
    image = qcow2(tmp_path / "a.qcow2", raw)
    done("convert", source=str(image), target=f"vol://disk/{name}")
    assert content(libvirtd.path("disk", name), SIZE) == raw.read_bytes()
    back = tmp_path / "back"
    done("convert", source=f"vol://disk/{name}", target=str(back), output_format="qcow2")
    assert identical(back, libvirtd.path("disk", name))
    two = libvirtd.partition(2)
    done("clone", source=str(image), target=f"vol://disk/{two}")
    assert identical(libvirtd.path("disk", two), raw, "-f", "qcow2", "-F", "raw")
    assert libvirtd.info("disk", two)[0] > SIZE


def test_create(libvirtd: Libvirtd, name: str, done: Any, refused: Any) -> None:
    dirty(libvirtd)
    new = {"target": f"vol://disk/{name}", "capacity": 8 * MIB}
    expected = done("create", **new, dry_run=True).result
    assert (expected["space"], expected["free"] > 90 * MIB) == (8 * MIB, True)
    assert libvirtd.volumes("disk") == set()
    warnings = done("create", **new).warnings
    assert warnings == [f"vol://disk/{name} shows what its disk held there before; --prealloc full overwrites that"]
    assert libvirtd.info("disk", name)[0] >= 8 * MIB
    refused("create", "it exists already", **new)
    done("delete", volume=new["target"])
    assert done("create", **new, prealloc="full").warnings == []
    assert content(libvirtd.path("disk", name), 0) == b""
    done("delete", volume=new["target"], zeroed=True)
    assert libvirtd.volumes("disk") == set()
    refused("create", "omit --prealloc", **new, prealloc="falloc")
    refused("create", "omit --nocow", **new, nocow=True)
    refused("create", "only raw and qcow2 can live there", **new, format="vdi")


def test_what_cannot_be_made(libvirtd: Libvirtd, name: str, refused: Any, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", MIB)
    refused("clone", "cannot make vol://disk/none: ", name, source=str(raw), target="vol://disk/none")
    os.truncate(raw, 200 * MIB)
    to = f"vol://disk/{name}"
    refused("clone", "needs 200.0 MiB, the pool has", cause=Cause.NO_SPACE, source=str(raw), target=to)
    refused("convert", "only raw and qcow2", source=str(raw), target=to, output_format="vmdk")
    refused("wipe", "no storage vol", volume=to)


@pytest.mark.parametrize("end", ["abort", "kill"])
def test_a_job_that_does_not_complete(libvirtd: Libvirtd, name: str, start: Any, tmp_path: Path, end: str) -> None:
    raw = filled(tmp_path / "a.raw", 16 * MIB)
    to = f"vol://disk/{name}"
    job = start("clone", source=str(raw), target=to, bandwidth=4 * MIB)
    wait_until(lambda: job.info().data_processed > 0, "it copies")
    assert job.suspend().state == "suspended"
    assert libvirtd.volumes("disk") == {name}
    if end == "abort":
        info = job.abort()
        assert (info.state, info.warnings) == ("aborted", [])
        assert libvirtd.volumes("disk") == set()
    else:
        os.kill(job.info().pid or 0, signal.SIGKILL)
        info = job.wait(60)
        told = f"{to} may be left, with nothing of use in it; then: jobvisor run delete -c {libvirtd.uri} {to}"
        assert (info.state, info.warnings) == ("failed", [told])


def test_one_that_cannot_be_deleted_again(libvirtd: Libvirtd, name: str, start: Any, tmp_path: Path) -> None:
    raw = filled(tmp_path / "a.raw", 16 * MIB)
    job = start("clone", source=str(raw), target=f"vol://disk/{name}", bandwidth=4 * MIB)
    wait_until(lambda: job.info().data_processed > 0, "it copies")
    with open(libvirtd.path("disk", name), "rb"):
        info = job.abort()
    assert info.state == "aborted"
    assert info.warnings[0].startswith(f"vol://disk/{name} is left, and holds nothing of use: cannot clone")


def test_somebody_elses_partition_is_not_deleted(
    supervisor: Supervisor, libvirtd: Libvirtd, name: str, start: Any, tmp_path: Path
) -> None:
    """Made under the same name between the look and the making."""
    raw = filled(tmp_path / "a.raw", MIB)
    with halt_at(supervisor, "make the volume") as halt:
        start("clone", source=str(raw), target=f"vol://disk/{name}")
        job = halt.wait()
        libvirtd.make_volume("disk", name, 2 * MIB).write_bytes(b"y" * MIB)
    info = job.wait(60)
    assert info.state == "failed"
    assert "exists already" in (info.errmsg or "")
    assert libvirtd.path("disk", name).read_bytes()[:MIB] == b"y" * MIB
