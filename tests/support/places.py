"""Where a volume can live: a file, a block device, pools of libvirt's; and what virsh and others say of it there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.images import qemu_img
from support.libvirtd import Libvirtd
from support.lock_scenes import loop_device

#: Pools whose volumes are files.
DIRECTORIES = ("dir", "xfs", "ext4", "btrfs")
NAMES = ("one", "two")


@dataclass(frozen=True)
class Spot:
    """One volume, there or not yet: `word` is what a job is told, `path` where others find it."""

    place: str
    word: str
    path: Path

    @property
    def is_device(self) -> bool:
        return self.place in ("device", "disk")

    @property
    def name(self) -> str:
        return self.path.name


class Places:
    """One test's spots: two in each place, called one and two."""

    def __init__(self, libvirtd: Libvirtd, directory: Path, devices: tuple[Path, Path]) -> None:
        self.libvirtd, self.directory, self.devices = libvirtd, directory, devices
        self._pools: set[str] = set()
        self._partitions = 0

    def spot(self, place: str, number: int) -> Spot:
        name = NAMES[number]
        if place == "file":
            return Spot(place, str(self.directory / name), self.directory / name)
        if place == "device":
            return Spot(place, str(self.devices[number]), self.devices[number])
        directory = self.libvirtd.pool(place)
        self._pools.add(place)
        if place == "disk":
            self._partitions += 1
            name = self.libvirtd.partition(self._partitions)
        return Spot(place, f"vol://{place}/{name}", directory / name)

    def put(self, spot: Spot, container: Path) -> None:
        """A volume that is there, as virsh knows."""
        if spot.place == "disk":
            self.libvirtd.make_volume("disk", spot.name, container.stat().st_size)
        if spot.is_device:
            shutil.copyfile(container, spot.path)
        else:
            subprocess.run(["cp", "--sparse=always", "--reflink=never", container, spot.path], check=True)
        if spot.place in DIRECTORIES:
            self.libvirtd.refresh(spot.place)

    def names(self) -> dict[str, set[str]]:
        """What there is, as ls and `virsh vol-list` say, without a refresh."""
        pools = {pool: self.libvirtd.volumes(pool) for pool in self._pools}
        for pool in self._pools & set(DIRECTORIES):
            in_directory = {path.name for path in self.libvirtd.pool(pool).iterdir()}
            assert pools[pool] == in_directory, f"virsh sees {pools[pool]}, ls {in_directory}"
        return {"file": {path.name for path in self.directory.iterdir()}, **pools}

    def capacity(self, spot: Spot) -> int:
        """As `virsh vol-info` says it, without a refresh, and as `qemu-img info` does elsewhere."""
        if spot.place in ("file", "device"):
            return int(qemu_img("info", "--output=json", spot.path).partition('"virtual-size": ')[2].split(",")[0])
        return self.libvirtd.info(spot.place, spot.name)[0]


@contextmanager
def two_devices(directory: Path, size: int) -> Iterator[tuple[Path, Path]]:
    with ExitStack() as stack:
        devices = []
        for name in NAMES:
            image = directory / name
            with open(image, "wb") as file:
                file.truncate(size)
            devices.append(stack.enter_context(loop_device(image)))
        yield devices[0], devices[1]


def same_bytes(volume: Path, file: Path) -> bool:
    """A device may be longer."""
    size = file.stat().st_size
    longer = volume.is_file() and volume.stat().st_size != size
    return not longer and subprocess.run(["cmp", "--quiet", f"--bytes={size}", volume, file]).returncode == 0


def sha256sum(path: Path) -> str:
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]
