"""What cannot be done to volumes of libvirt's: one line says what, on what, at which libvirtd; nothing has changed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobvisor import JobInfo, Supervisor, UsageError
from support.images import MIB, filled
from support.libvirtd import VM, Libvirtd


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return filled(tmp_path / "source", 4 * MIB)


def refused(supervisor: Supervisor, uri: str, type: str, **arguments: Any) -> str:
    """The error of a job that must fail."""
    info: JobInfo = supervisor.start(type, connect=uri, **arguments).wait(60)
    assert info.state == "failed"
    assert info.errmsg is not None
    assert "\n" not in info.errmsg
    return info.errmsg


@contextmanager
def running_vm(libvirtd: Libvirtd, path: Path, directory: Path) -> Iterator[None]:
    (directory / "vm.xml").write_text(VM.format(path=path))
    libvirtd.virsh("create", directory / "vm.xml")
    try:
        yield
    finally:
        libvirtd.virsh("destroy", "web1")


def test_no_such_pool_or_volume(supervisor: Supervisor, libvirtd: Libvirtd, source: Path) -> None:
    libvirtd.pool()
    no_pool = "no storage pool with matching name 'nowhere'"
    jobs: list[tuple[str, dict[str, Any], str]] = [
        ("wipe", {"volume": "vol://nowhere/one"}, no_pool),
        ("clone", {"source": "vol://nowhere/one", "target": "vol://dir/two"}, no_pool),
        ("clone", {"source": str(source), "target": "vol://nowhere/two"}, no_pool),
        ("create", {"target": "vol://nowhere/two", "capacity": MIB}, no_pool),
        ("checksum", {"volume": "vol://dir/nothing"}, "no storage vol with matching name 'nothing'"),
        ("delete", {"volume": "vol://dir/nothing"}, "no storage vol with matching name 'nothing'"),
    ]
    for verb, arguments, why in jobs:
        error = refused(supervisor, libvirtd.uri, verb, **arguments)
        assert error.startswith(f"cannot {verb} vol://"), error
        assert why in error
        assert libvirtd.uri in error
    assert libvirtd.volumes() == set()


def test_an_inactive_pool(supervisor: Supervisor, libvirtd: Libvirtd, source: Path) -> None:
    libvirtd.make_volume("xfs", "one", MIB)
    libvirtd.virsh("pool-destroy", "xfs")
    # The directory on which it was mounted is there: nothing may be made in it.
    for verb, arguments in [
        ("wipe", {"volume": "vol://xfs/one"}),
        ("clone", {"source": str(source), "target": "vol://xfs/two"}),
    ]:
        error = refused(supervisor, libvirtd.uri, verb, **arguments)
        assert f"pool xfs at {libvirtd.uri} is not active" in error
    assert list((libvirtd.directory / "xfs").iterdir()) == []
    libvirtd.virsh("pool-start", "xfs")
    assert libvirtd.volumes("xfs") == {"one"}


@pytest.mark.parametrize(
    "uri", ["qemu+unix:///system?socket=/nonexistent/sock", "test:///nonexistent.xml", "nonsense", "qemu+nothing:///x"]
)
def test_no_libvirtd(supervisor: Supervisor, source: Path, uri: str) -> None:
    error = refused(supervisor, uri, "clone", source=str(source), target="vol://dir/two")
    assert error.startswith(f"cannot clone: cannot reach libvirt at {uri}: ")


def test_a_libvirtd_that_is_gone(supervisor: Supervisor, libvirtd: Libvirtd, source: Path) -> None:
    libvirtd.pool()
    libvirtd.stop()
    error = refused(supervisor, libvirtd.uri, "clone", source=str(source), target="vol://dir/two")
    assert f"cannot reach libvirt at {libvirtd.uri}" in error
    libvirtd.start()
    assert libvirtd.volumes() == set()


@pytest.mark.parametrize(
    "name", ["vol://dir/sub/one", "vol://dir/", "vol://dir", "vol:///one", "vol://", "vol://dir/a\0b", "pool://dir"]
)
def test_names_that_are_none(supervisor: Supervisor, source: Path, name: str) -> None:
    with pytest.raises(UsageError):
        supervisor.start("clone", source=str(source), target=name, connect="test:///default")


@pytest.mark.parametrize("name", ["..", "."])
def test_names_that_lead_out_of_the_pool(supervisor: Supervisor, libvirtd: Libvirtd, source: Path, name: str) -> None:
    libvirtd.pool()
    assert "is a directory" in refused(
        supervisor, libvirtd.uri, "clone", source=str(source), target=f"vol://dir/{name}"
    )
    assert libvirtd.volumes() == set()


def test_a_name_that_is_taken(supervisor: Supervisor, libvirtd: Libvirtd, source: Path) -> None:
    path = libvirtd.make_volume("dir", "one", MIB)
    before = path.stat()
    assert "it exists already" in refused(supervisor, libvirtd.uri, "clone", source=str(source), target="vol://dir/one")
    assert path.stat() == before


@pytest.mark.parametrize(
    ("type", "options"),
    [("clone", {}), ("convert", {"output_format": "qcow2"}), ("create", {"capacity": 100 * MIB, "prealloc": "falloc"})],
)
def test_no_space_in_the_pool(
    supervisor: Supervisor, libvirtd: Libvirtd, source: Path, type: str, options: dict[str, Any]
) -> None:
    libvirtd.pool("tiny")
    if type != "create":
        options = {"source": str(source), **options}
    info = supervisor.start(type, target="vol://tiny/two", connect=libvirtd.uri, **options).wait(60)
    assert info.cause == "no-space"
    assert info.errmsg is not None
    assert re.search(r"needs [\d.]+ MiB, the filesystem has [\d.]+ MiB free", info.errmsg)
    assert libvirtd.volumes("tiny") == set()
    assert libvirtd.refresh("tiny") == set()


def test_space_that_runs_out_on_the_way(supervisor: Supervisor, libvirtd: Libvirtd, source: Path) -> None:
    """--sparse tries although the source may not fit."""
    libvirtd.pool("tiny")
    job = supervisor.start("clone", source=str(source), target="vol://tiny/two", sparse=True, connect=libvirtd.uri)
    assert job.wait(60).cause == "no-space"
    assert libvirtd.refresh("tiny") == set()


def test_a_read_only_connection(supervisor: Supervisor, libvirtd: Libvirtd) -> None:
    path = libvirtd.make_volume("dir", "one", MIB)
    read_only = libvirtd.uri.replace("libvirt-sock", "libvirt-sock-ro")
    assert supervisor.start("checksum", volume="vol://dir/one", connect=read_only).wait(60).ok
    info = supervisor.start("clone", source="vol://dir/one", target="vol://dir/two", connect=read_only).wait(60)
    # The file is the user's to make; libvirtd could not be told.
    assert info.ok
    assert "virsh may not see it yet" in info.warnings[0]
    assert "read only access prevents virStoragePoolRefresh" in info.warnings[0]
    assert path.with_name("two").exists()


def test_a_volume_that_a_vm_uses(supervisor: Supervisor, libvirtd: Libvirtd, tmp_path: Path) -> None:
    path = libvirtd.make_volume("dir", "one", MIB)
    before = path.stat().st_mtime_ns
    with running_vm(libvirtd, path, tmp_path):
        jobs: list[tuple[str, dict[str, Any]]] = [
            ("wipe", {"volume": "vol://dir/one"}),
            ("delete", {"volume": "vol://dir/one"}),
            ("resize", {"volume": "vol://dir/one", "capacity": 2 * MIB}),
            ("clone", {"source": "vol://dir/one", "target": "vol://dir/two"}),
        ]
        for verb, arguments in jobs:
            info = supervisor.start(verb, on_conflict="fail", connect=libvirtd.uri, **arguments).wait(60)
            assert info.state == "failed"
            assert "web1" in str(info.errmsg), info.errmsg
        assert libvirtd.volumes() == {"one"}
        assert path.stat().st_mtime_ns == before
    assert supervisor.start("wipe", volume="vol://dir/one", connect=libvirtd.uri).wait(60).ok
