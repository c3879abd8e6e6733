"""Every job type on every kind of resource: what it makes of the bytes, and three times that it was aborted.

virsh is asked right behind each job, without a refresh; the bytes are judged by qemu-img and sha256sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobvisor import JobInfo, Supervisor
from jobvisor.testing import halt_at
from support.images import MIB, identical, qcow2, qemu_img, scattered
from support.libvirtd import Libvirtd
from support.places import DIRECTORIES, Places, Spot, same_bytes, sha256sum, two_devices

#: More than one step of each kind of work: the longest is 6 MiB, of a wipe.
SIZE = 8 * MIB
HALF = SIZE // 2


@dataclass
class Scene:
    """What a row of the table works on: the volume one, a place for two, and what one holds."""

    places: Places
    one: Spot
    two: Spot
    content: Path
    container: Path


Point = tuple[str, int]


@dataclass(frozen=True)
class Row:
    """A job type with some options.

    points: where it is aborted (phase, bytes done in it): before the first byte, in the middle, at the commit.
    after: looks at what the job made. left: looks at what an aborted one left; by default that one is as it was.
    """

    type: str
    where: tuple[str, ...]
    points: tuple[Point, ...]
    arguments: Callable[[Scene], dict[str, Any]]
    after: Callable[[Scene, JobInfo], None]
    left: Callable[[Scene], None]
    format: str = "raw"
    makes: bool = False


FILES = ("file", *DIRECTORIES)
VOLUMES = (*FILES, "device", "disk")
BETWEEN_FILES = ("file file", "file dir", "dir file", "dir dir", "xfs xfs", "ext4 btrfs")
BETWEEN = (
    *BETWEEN_FILES,
    *("ext4 ext4", "btrfs btrfs", "file device", "device dir", "dir disk", "disk xfs", "disk disk"),
)
#: Aborted is what a kind has of its own: plain files in tests/workers, ext4 and btrfs as dir and xfs are.
NOT_ABORTED = {"file", "ext4", "btrfs"}


def untouched(scene: Scene) -> None:
    assert same_bytes(scene.one.path, scene.container)


def seen_as_before(scene: Scene) -> None:
    """A guest's view: a longer image ends in zeroes."""
    assert identical(scene.content, scene.one.path)


def all_of_it_there(scene: Scene) -> None:
    assert scene.places.capacity(scene.one) == SIZE


def same_in_two(scene: Scene, _: JobInfo) -> None:
    assert identical(scene.content, scene.two.path)
    assert scene.places.capacity(scene.two) == SIZE
    untouched(scene)


def same_bytes_in_two(scene: Scene, info: JobInfo) -> None:
    assert same_bytes(scene.two.path, scene.container)
    same_in_two(scene, info)


def to_two(scene: Scene, **options: Any) -> dict[str, Any]:
    return {"source": scene.one.word, "target": scene.two.word, "replace": scene.two.is_device, **options}


def on_one(**options: Any) -> Callable[[Scene], dict[str, Any]]:
    return lambda scene: {"volume": scene.one.word, **options}


def grown(scene: Scene, _: JobInfo) -> None:
    assert scene.places.capacity(scene.one) == 2 * SIZE
    seen_as_before(scene)


def wiped(scene: Scene, _: JobInfo) -> None:
    assert scene.places.capacity(scene.one) == SIZE
    zeroes = scene.content.with_name("zeroes")
    with open(zeroes, "wb") as file:
        file.truncate(SIZE)
    assert same_bytes(scene.one.path, zeroes)


def deleted(scene: Scene, _: JobInfo) -> None:
    assert scene.one.name not in scene.places.names()[scene.one.place]


def digested(scene: Scene, info: JobInfo) -> None:
    assert info.result is not None
    assert info.result["digest"] == sha256sum(scene.one.path)
    untouched(scene)


def sound(scene: Scene, _: JobInfo) -> None:
    qemu_img("check", scene.one.path)
    seen_as_before(scene)


def unchanged(scene: Scene, _: JobInfo) -> None:
    untouched(scene)


def written_down(scene: Scene, _: JobInfo) -> None:
    assert identical(scene.content, scene.one.path.with_name("base"))
    seen_as_before(scene)


def alone(scene: Scene, _: JobInfo) -> None:
    seen_as_before(scene)
    assert "backing" not in qemu_img("info", "--output=json", scene.one.path)


def created(scene: Scene, info: JobInfo) -> None:
    assert scene.places.capacity(scene.two) == SIZE
    assert info.result is not None
    told = qemu_img("info", "--output=json", scene.two.path)
    assert f'"format": "{info.result["format"]}"' in told
    # All of it reads as zeroes.
    qemu_img("compare", "-f", "raw", "-F", info.result["format"], "/dev/null", scene.two.path)


TABLE = {
    "create raw": Row(
        "create",
        FILES,
        (("create", 0), ("fill", HALF), ("sync", 0)),
        lambda scene: {"target": scene.two.word, "capacity": SIZE, "prealloc": "full"},
        created,
        untouched,
        makes=True,
    ),
    "create qcow2": Row(
        "create",
        FILES,
        (("create", 0), ("sync", 0)),
        lambda scene: {"target": scene.two.word, "capacity": SIZE, "format": "qcow2"},
        created,
        untouched,
        makes=True,
    ),
    "clone raw": Row(
        "clone",
        BETWEEN,
        (("copy", 0), ("copy", HALF), ("sync", 0)),
        to_two,
        same_bytes_in_two,
        untouched,
        makes=True,
    ),
    "clone qcow2": Row(
        "clone",
        BETWEEN_FILES,
        (("copy", 0), ("copy", HALF), ("sync", 0)),
        to_two,
        same_in_two,
        untouched,
        "qcow2",
        makes=True,
    ),
    "convert to qcow2": Row(
        "convert",
        (*BETWEEN_FILES, "device dir"),
        (("convert", 0), ("convert", HALF), ("sync", 0)),
        lambda scene: to_two(scene, output_format="qcow2"),
        same_in_two,
        untouched,
        makes=True,
    ),
    "convert to raw": Row(
        "convert",
        BETWEEN,
        (("convert", 0), ("convert", HALF), ("sync", 0)),
        to_two,
        same_in_two,
        untouched,
        "qcow2",
        makes=True,
    ),
    "resize raw": Row("resize", FILES, (("resize", 0), ("sync", 0)), on_one(capacity=2 * SIZE), grown, seen_as_before),
    "resize and allocate": Row(
        "resize",
        FILES,
        (("allocate", 0), ("allocate", HALF), ("resize", 0)),
        on_one(capacity=2 * SIZE, allocate=True),
        grown,
        seen_as_before,
    ),
    "resize qcow2": Row(
        "resize", FILES, (("resize", 0), ("sync", 0)), on_one(capacity=2 * SIZE), grown, seen_as_before, "qcow2"
    ),
    "wipe": Row(
        "wipe",
        VOLUMES,
        (("pass 1 of 1: 0x00", 0), ("pass 1 of 1: 0x00", HALF), ("pass 1 of 1: 0x00", SIZE)),
        on_one(),
        wiped,
        all_of_it_there,
    ),
    "delete": Row("delete", FILES, (("delete", 0),), on_one(), deleted, untouched),
    "delete zeroed": Row(
        "delete",
        FILES,
        (("overwrite", 0), ("overwrite", HALF), ("delete", 0)),
        on_one(zeroed=True),
        deleted,
        all_of_it_there,
    ),
    "checksum": Row("checksum", VOLUMES, (("read", 0), ("read", HALF)), on_one(), digested, untouched),
    "check": Row("check", FILES, (("check", 0),), on_one(), unchanged, untouched, "qcow2"),
    "repair": Row("check", FILES, (("repair", 0),), on_one(repair="all"), sound, seen_as_before, "qcow2"),
    "compare": Row(
        "compare",
        ("file dir", "dir device", "xfs disk", "btrfs ext4"),
        (("compare", 0), ("compare", HALF)),
        lambda scene: {"first": scene.one.word, "second": scene.two.word},
        unchanged,
        untouched,
    ),
    "commit": Row(
        "commit",
        FILES,
        (("commit", 0), ("commit", HALF), ("sync", 0)),
        on_one(),
        written_down,
        seen_as_before,
        "overlay",
    ),
    "rebase": Row(
        "rebase",
        FILES,
        (("rebase", 0), ("rebase", HALF)),
        on_one(flatten=True),
        alone,
        seen_as_before,
        "overlay",
    ),
}
CELLS = [pytest.param(row, where, id=f"{name}, {where}") for name, row in TABLE.items() for where in row.where]


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
    """The same content, in each format."""
    directory = tmp_path_factory.mktemp("containers")
    raw = scattered(directory / "raw", SIZE)
    base = scattered(directory / "base", SIZE, seed=2)
    qcow2(directory / "qcow2", raw)
    # All that differs from its base is in the overlay; its backing file is named as it will be beside it.
    qcow2(directory / "overlay", raw, "-o", f"backing_file={base},backing_fmt=raw")
    qemu_img("rebase", "-u", "-b", "base", "-F", "raw", directory / "overlay")
    return {path.name: path for path in directory.iterdir()}


@pytest.mark.parametrize(("row", "where"), CELLS)
def test_volumes(
    supervisor: Supervisor,
    libvirtd: Libvirtd,
    devices: tuple[Path, Path],
    containers: dict[str, Path],
    tmp_path: Path,
    row: Row,
    where: str,
) -> None:
    places = Places(libvirtd, tmp_path, devices)
    first, _, second = where.partition(" ")
    scene = Scene(
        places, places.spot(first, 0), places.spot(second or first, 1), containers["raw"], containers[row.format]
    )
    if row.format == "overlay":
        places.put(Spot(first, "", scene.one.path.with_name("base")), containers["base"])
    places.put(scene.one, scene.container)
    if row.type == "compare" or (row.makes and scene.two.is_device):
        places.put(scene.two, containers["raw"])
    before = places.names()
    arguments = row.arguments(scene)
    for phase, done in row.points if not {first, second} & NOT_ABORTED else ():
        with halt_at(supervisor, phase, after=done) as halt:
            supervisor.start(row.type, connect=libvirtd.uri, **arguments)
            info = halt.wait().abort()
        assert info.state == "aborted", info.errmsg
        assert places.names() == before, (phase, done)
        row.left(scene)
    info = supervisor.start(row.type, connect=libvirtd.uri, **arguments).wait(60)
    assert info.ok, info.errmsg
    if row.makes and not scene.two.is_device:
        before[scene.two.place].add(scene.two.name)
    if row.type == "delete":
        before[scene.one.place].remove(scene.one.name)
    assert places.names() == before
    row.after(scene, info)
