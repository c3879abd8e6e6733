"""What a row of the table of volumes works on, and how virsh, qemu-img, cmp and sha256sum look at what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobvisor import JobInfo
from support.images import MIB, identical, qemu_img
from support.places import Places, Spot, same_bytes, sha256sum

#: More than one step of each kind of work: the longest is 6 MiB, of a wipe.
SIZE = 8 * MIB
HALF = SIZE // 2


@dataclass
class Scene:
    """What a row works on: the volume one, a place for two, what a guest sees in one, and its bytes."""

    places: Places
    one: Spot
    two: Spot
    content: Path
    container: Path


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


def untouched_and_as_large(scene: Scene) -> None:
    """The target is written in place."""
    untouched(scene)
    assert scene.places.capacity(scene.two) == SIZE


def written_over(scene: Scene, _: JobInfo) -> None:
    assert same_bytes(scene.two.path, scene.container)
    untouched_and_as_large(scene)


def valid(scene: Scene) -> None:
    qemu_img("check", scene.one.path)
    assert scene.places.capacity(scene.one) == SIZE


def wiped_inside(scene: Scene, _: JobInfo) -> None:
    valid(scene)
    qemu_img("compare", "-f", "raw", "/dev/null", scene.one.path)
