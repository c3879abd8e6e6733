"""Pools of each kind in a libvirtd of the tests: made when first asked for, emptied after each test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.images import MIB
from support.lock_scenes import need, wait_until

#: xfs takes no less than 300 MiB; the files are sparse.
SIZE = 400 * MIB


class Pools:
    """What virsh can do with pools and volumes. Pools are called by their kind: dir, xfs, ext4, btrfs, disk, tiny.

    xfs and btrfs can share blocks (reflink), ext4 cannot; tiny is an ext4 with room for some 3 MiB. In disk, the
    volumes are partitions, whose names are given: `partition(1)` and so on.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._devices: dict[str, Path] = {}
        self._made: set[str] = set()
        self._used: set[str] = set()

    def virsh(self, *words: str | Path | int) -> str:
        raise NotImplementedError

    def pool(self, kind: str = "dir") -> Path:
        """The directory of a pool's volumes; the pool is made if it is not there yet."""
        self._used.add(kind)
        target = Path("/dev") if kind == "disk" else self.directory / kind
        if kind not in self._made:
            if kind == "dir":
                target.mkdir()
                self._own(target)
                self.virsh("pool-define-as", kind, "dir", "--target", target)
            elif kind == "disk":
                self._make_disk_pool()
            else:
                self._make_filesystem_pool(kind, target)
            self.virsh("pool-start", kind)
            self._made.add(kind)
        return target

    def make_volume(self, pool: str, name: str, capacity: int, format: str = "raw", *words: str) -> Path:
        """By virsh, with what virsh takes by default: a raw volume is not sparse."""
        self.pool(pool)
        # A partition has no format that virsh would take.
        of_format = [] if pool == "disk" else ["--format", format]
        self.virsh("vol-create-as", pool, name, capacity, *of_format, *words)
        return self.path(pool, name)

    def volumes(self, pool: str = "dir") -> set[str]:
        """As virsh lists them, without a refresh."""
        return _names(self.virsh("vol-list", pool))

    def refresh(self, pool: str = "dir") -> set[str]:
        """The volumes then; retried while libvirt still works on one and refuses."""

        def done() -> bool:
            try:
                self.virsh("pool-refresh", pool)
            except AssertionError:
                return False
            return True

        wait_until(done, f"pool {pool} is idle")
        return self.volumes(pool)

    def path(self, pool: str, volume: str) -> Path:
        return Path(self.virsh("vol-path", volume, "--pool", pool))

    def info(self, pool: str, volume: str) -> tuple[int, int]:
        """Capacity and allocation in bytes, as virsh tells them."""
        lines = self.virsh("vol-info", volume, "--pool", pool, "--bytes").splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(told["Capacity"].split()[0]), int(told["Allocation"].split()[0])

    def partition(self, number: int) -> str:
        """What libvirt wants the volume of that number in the pool disk to be called."""
        self.pool("disk")
        return f"{self._devices['disk'].name}p{number}"

    def device(self, pool: str) -> Path:
        """That of a pool that was asked for before."""
        return self._devices[pool]

    def empty(self) -> None:
        """The pools that were asked for since the last time are as they were made: active, without volumes."""
        inactive = self.virsh("pool-list", "--inactive", "--name").split() if self._used else []
        for kind in self._used:
            if kind in inactive:
                self.virsh("pool-start", kind)
            if kind == "disk":
                self._label(self._devices["disk"])
            else:
                _clear(self.directory / kind)
            assert not self.refresh(kind)
        self._used.clear()

    def detach(self) -> None:
        """Afterwards nothing is mounted and no device is attached."""
        for kind, device in self._devices.items():
            if os.path.ismount(self.directory / kind):
                subprocess.run(["umount", self.directory / kind], check=True)
            subprocess.run(["losetup", "--detach", device], check=True)
            _wait_for_detached(device)
        self._devices.clear()

    def _make_filesystem_pool(self, kind: str, target: Path) -> None:
        system = "ext4" if kind == "tiny" else kind
        need(f"mkfs.{system}", "losetup")
        device = self._attach(kind, 4 * MIB if kind == "tiny" else SIZE)
        subprocess.run([f"mkfs.{system}", "-q", device], check=True, capture_output=True)
        # libvirt knows no format called btrfs; without one mount(8) looks for itself.
        of_format = [] if kind == "btrfs" else ["--source-format", system]
        self.virsh("pool-define-as", kind, "fs", "--source-dev", device, "--target", target, *of_format)
        target.mkdir()
        # ext4's lost+found would be listed as a volume.
        subprocess.run(["mount", device, target], check=True)
        _clear(target)
        subprocess.run(["umount", target], check=True)

    def _make_disk_pool(self) -> None:
        need("losetup", "parted")
        device = self._attach("disk", 100 * MIB, "--partscan")
        self._label(device)
        # libvirt asks parted to remove what is behind the disk's name in the partition's: of loop0p1, the p too.
        link = self.directory / f"{device.name}p"
        link.symlink_to(device)
        self.virsh("pool-define-as", "disk", "disk", "--source-dev", link, "--source-format", "gpt", "--target", "/dev")

    def _label(self, device: Path) -> None:
        subprocess.run(["parted", "--script", device, "mklabel", "gpt"], check=True, capture_output=True)

    def _attach(self, kind: str, size: int, *options: str) -> Path:
        if os.geteuid():
            pytest.skip(f"a pool of kind {kind} needs a loop device, and that root")
        image = self.directory / f"{kind}.img"
        with open(image, "wb") as file:
            file.truncate(size)
        done = subprocess.run(["losetup", "--find", "--show", *options, image], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        self._devices[kind] = Path(done.stdout.strip())
        return self._devices[kind]

    def _own(self, directory: Path) -> None:
        """Give it to the user that the daemon runs as."""


def _names(table: str) -> set[str]:
    return {line.split()[0] for line in table.splitlines() if line.strip()}


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _wait_for_detached(device: Path) -> None:
    backing = Path("/sys/block", device.name, "loop/backing_file")
    wait_until(lambda: not backing.exists(), f"{device} is detached")
