"""The daemons that the other tests ask: they run, each kind of pool works, and nothing is left of them."""

import os
import subprocess
from pathlib import Path

import libvirt
import pytest

from support.images import MIB, filled, sha256
from support.libvirtd import Libvirtd, running_system_libvirtd
from support.users import NOBODY, STRANGER


@pytest.mark.parametrize("kind", ["dir", "xfs", "ext4", "btrfs"])
def test_volumes_are_files_that_are_seen_outside(libvirtd: Libvirtd, tmp_path: Path, kind: str) -> None:
    path = libvirtd.make_volume(kind, "one", MIB)
    assert path == libvirtd.pool(kind) / "one"
    assert path.stat().st_size == MIB
    assert libvirtd.volumes(kind) == {"one"}
    assert libvirtd.info(kind, "one") == (MIB, path.stat().st_blocks * 512)
    libvirtd.virsh("vol-upload", "one", filled(tmp_path / "content", MIB), "--pool", kind)
    assert sha256(path) == sha256(tmp_path / "content")


@pytest.mark.parametrize(("kind", "shares"), [("xfs", True), ("btrfs", True), ("ext4", False)])
def test_pools_that_can_share_blocks(libvirtd: Libvirtd, kind: str, shares: bool) -> None:
    libvirtd.make_volume(kind, "one", MIB)
    assert (libvirtd.run("vol-clone", "one", "two", "--pool", kind, "--reflink").returncode == 0) is shares


def test_volumes_that_are_partitions(libvirtd: Libvirtd) -> None:
    one, two = libvirtd.partition(1), libvirtd.partition(2)
    path = libvirtd.make_volume("disk", one, 8 * MIB)
    libvirtd.make_volume("disk", two, MIB)
    assert path.is_block_device()
    assert libvirtd.volumes("disk") == {one, two}
    libvirtd.virsh("vol-delete", one, "--pool", "disk")
    assert libvirtd.volumes("disk") == {two}


def test_a_pool_without_room(libvirtd: Libvirtd) -> None:
    libvirtd.pool("tiny")
    assert "No space left" in libvirtd.run("vol-create-as", "tiny", "one", 100 * MIB).stderr


def test_python_asks_it_too(libvirtd: Libvirtd) -> None:
    libvirtd.make_volume("dir", "one", MIB, "qcow2")
    connection = libvirt.open(libvirtd.uri)
    assert connection.storagePoolLookupByName("dir").listVolumes() == ["one"]
    connection.close()


def test_who_is_in_the_group_may_ask(libvirtd: Libvirtd) -> None:
    def pools() -> object:
        return libvirt.open(libvirtd.uri).listStoragePools()

    libvirtd.pool("dir")
    assert "dir" in NOBODY.do(pools)
    stranger = type(NOBODY)("nobody", NOBODY.uid, STRANGER.groups)
    with pytest.raises(AssertionError, match="Permission denied"):
        stranger.do(pools)


def test_killed_and_started_again_it_knows_its_pools(libvirtd: Libvirtd) -> None:
    libvirtd.make_volume("xfs", "one", MIB)
    libvirtd.kill()
    libvirtd.start()
    assert libvirtd.volumes("xfs") == {"one"}


def test_an_unprivileged_daemon(session_libvirtd: Libvirtd) -> None:
    path = session_libvirtd.make_volume("dir", "one", MIB)
    assert path.stat().st_uid == session_libvirtd.user.uid != 0
    assert session_libvirtd.volumes() == {"one"}

    def volumes() -> object:
        return libvirt.open(session_libvirtd.uri).storagePoolLookupByName("dir").listVolumes()

    if os.geteuid():
        assert volumes() == ["one"]
    else:
        assert session_libvirtd.user.do(volumes) == ["one"]


def test_nothing_is_left_of_a_daemon(tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir()
    with running_system_libvirtd(tmp_path / "caches") as daemon:
        for kind in ("xfs", "btrfs"):
            daemon.make_volume(kind, "one", MIB)
        assert daemon.processes()
    assert daemon.processes() == {}
    assert str(daemon.directory) not in Path("/proc/self/mountinfo").read_text()
    assert str(daemon.directory) not in subprocess.run(["losetup", "--list"], capture_output=True, text=True).stdout
    assert not daemon.directory.exists()
