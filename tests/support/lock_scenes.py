"""What holds disk images in real life: VMs, scripts with flock(1), mounts. Each is gone when its with block is left."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobvisor_workers import ofd

PROGRAM = Path(__file__).with_name("lock_program.py")


def wait_until(true: Callable[[], object], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.002)


def need(*programs: str) -> None:
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@contextmanager
def started(*argv: str | Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A program in a session of its own; at the end all that is left of the session is killed."""
    process = subprocess.Popen(
        [str(word) for word in argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )
    with process:
        try:
            yield process
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def flock_is_free(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def bytes_are_free(path: Path, first: int = 100, length: int = 104) -> bool:
    with open(path, "rb") as file:
        return not ofd.taken(file.fileno(), ofd.EXCLUSIVE, first, length)


@contextmanager
def flocked(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`flock FILE sleep`, as a script would."""
    need("flock")
    with started("flock", *options, path, "sleep", "600") as process:
        wait_until(lambda: not flock_is_free(path), "flock has it")
        yield process


@contextmanager
def vm(image: Path, name: str = "guest=web1,debug-threads=on") -> Iterator[subprocess.Popen[str]]:
    """A real VM that has the raw image as its disk; it is paused, which frees no lock."""
    need("qemu-system-x86_64")
    drive = f"file={image},format=raw,if=none,id=disk"
    argv = ["-S", "-display", "none", "-machine", "pc,accel=tcg", "-m", "16", "-nodefaults", "-name", name]
    with started("qemu-system-x86_64", *argv, "-drive", drive, "-device", "virtio-blk-pci,drive=disk") as process:
        # It reads the image before it writes: 100 and 201 alone are a VM that is still starting.
        writes = (101, 201)
        wait_until(
            lambda: process.poll() is not None or not any(bytes_are_free(image, byte, 1) for byte in writes),
            "the VM has its disk",
        )
        assert process.poll() is None, "the VM did not start"
        yield process


@contextmanager
def program(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """lock_program.py, which takes locks as a worker does and tells how it went, a line each time."""
    with started(sys.executable, PROGRAM, *words) as process:
        yield process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)


def image(path: Path, size: int = 1 << 20) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


@contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """The file as a block device; afterwards it is proved to be detached."""
    need("losetup")
    attached = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True)
    if attached.returncode:
        pytest.skip(f"no loop device: {attached.stderr.strip()}")
    device = Path(attached.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        backing = Path("/sys/block", device.name, "loop/backing_file")
        wait_until(lambda: not backing.exists(), f"{device} is detached")


@contextmanager
def mounted(device: Path) -> Iterator[Path]:
    """A filesystem on the device, mounted in a directory of its own; its name has a blank, which the kernel escapes."""
    need("mkfs.ext4")
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    where = Path(tempfile.mkdtemp(prefix="mount point "))
    done = subprocess.run(["mount", device, where], capture_output=True, text=True)
    if done.returncode:
        where.rmdir()
        pytest.skip(f"no mount: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
        where.rmdir()
