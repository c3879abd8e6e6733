"""Clone, wipe and checksum beside today's tools, in one run: ratios count, absolute times wander with the machine.

python bench/data.py [--size MIB] [--rounds N] [--dir DIR] [--only WORD]

Rounds are interleaved; a ratio is the median over the rounds of (time / time of the best peer in the same round), the
best peer being the one with the lowest median. All that writes has fsync in its time. "jobvisor" is a job, from start()
to the end of wait(); "loops" is its data path alone, in a forked process. Peers that are missing are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobvisor import Supervisor
from jobvisor_workers.data.copy import copy
from jobvisor_workers.data.digest import digest
from jobvisor_workers.data.overwrite import run_pass
from jobvisor_workers.data.passes import PASSES
from jobvisor_workers.data.window import Window
from jobvisor_workers.jobs.checksum import Checksum
from jobvisor_workers.jobs.clone import Clone
from jobvisor_workers.jobs.wipe import Wipe
from jobvisor_workers.jobtype import JobType

MIB = 1 << 20
MEMORY = "/dev/shm"
OURS = ("loops", "jobvisor")
Run = Callable[[], object]


@dataclass
class Cell:
    """One comparison: `limit` is what DESIGN holds against the best of the peers; none where no data is moved."""

    title: str
    limit: float | None
    prepare: Run
    contestants: dict[str, Run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of each image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where to work: on the disk to be measured")
    parser.add_argument("--only", default="", help="the cells whose title has this word")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobvisor-bench-", dir=arguments.dir)))
        places = {filesystem_of(disk): disk}
        if os.path.ismount(MEMORY) and shutil.disk_usage(MEMORY).free > 4 * arguments.size * MIB:
            places["tmpfs"] = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY)))
        else:
            print(f"tmpfs: left out, {MEMORY} has no room")
        supervisor = stack.enter_context(Supervisor(disk / "home"))
        left_out: set[str] = set()
        print(
            f"{arguments.size} MiB, {arguments.rounds} rounds; ratios over the best peer (*), lower is better",
            flush=True,
        )
        late = []
        for cell in cells(places, supervisor, arguments.size, left_out):
            if arguments.only in cell.title:
                late += measure(cell, arguments.rounds)
        for program in sorted(left_out):
            print(f"{program}: left out, not installed")
    print(*(f"over its limit: {line}" for line in late), sep="\n")


def cells(places: dict[str, Path], supervisor: Supervisor, size: int, left_out: set[str]) -> Iterator[Cell]:
    for filesystem, directory in places.items():
        for kind in ("random", "sparse", "zeros"):
            source = image(directory / f"{kind}.raw", kind, size)
            for heat in ("warm",) if filesystem == "tmpfs" else ("cold", "warm"):
                yield clone(f"clone {kind}, {filesystem}, {heat}", source, heat == "cold", supervisor, left_out)
            if (kind, filesystem) != ("random", next(iter(places))):
                source.unlink()
    directory = next(iter(places.values()))
    source = directory / "random.raw"
    for heat in ("cold", "warm"):
        yield checksum(f"checksum sha256, {heat}", source, heat == "cold", supervisor, left_out)
    yield wipe("zero", 0.8, source, supervisor, left_out)
    yield wipe("random", 0.7, source, supervisor, left_out)


def clone(title: str, source: Path, cold: bool, supervisor: Supervisor, left_out: set[str]) -> Cell:
    target = source.with_name("copy.raw")

    def prepare() -> None:
        target.unlink(missing_ok=True)
        os.sync()
        forget(source) if cold else remember(source)

    def loops() -> None:
        source_fd = os.open(source, os.O_RDONLY)
        fd = os.open(target.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
        copy(source_fd, fd, os.fstat(source_fd).st_size, advance=lambda _: None, window=Window(fd))
        os.fsync(fd)
        directory = os.open(target.parent, os.O_RDONLY)
        os.link(f"/proc/self/fd/{fd}", target.name, dst_dir_fd=directory, follow_symlinks=True)
        os.fsync(directory)

    then_sync = f"&& sync '{target}' '{target.parent}'"
    return Cell(
        title,
        1.0,
        prepare,
        {
            "loops": lambda: forked(loops),
            "jobvisor": job(supervisor, Clone(str(source), str(target))),
            **peer(left_out, "cp", f"cp --sparse=auto '{source}' '{target}' {then_sync}"),
            **peer(left_out, "nbdcopy", f"nbdcopy '{source}' '{target}' {then_sync}"),
            **peer(left_out, "qemu-img", f"qemu-img convert -f raw -O raw '{source}' '{target}' {then_sync}"),
            **peer(left_out, "rsync", f"rsync --sparse --whole-file '{source}' '{target}' {then_sync}"),
        },
    )


def wipe(
    algorithm: Literal["zero", "random"], limit: float, volume: Path, supervisor: Supervisor, left_out: set[str]
) -> Cell:
    def loops() -> None:
        fd = os.open(volume, os.O_RDWR)
        for step in PASSES[algorithm]:
            run_pass(fd, os.fstat(fd).st_size, step, advance=lambda _: None)

    count = volume.stat().st_size // (4 * MIB)
    commands = {
        "zero": {
            "scrub": f"scrub -f -S -p fillzero '{volume}' && sync '{volume}'",
            "dd": f"dd if=/dev/zero of='{volume}' bs=4M count={count} oflag=direct conv=notrunc,fsync",
            "shred": f"shred -n0 -z '{volume}'",
        },
        "random": {"shred": f"shred -n1 '{volume}'"},
    }
    ours: dict[str, Run] = {
        "loops": lambda: forked(loops),
        "jobvisor": job(supervisor, Wipe(str(volume), algorithm)),
    }
    for program, command in commands[algorithm].items():
        ours |= peer(left_out, program, command)
    return Cell(f"wipe {algorithm}", limit, os.sync, ours)


def checksum(title: str, volume: Path, cold: bool, supervisor: Supervisor, left_out: set[str]) -> Cell:
    def loops() -> None:
        fd = os.open(volume, os.O_RDONLY)
        digest(fd, os.fstat(fd).st_size, "sha256", advance=lambda _: None)

    return Cell(
        title,
        0.25,
        lambda: forget(volume) if cold else remember(volume),
        {
            "loops": lambda: forked(loops),
            "jobvisor": job(supervisor, Checksum(str(volume))),
            **peer(left_out, "sha256sum", f"sha256sum '{volume}'"),
            # Shown, but no peer of the limit: it uses SHA instructions, which many a sha256sum does not.
            **peer(left_out, "openssl", f"openssl dgst -sha256 '{volume}'"),
        },
    )


def measure(cell: Cell, rounds: int) -> list[str]:
    """Print the table of a cell; returns what is over its limit."""
    times: dict[str, list[float]] = {name: [] for name in cell.contestants}
    for _ in range(rounds):
        for name in random.sample(list(times), len(times)):
            cell.prepare()
            start = time.perf_counter()
            cell.contestants[name]()
            times[name].append(time.perf_counter() - start)
    peers = {name: statistics.median(taken) for name, taken in times.items() if name not in (*OURS, "openssl")}
    print(f"\n{cell.title}" + (f" (hold {cell.limit}x)" if cell.limit else ""), flush=True)
    best = min(peers, key=peers.__getitem__)
    late = []
    for name, taken in times.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(taken, times[best], strict=True))
        spread = f"{statistics.median(taken):7.3f} s   {min(taken):7.3f} to {max(taken):.3f}"
        print(f"  {name:10s}{'*' if name == best else ' '} {ratio:6.2f}x   {spread}")
        if name == "jobvisor" and cell.limit and ratio > cell.limit:
            late.append(f"{cell.title}: {ratio:.2f}x of {best}")
    return late


def peer(left_out: set[str], program: str, command: str) -> dict[str, Run]:
    def run() -> None:
        done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{command}: {done.stderr}")

    if shutil.which(program):
        return {program: run}
    left_out.add(program)
    return {}


def job(supervisor: Supervisor, job_type: JobType) -> Run:
    return lambda: supervisor.start(job_type).wait(check=True)


def forked(work: Run) -> None:
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(sys.exc_info()[0] is not None)
    if os.waitpid(pid, 0)[1]:
        sys.exit("the data path failed")


def image(path: Path, kind: str, size: int) -> Path:
    """`size` MiB: random; sparse: every tenth MiB random, the others holes; zeros: stored."""
    with open(path, "wb") as file:
        file.truncate(size * MIB)
        for offset in range(0, size * MIB, 10 * MIB if kind == "sparse" else MIB):
            os.pwrite(file.fileno(), bytes(MIB) if kind == "zeros" else os.urandom(MIB), offset)
        os.fsync(file.fileno())
    return path


def forget(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(path: Path) -> None:
    subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)


def filesystem_of(directory: Path) -> str:
    return subprocess.run(["df", "--output=fstype", directory], capture_output=True, text=True).stdout.split()[-1]


if __name__ == "__main__":
    main()
