"""Every job type on every kind of resource: what it makes of the bytes, and what an abort or a kill leaves.

virsh is asked right behind each job, without a refresh; the bytes are judged by qemu-img, cmp and sha256sum.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor import Supervisor
from jobvisor.testing import halt_at, kill_at
from support.libvirtd import Libvirtd
from support.places import Places, two_devices
from support.volume_scene import SIZE, same_bytes_in_two
from support.volume_table import TABLE, Row, containers_in, names_behind, set_up

#: Aborted is what a kind has of its own: plain files in tests/workers, ext4 and btrfs as dir and xfs are.
NOT_ABORTED = {"file", "ext4", "btrfs"}
CELLS = [pytest.param(row, where, id=f"{name}, {where}") for name, row in TABLE.items() for where in row.where]
ROWS = [pytest.param(row, id=name) for name, row in TABLE.items()]
#: One of each type.
TYPES = [pytest.param(row, id=name) for name, row in {row.type: row for row in TABLE.values()}.items()]


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("home"), types=["jobvisor_workers.testing"]) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    with two_devices(tmp_path_factory.mktemp("devices"), SIZE) as devices:
        yield devices


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return containers_in(tmp_path_factory.mktemp("containers"))


@pytest.fixture
def places(libvirtd: Libvirtd, tmp_path: Path, devices: tuple[Path, Path]) -> Places:
    return Places(libvirtd, tmp_path, devices)


@pytest.mark.parametrize(("row", "where"), CELLS)
def test_done_and_aborted(
    supervisor: Supervisor, places: Places, containers: dict[str, Path], row: Row, where: str
) -> None:
    scene = set_up(row, where, places, containers)
    before = places.names()
    for phase, done in row.points if not NOT_ABORTED & set(where.split()) else ():
        with halt_at(supervisor, phase, after=done) as halt:
            supervisor.start(row.type, connect=places.libvirtd.uri, **row.arguments(scene))
            info = halt.wait().abort()
        assert info.state == "aborted", info.errmsg
        assert places.names() == before, (phase, done)
        row.left(scene)
    info = supervisor.start(row.type, connect=places.libvirtd.uri, **row.arguments(scene)).wait(60)
    assert info.ok, info.errmsg
    assert places.names() == names_behind(row, scene, before)
    row.after(scene, info)


@pytest.mark.parametrize("row", ROWS)
def test_a_killed_worker_leaves_what_an_abort_leaves(
    supervisor: Supervisor, places: Places, containers: dict[str, Path], row: Row
) -> None:
    scene = set_up(row, "dir", places, containers)
    before = places.names()
    phase, done = row.middle
    with kill_at(supervisor, phase, after=done) as death:
        supervisor.start(row.type, connect=places.libvirtd.uri, **row.arguments(scene))
    assert (death.info.state, death.info.cause) == ("failed", "killed")
    assert places.names() == before
    row.left(scene)


@pytest.mark.parametrize("row", TYPES)
def test_a_killed_libvirtd_changes_nothing(
    supervisor: Supervisor, places: Places, containers: dict[str, Path], row: Row
) -> None:
    scene = set_up(row, "dir", places, containers)
    before = places.names()
    phase, done = row.middle
    with halt_at(supervisor, phase, after=done) as halt:
        supervisor.start(row.type, connect=places.libvirtd.uri, **row.arguments(scene))
        job = halt.wait()
        places.libvirtd.kill()
    info = job.wait(60)
    assert info.ok, info.errmsg
    changed = names_behind(row, scene, before) != before
    assert any("pool-refresh dir" in warning for warning in info.warnings) or not changed
    places.libvirtd.start()
    assert places.names() == names_behind(row, scene, before)
    row.after(scene, info)


def test_what_jobs_on_volumes_need_is_loaded_once(supervisor: Supervisor, libvirtd: Libvirtd) -> None:
    libvirtd.make_volume("dir", "one", SIZE)
    assert supervisor.start("checksum", volume="vol://dir/one", connect=libvirtd.uri).wait(60).ok
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in supervisor._core.zygotes().result()]
    assert any("libvirtmod" in each for each in maps)


def test_killed_between_the_last_step_and_the_refresh(
    supervisor: Supervisor, places: Places, containers: dict[str, Path]
) -> None:
    scene = set_up(TABLE["clone raw"], "dir", places, containers)
    with kill_at(supervisor, "refresh") as death:
        supervisor.start("clone", connect=places.libvirtd.uri, **TABLE["clone raw"].arguments(scene))
    # It is complete, and libvirtd was not told.
    assert death.info.ok
    assert death.info.warnings == [
        "its worker was killed, and left: virsh may not see it yet; "
        f"then: virsh -c {places.libvirtd.uri} pool-refresh dir"
    ]
    assert places.libvirtd.volumes() == {"one"}
    assert places.libvirtd.refresh() == {"one", "two"}
    same_bytes_in_two(scene, death.info)
