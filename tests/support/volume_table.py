"""The table of every job type on every kind of resource: a row for each type, with the options that change its work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobvisor import JobInfo
from support.images import qcow2, qemu_img, scattered
from support.places import DIRECTORIES, Places, Spot
from support.volume_scene import (
    HALF,
    SIZE,
    Scene,
    all_of_it_there,
    alone,
    created,
    deleted,
    digested,
    grown,
    same_bytes_in_two,
    same_in_two,
    seen_as_before,
    sound,
    unchanged,
    untouched,
    untouched_and_as_large,
    valid,
    wiped,
    wiped_inside,
    written_down,
    written_over,
)

Point = tuple[str, int]


@dataclass(frozen=True)
class Row:
    """A job type with some options.

    makes: the volume two; else `second` tells whether that is there before.
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
    second: bool = False

    @property
    def middle(self) -> Point:
        return self.points[min(1, len(self.points) - 1)]


FILES = ("file", *DIRECTORIES)
VOLUMES = (*FILES, "device", "disk")
BETWEEN_FILES = ("file file", "file dir", "dir file", "dir dir", "xfs xfs", "ext4 btrfs")
BETWEEN = (
    *BETWEEN_FILES,
    *("ext4 ext4", "btrfs btrfs", "file device", "device dir", "dir disk", "disk xfs", "disk disk"),
)


def to_two(scene: Scene, **options: Any) -> dict[str, Any]:
    return {"source": scene.one.word, "target": scene.two.word, "replace": scene.two.is_device, **options}


def on_one(**options: Any) -> Callable[[Scene], dict[str, Any]]:
    return lambda scene: {"volume": scene.one.word, **options}


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
    "wipe content": Row(
        "wipe",
        FILES,
        (("pass 1 of 1: 0x00", 0), ("pass 1 of 1: 0x00", 1)),
        on_one(content=True),
        wiped_inside,
        valid,
        "qcow2",
    ),
    "upload": Row(
        "upload",
        (*BETWEEN_FILES, "file device", "xfs disk"),
        (("write", 0), ("write", HALF), ("sync", 0)),
        lambda scene: {"source": scene.one.word, "volume": scene.two.word},
        written_over,
        untouched_and_as_large,
        second=True,
    ),
    "download": Row(
        "download",
        (*BETWEEN_FILES, "device file", "disk dir"),
        (("copy", 0), ("copy", HALF), ("sync", 0)),
        lambda scene: {"volume": scene.one.word, "target": scene.two.word},
        same_bytes_in_two,
        untouched,
        makes=True,
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
        second=True,
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


def containers_in(directory: Path) -> dict[str, Path]:
    """The same content in each format; for the overlay also its base."""
    raw = scattered(directory / "raw", SIZE)
    base = scattered(directory / "base", SIZE, seed=2)
    qcow2(directory / "qcow2", raw)
    qcow2(directory / "overlay", raw, "-o", f"backing_file={base},backing_fmt=raw")
    # Beside it, wherever that will be.
    qemu_img("rebase", "-u", "-b", "base", "-F", "raw", directory / "overlay")
    return {path.name: path for path in directory.iterdir()}


def set_up(row: Row, where: str, places: Places, containers: dict[str, Path]) -> Scene:
    """What a row needs, in the one or two places."""
    first, _, second = where.partition(" ")
    one, two = places.spot(first, 0), places.spot(second or first, 1)
    scene = Scene(places, one, two, containers["raw"], containers[row.format])
    if row.format == "overlay":
        places.put(Spot(first, "", one.path.with_name("base")), containers["base"])
    places.put(one, scene.container)
    if row.second or (row.makes and two.is_device):
        places.put(two, containers["raw" if row.type == "compare" else "base"])
    return scene


def names_behind(row: Row, scene: Scene, before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is there when the job is done."""
    names = {place: set(found) for place, found in before.items()}
    if row.makes and not scene.two.is_device:
        names[scene.two.place].add(scene.two.name)
    if row.type == "delete":
        names[scene.one.place].remove(scene.one.name)
    return names
