"""Each job type on a volume of libvirt's, beside virsh and the best program for it, in one run; read as bench/data.py.

python bench/storage.py [--size MIB] [--rounds N] [--only WORD]     as root: with a libvirtd and pools of its own

"jobvisor" is a job on vol://, from start() to the end of wait(), virsh's view of the pool included. All that writes is
synced within its time; libvirtd leaves that to the kernel for all but raw copies, and qemu-img always.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import MIB, Cell, Run, image, measure, peer, remember

from jobvisor import Supervisor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.libvirtd import Libvirtd, running_system_libvirtd

VOLUME = "<volume><name>two</name><capacity>{}</capacity><target><format type='qcow2'/></target></volume>"


class Place:
    """A pool, with at most the volumes `one`, `two` and `base` in it; the file `outside` is in no pool."""

    def __init__(self, daemon: Libvirtd, supervisor: Supervisor, scratch: Path, size: int, pool: str) -> None:
        self.daemon, self.supervisor, self.scratch, self.pool = daemon, supervisor, scratch, pool
        self.bytes = size * MIB
        self.directory = daemon.pool(pool)
        self.one, self.two, self.base = (self.directory / name for name in ("one", "two", "base"))
        self.outside = scratch / "outside"
        self.masters = masters_in(scratch / f"{pool} masters", size)
        self._put: dict[Path, tuple[str, int]] = {}

    def holding(self, **masters: str) -> Run:
        """Before a run: what these volumes are copies of, synced and in memory; no others are there."""
        wanted = {getattr(self, name): master for name, master in masters.items()}

        def prepare() -> None:
            for path in [*self.directory.iterdir(), self.outside]:
                if path not in wanted:
                    path.unlink(missing_ok=True)
            for path, master in wanted.items():
                if not path.exists() or self._put.get(path) != (master, path.stat().st_mtime_ns):
                    path.unlink(missing_ok=True)
                    subprocess.run(["cp", "--reflink=never", self.masters / master, path], check=True)
                    self._put[path] = master, path.stat().st_mtime_ns
                remember(path)
            os.sync()
            self.daemon.refresh(self.pool)

        return prepare

    def job(self, job_type: str, **arguments: Any) -> dict[str, Run]:
        def word(value: Any) -> Any:
            if not isinstance(value, Path):
                return value
            return f"vol://{self.pool}/{value.name}" if value.parent == self.directory else str(value)

        words = {name: word(value) for name, value in arguments.items()}
        return {"jobvisor": lambda: self.supervisor.start(job_type, connect=self.daemon.uri, **words).wait(check=True)}

    def virsh(self, command: str, synced: Path | None = None) -> dict[str, Run]:
        return self.other("virsh", f"virsh -q -c '{self.daemon.uri}' {command}", synced)

    def other(self, program: str, command: str, synced: Path | None = None) -> dict[str, Run]:
        """`synced`: what is to be on the disk at the end."""
        return peer(set(), program, f"{command} && sync '{synced}'" if synced else command)


def masters_in(directory: Path, size: int) -> Path:
    """raw and base: random bytes; qcow2: those of raw; overlay: of base, the second half written anew."""
    directory.mkdir()
    raw, overlay, half = directory / "raw", directory / "overlay", size // 2
    image(raw, "random", size)
    image(directory / "base", "random", size)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, directory / "qcow2"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", overlay], check=True)
    subprocess.run(["qemu-io", "-c", f"write -q -P 7 {half}M {half}M", overlay], check=True)
    return directory


def cells(place: Place, xfs: Place) -> Iterator[Cell]:
    yield from making(place)
    yield from copying(place, xfs)
    yield from writing(place)
    yield from reading(place)


def making(at: Place) -> Iterator[Cell]:
    size, two, nothing = at.bytes, at.two, at.holding()
    yield Cell(
        "create raw, allocated",
        None,
        nothing,
        at.job("create", target=two, capacity=size, prealloc="falloc")
        | at.virsh(f"vol-create-as dir two {size}", two)
        | at.other("fallocate", f"fallocate -l {size} '{two}'", two)
        | at.other("qemu-img", f"qemu-img create -q -f raw -o preallocation=falloc '{two}' {size}", two),
    )
    yield Cell(
        "create qcow2",
        None,
        nothing,
        at.job("create", target=two, capacity=size, format="qcow2")
        | at.virsh(f"vol-create-as dir two {size} --format qcow2", two)
        | at.other("qemu-img", f"qemu-img create -q -f qcow2 '{two}' {size}", two),
    )
    yield Cell(
        "delete",
        None,
        at.holding(one="raw"),
        at.job("delete", volume=at.one)
        | at.virsh("vol-delete one --pool dir")
        | at.other("rm", f"rm '{at.one}'", at.directory),
    )


def copying(at: Place, xfs: Place) -> Iterator[Cell]:
    one, two, outside = at.one, at.two, at.outside
    yield Cell(
        "clone raw",
        1.0,
        at.holding(one="raw"),
        at.job("clone", source=one, target=two)
        | at.virsh("vol-clone one two --pool dir", two)
        | at.other("cp", f"cp --sparse=auto '{one}' '{two}'", two)
        | at.other("nbdcopy", f"nbdcopy '{one}' '{two}'", two),
    )
    yield Cell(
        "clone raw, xfs",
        None,
        xfs.holding(one="raw"),
        xfs.job("clone", source=xfs.one, target=xfs.two)
        | xfs.virsh("vol-clone one two --pool xfs --reflink", xfs.two)
        | xfs.other("cp", f"cp --reflink=always '{xfs.one}' '{xfs.two}'", xfs.two),
    )
    yield Cell(
        "clone qcow2",
        1.0,
        at.holding(one="qcow2"),
        at.job("clone", source=one, target=two)
        | at.virsh("vol-clone one two --pool dir", two)
        | at.other("qemu-img", f"qemu-img convert -f qcow2 -O qcow2 '{one}' '{two}'", two),
    )
    yield Cell(
        "convert qcow2 to raw",
        1.0,
        at.holding(one="qcow2"),
        at.job("convert", source=one, target=two)
        | at.other("qemu-img", f"qemu-img convert -f qcow2 -O raw '{one}' '{two}'", two),
    )
    xml = at.scratch / "two.xml"
    xml.write_text(VOLUME.format(at.bytes))
    yield Cell(
        "convert raw to qcow2",
        1.0,
        at.holding(one="raw"),
        at.job("convert", source=one, target=two, output_format="qcow2")
        | at.virsh(f"vol-create-from dir '{xml}' one --inputpool dir", two)
        | at.other("qemu-img", f"qemu-img convert -f raw -O qcow2 '{one}' '{two}'", two),
    )
    compressed = "-c -W -m 8 -o compression_type=zstd"
    yield Cell(
        "convert raw to qcow2, compressed",
        1.0,
        at.holding(one="raw"),
        at.job("convert", source=one, target=two, output_format="qcow2", compress=True)
        | at.other("qemu-img", f"qemu-img convert {compressed} -f raw -O qcow2 '{one}' '{two}'", two),
    )
    yield Cell(
        "download",
        1.0,
        at.holding(one="raw"),
        at.job("download", volume=one, target=outside, replace=True)
        | at.virsh(f"vol-download one '{outside}' --pool dir", outside)
        | at.other("cp", f"cp '{one}' '{outside}'", outside),
    )


def writing(at: Place) -> Iterator[Cell]:
    one, size = at.one, at.bytes
    raw = at.holding(one="raw")
    yield Cell(
        "upload",
        1.0,
        at.holding(one="base", outside="raw"),
        at.job("upload", volume=one, source=at.outside)
        | at.virsh(f"vol-upload one '{at.outside}' --pool dir", one)
        | at.other("dd", f"dd if='{at.outside}' of='{one}' bs=4M conv=notrunc", one),
    )
    direct = f"dd if=/dev/zero of='{one}' bs=4M count={size // (4 * MIB)} oflag=direct conv=notrunc,fsync"
    yield Cell(
        "wipe zero",
        1.0,
        raw,
        at.job("wipe", volume=one)
        | at.virsh("vol-wipe one --pool dir", one)
        | at.other("scrub", f"scrub -f -S -p fillzero '{one}'", one)
        | at.other("dd", direct),
    )
    yield Cell(
        "wipe random",
        1.0,
        raw,
        at.job("wipe", volume=one, algorithm="random")
        | at.virsh("vol-wipe one --pool dir --algorithm random", one)
        | at.other("shred", f"shred -n1 '{one}'", one),
    )
    yield Cell(
        "resize raw, allocated",
        None,
        raw,
        at.job("resize", volume=one, capacity=2 * size, allocate=True)
        | at.virsh(f"vol-resize one {2 * size} --pool dir --allocate", one)
        | at.other("fallocate", f"fallocate -l {2 * size} '{one}'", one),
    )
    yield Cell(
        "resize qcow2",
        None,
        at.holding(one="qcow2"),
        at.job("resize", volume=one, capacity=2 * size)
        | at.virsh(f"vol-resize one {2 * size} --pool dir", one)
        | at.other("qemu-img", f"qemu-img resize -q '{one}' {2 * size}", one),
    )
    chain = at.holding(base="base", one="overlay")
    yield Cell(
        "commit",
        1.0,
        chain,
        at.job("commit", volume=one) | at.other("qemu-img", f"qemu-img commit -q -d '{one}'", at.base),
    )
    yield Cell(
        "rebase, to nothing",
        1.0,
        chain,
        at.job("rebase", volume=one, flatten=True) | at.other("qemu-img", f"qemu-img rebase -b '' '{one}'", one),
    )


def reading(at: Place) -> Iterator[Cell]:
    one, two = at.one, at.two
    yield Cell(
        "checksum sha256",
        1.0,
        at.holding(one="raw"),
        at.job("checksum", volume=one) | at.other("sha256sum", f"sha256sum '{one}'"),
    )
    yield Cell(
        "compare raw with qcow2",
        1.0,
        at.holding(one="raw", two="qcow2"),
        at.job("compare", first=one, second=two) | at.other("qemu-img", f"qemu-img compare -f raw '{one}' '{two}'"),
    )
    yield Cell(
        "check qcow2",
        1.0,
        at.holding(one="qcow2"),
        at.job("check", volume=one) | at.other("qemu-img", f"qemu-img check -q '{one}'"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="MiB of each volume (xfs: at most 100)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="the cells whose title has this word")
    arguments = parser.parse_args()
    if os.geteuid():
        print("storage: left out, a libvirtd of its own is for root")
        return
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobvisor-bench-")))
        (scratch / "caches").mkdir()
        daemon = stack.enter_context(running_system_libvirtd(scratch / "caches"))
        supervisor = stack.enter_context(Supervisor(scratch / "home"))
        place = Place(daemon, supervisor, scratch, arguments.size, "dir")
        xfs = Place(daemon, supervisor, scratch, min(arguments.size, 100), "xfs")
        print(f"{arguments.size} MiB, {arguments.rounds} rounds; ratios over the best peer (*), lower is better")
        late = []
        for cell in cells(place, xfs):
            if arguments.only in cell.title:
                late += measure(cell, arguments.rounds)
    print(*(f"over its limit: {line}" for line in late), sep="\n")


if __name__ == "__main__":
    main()
