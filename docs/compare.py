"""Runs virsh and jobvisor side by side, as root, and writes docs/comparison.md: what it says there was seen just now.

python docs/compare.py [--size MIB]     a libvirtd of its own, on a filesystem of this directory; about a minute

A row that is not so any more ends the program, with what was seen instead.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.libvirtd import VM, Libvirtd, running_system_libvirtd
from support.lock_scenes import wait_until

PAGE = Path(__file__).with_name("comparison.md")
MIB = 1 << 20
MARK = b"a guest's secret"
TEMPLATE = """\
<!-- Made by docs/compare.py, which runs both sides: run it again after a change. -->
# virsh and jobvisor, side by side

Each row was run, on one machine ({versions}), with a raw volume of {size} MiB in a directory pool.
The times are that machine's; what the sentences say was checked by the program that wrote them.

{rows}
"""


class Scene:
    """One volume, big, in the pool dir; virsh and jobvisor on it."""

    def __init__(self, daemon: Libvirtd, place: Path, size: int) -> None:
        self.daemon, self.place, self.size = daemon, place, size
        self.environment = os.environ | {"JOBVISOR_HOME": str(place / "home"), "LIBVIRT_DEFAULT_URI": daemon.uri}
        self.big = self.fresh("big")
        finished(self.jobvisor("list"))  # the daemon is there

    def fresh(self, name: str) -> Path:
        """A volume full of a pattern in which no byte is zero."""
        path = self.daemon.pool() / name
        with open(path, "wb") as file:
            for _ in range(self.size):
                file.write(b"\x11" * MIB)
            os.fsync(file.fileno())
        self.daemon.refresh()
        return path

    def virsh(self, *words: str | Path) -> subprocess.Popen[str]:
        """Started, not waited for."""
        return self._start("virsh", *words)

    def jobvisor(self, *words: str | Path) -> subprocess.Popen[str]:
        return self._start(str(Path(sys.executable).with_name("jobvisor")), *words)

    def start(self, *words: str | Path) -> str:
        """Start a job; its id."""
        return finished(self.jobvisor("start", *words)).strip().split()[-1]

    def info(self, job: str) -> dict[str, object]:
        told: dict[str, object] = json.loads(finished(self.jobvisor("info", "--json", job)))
        return told

    def _start(self, *argv: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=self.place,
        )  # fmt: skip


def finished(process: subprocess.Popen[str], status: int | None = 0) -> str:
    """What it said, when it has ended as it should."""
    out, err = process.communicate(timeout=120)
    assert status is None or process.returncode == status, f"{process.args!r}: {process.returncode}: {out}{err}"
    return out + err


def is_zero(path: Path, offset: int) -> bool:
    with open(path, "rb") as file:
        file.seek(offset)
        return not any(file.read(4096))


@contextmanager
def timed() -> Iterator[Callable[[], str]]:
    start = time.monotonic()
    yield lambda: in_words(time.monotonic() - start)


def in_words(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


# --- the rows: what virsh does, what jobvisor does ---------------------------------------------------------------


def start_virsh(scene: Scene) -> str:
    with timed() as took:
        process = scene.virsh("vol-clone", "big", "copy", "--pool", "dir")
        wait_until(lambda: "copy" in scene.daemon.volumes(), "libvirtd has begun")
        capacity, allocation = scene.daemon.info("dir", "copy")
        early = not is_zero(scene.big.with_name("copy"), scene.size * MIB - 4096)
        assert allocation >= capacity
        assert not early
        finished(process)
        return (
            f"`vol-clone` returns after {took()}, when all is done. Nothing tells how far it is: `vol-info` says "
            "100 % allocated while the end of the volume is still to be copied"
        )


def start_jobvisor(scene: Scene) -> str:
    with timed() as took:
        job = scene.start("clone", "vol://dir/big", "vol://dir/copy", "--bandwidth", "100MiB")
        returned = took()
    wait_until(lambda: scene.info(job)["data_processed"] != 0, "progress is told")
    done = int(str(scene.info(job)["data_processed"]))
    assert 0 < done < scene.size * MIB
    finished(scene.jobvisor("abort", job))
    return (
        f"`start clone` returns after {returned} with the job's id; `info` and `watch` tell bytes, rate and time left"
    )


def interrupt_virsh(scene: Scene) -> str:
    process = scene.virsh("vol-clone", "big", "copy", "--pool", "dir")
    wait_until(lambda: "copy" in scene.daemon.volumes(), "libvirtd has begun")
    process.send_signal(signal.SIGINT)
    finished(process, None)
    with timed() as took:
        copy = scene.big.with_name("copy")
        assert is_zero(copy, scene.size * MIB - 4096)
        wait_until(lambda: not is_zero(copy, scene.size * MIB - 4096), "libvirtd goes on to the end")
        return f"`^C` ends virsh. libvirtd goes on: {took()} later the whole copy was there. No command stops it"


def interrupt_jobvisor(scene: Scene) -> str:
    before = scene.daemon.volumes()
    process = scene.jobvisor("run", "clone", "vol://dir/big", "vol://dir/copy", "--bandwidth", "100MiB")
    running = lambda: '"running"' in finished(scene.jobvisor("list", "--json"))  # noqa: E731
    wait_until(running, "it runs")
    with timed() as took:
        process.send_signal(signal.SIGINT)
        assert " aborted after " in finished(process, -signal.SIGINT)
        assert scene.daemon.refresh() == before
        return f"`^C` aborts the job: after {took()} its last process was gone, and the pool was as before"


def client_virsh(scene: Scene) -> str:
    process = scene.virsh("vol-wipe", "big", "--pool", "dir")
    wait_until(lambda: is_zero(scene.big, 0), "libvirtd has begun")
    process.kill()
    finished(process, -9)
    end = scene.size * MIB - 4096
    assert not is_zero(scene.big, end)
    refused = finished(scene.virsh("pool-refresh", "dir"), 1)
    assert "has asynchronous jobs running" in refused
    with timed() as took:
        wait_until(lambda: is_zero(scene.big, end), "libvirtd wipes to the end")
        return (
            f"After `kill -9` of `vol-wipe` libvirtd went on wiping, to the end {took()} later. Nothing lists it and "
            "nothing stops it; until then the pool refused: `has asynchronous jobs running`"
        )


def client_jobvisor(scene: Scene) -> str:
    scene.fresh("big")
    process = scene.jobvisor("run", "wipe", "vol://dir/big", "--bandwidth", "50MiB")
    wait_until(lambda: is_zero(scene.big, 0), "it has begun")
    process.kill()
    finished(process, -9)
    [job] = finished(scene.jobvisor("list", "--state", "running", "--quiet")).split()
    finished(scene.virsh("pool-refresh", "dir"))
    with timed() as took:
        finished(scene.jobvisor("abort", job))
        ended = took()
    assert not is_zero(scene.big, scene.size * MIB - 4096)
    return (
        f"After `kill -9` of `run wipe` the job was still in `list`; `abort` ended it in {ended}, with the rest of the "
        "volume untouched. The pool could be refreshed all the time"
    )


def daemon_virsh(scene: Scene) -> str:
    process = scene.virsh("vol-clone", "big", "copy", "--pool", "dir")
    copy = scene.big.with_name("copy")
    wait_until(lambda: copy.exists() and copy.stat().st_size and not is_zero(copy, 0), "libvirtd has begun")
    scene.daemon.kill()
    finished(process, 1)
    scene.daemon.start()
    assert "copy" in scene.daemon.volumes()
    capacity, _ = scene.daemon.info("dir", "copy")
    assert capacity >= scene.size * MIB
    assert is_zero(copy, scene.size * MIB - 4096)
    return (
        "After `kill -9` of libvirtd and its restart the half copy was in `vol-list`, with its full capacity in "
        "`vol-info`: nothing tells it from a whole one"
    )


def daemon_jobvisor(scene: Scene) -> str:
    before = scene.daemon.volumes()
    job = scene.start("clone", "vol://dir/big", "vol://dir/copy", "--bandwidth", "50MiB")
    wait_until(lambda: scene.info(job)["data_processed"] != 0, "it has begun")
    worker = int(str(scene.info(job)["pid"]))
    daemon = json.loads(finished(scene.jobvisor("daemon", "--status", "--json")))["pid"]
    os.kill(daemon, signal.SIGKILL)
    scene.daemon.kill()
    scene.daemon.start()
    assert scene.info(job)["state"] == "running", "the worker goes on"
    os.kill(worker, signal.SIGKILL)
    info = wait_until_final(scene, job)
    assert (info["state"], info["cause"]) == ("failed", "killed")
    assert scene.daemon.refresh() == before
    return (
        "After `kill -9` of jobvisor's daemon and of libvirtd the job went on, under its id. After `kill -9` of its "
        "worker too it was `failed`, `killed`, and the pool was as before"
    )


def wait_until_final(scene: Scene, job: str) -> dict[str, object]:
    finished(scene.jobvisor("wait", job), None)
    return scene.info(job)


def suspend_virsh(scene: Scene) -> str:
    words = finished(scene.virsh("help", "volume")) + finished(scene.virsh("help", "pool"))
    assert not re.search(r"abort|suspend|resume|bandwidth|cancel", words), words
    assert "--bandwidth" not in finished(scene.virsh("help", "vol-clone"))
    return "No command and no option of volumes and pools suspends, resumes, slows down or aborts"


def suspend_jobvisor(scene: Scene) -> str:
    job = scene.start("clone", "vol://dir/big", "vol://dir/copy", "--bandwidth", "50MiB")
    wait_until(lambda: scene.info(job)["data_processed"] != 0, "it has begun")
    with timed() as took:
        finished(scene.jobvisor("suspend", job))
        stopped = took()
    done = scene.info(job)["data_processed"]
    time.sleep(0.5)
    assert scene.info(job)["data_processed"] == done
    finished(scene.jobvisor("resume", job))
    wait_until(lambda: scene.info(job)["data_processed"] != done, "it goes on")
    finished(scene.jobvisor("abort", job))
    return f"`suspend` had stopped it after {stopped}, `resume` let it go on; `--bandwidth 50MiB` limits it"


def conflict_virsh(scene: Scene) -> str:
    scene.fresh("big")
    wipe = scene.virsh("vol-wipe", "big", "--pool", "dir")
    wait_until(lambda: is_zero(scene.big, 0), "libvirtd has begun")
    assert not is_zero(scene.big, scene.size * MIB - 4096)
    finished(scene.virsh("vol-clone", "big", "copy", "--pool", "dir"))
    finished(wipe)
    assert is_zero(scene.big.with_name("copy"), 0)
    return "`vol-clone` of a volume that was being wiped: exit 0, and a copy that begins with zeroes"


def conflict_jobvisor(scene: Scene) -> str:
    job = scene.start("wipe", "vol://dir/big", "--bandwidth", "50MiB")
    words = ("run", "clone", "vol://dir/big", "vol://dir/copy", "--on-conflict", "fail")
    said = finished(scene.jobvisor(*words), 6)
    finished(scene.jobvisor("abort", job))
    assert f"job {job}" in said, said
    return "Refused, exit 6, and the error names the job that wipes it; without `--on-conflict fail` it waits its turn"


def upload_virsh(scene: Scene) -> str:
    pipe = scene.place / "pipe"
    os.mkfifo(pipe)
    scene.daemon.make_volume("dir", "target", 4 * MIB)
    process = scene.virsh("vol-upload", "target", pipe, "--pool", "dir")
    with open(pipe, "wb") as writer:
        writer.write(b"\x22" * MIB)
        writer.flush()
        path = scene.big.with_name("target")
        wait_until(lambda: not is_zero(path, 0), "libvirtd writes")
        finished(scene.virsh("vol-delete", "target", "--pool", "dir"))
        writer.write(b"\x22" * MIB)
    finished(process)
    pipe.unlink()
    assert not path.exists()
    return "`vol-delete` of a volume during its `vol-upload`: both exit 0, and the data is nowhere"


def upload_jobvisor(scene: Scene) -> str:
    scene.daemon.make_volume("dir", "target", 4 * MIB)
    source = scene.place / "source"
    source.write_bytes(b"\x22" * 4 * MIB)
    job = scene.start("upload", "vol://dir/target", source, "--bandwidth", "1MiB")
    said = finished(scene.jobvisor("run", "delete", "vol://dir/target", "--on-conflict", "fail"), 6)
    assert f"job {job}" in said, said
    finished(scene.jobvisor("abort", job))
    return "Refused, exit 6, and the error names the upload"


@contextmanager
def running_vm(scene: Scene) -> Iterator[None]:
    path = scene.daemon.make_volume("dir", "disk", 4 * MIB)
    path.write_bytes(MARK * (4 * MIB // len(MARK)))
    (scene.place / "vm.xml").write_text(VM.format(path=path))
    scene.daemon.virsh("create", scene.place / "vm.xml")
    try:
        yield
    finally:
        scene.daemon.virsh("destroy", "web1")


def vm_virsh(scene: Scene) -> str:
    with running_vm(scene):
        finished(scene.virsh("vol-wipe", "disk", "--pool", "dir"))
        assert is_zero(scene.big.with_name("disk"), 0)
    return "`vol-wipe` of the disk of a VM that runs: exit 0, and the disk is empty"


def vm_jobvisor(scene: Scene) -> str:
    with running_vm(scene):
        said = finished(scene.jobvisor("run", "wipe", "vol://dir/disk"), 6)
        assert "web1" in said, said
        assert not is_zero(scene.big.with_name("disk"), 0)
    return "Refused, exit 6, and the error names the VM"


def sparse(scene: Scene) -> Path:
    """A volume with holes and a secret, on a filesystem whose device can be looked at; returns the device's content."""
    path = scene.daemon.make_volume("ext4", "sparse", 16 * MIB, "raw", "--allocation", "0")
    with open(path, "r+b") as file:
        file.seek(4 * MIB)
        file.write(MARK * 4096)
        os.fsync(file.fileno())
    image = scene.daemon.directory / "ext4.img"
    assert is_on(image), "the secret is on the device"
    return image


def is_on(image: Path) -> bool:
    subprocess.run(["sync"], check=True)
    return subprocess.run(["grep", "--quiet", "--binary", MARK, image]).returncode == 0


def sparse_virsh(scene: Scene) -> str:
    image = sparse(scene)
    finished(scene.virsh("vol-wipe", "sparse", "--pool", "ext4"))
    assert is_on(image)
    return "`vol-wipe` of a raw volume with holes: exit 0. What was in it is still on the device, and `grep` finds it"


def sparse_jobvisor(scene: Scene) -> str:
    image = sparse(scene)
    finished(scene.jobvisor("run", "wipe", "vol://ext4/sparse"))
    assert not is_on(image)
    return "It is on the device no more"


ROWS = [
    ("Start a clone", start_virsh, start_jobvisor),
    ("`^C`", interrupt_virsh, interrupt_jobvisor),
    ("`kill -9` of the client", client_virsh, client_jobvisor),
    ("`kill -9` of the daemon", daemon_virsh, daemon_jobvisor),
    ("Suspend, slow down, abort", suspend_virsh, suspend_jobvisor),
    ("Two at once on one volume", conflict_virsh, conflict_jobvisor),
    ("Delete what is being written", upload_virsh, upload_jobvisor),
    ("Wipe the disk of a running VM", vm_virsh, vm_jobvisor),
    ("Wipe a volume with holes", sparse_virsh, sparse_jobvisor),
]


def page(size: int, only: str = "") -> str:
    lines = ["| | virsh | jobvisor |", "| --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as place, running_system_libvirtd(Path(place)) as daemon:
        for title, virsh, jobvisor in ROWS:
            if only not in title:
                continue
            print(title, file=sys.stderr, flush=True)
            cells = []
            for side in (virsh, jobvisor):
                daemon.restore()
                with tempfile.TemporaryDirectory() as directory:
                    scene = Scene(daemon, Path(directory), size)
                    try:
                        cells.append(side(scene))
                    finally:
                        finished(scene.jobvisor("daemon", "--stop"), None)
            lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
        daemon.restore()
    versions = ", ".join(
        f"{name} {version(program)}" for name, program in (("libvirt", "libvirtd"), ("QEMU", "qemu-img"))
    )
    return TEMPLATE.format(rows="\n".join(lines), size=size, versions=versions)


def version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    assert found is not None
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="MiB of the volume")
    parser.add_argument("--only", default="", help="print the rows whose title has this word, and write nothing")
    arguments = parser.parse_args()
    text = page(arguments.size, arguments.only)
    if arguments.only:
        print(text)
    else:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
