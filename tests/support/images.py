"""Disk images to work on, and what they are compared by."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.lock_scenes import need

MIB = 1 << 20


def qemu_img(*words: str | Path | int) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, f"qemu-img {words}: {done.stderr}"
    return done.stdout


def about(image: Path, kind: str | None = None) -> dict[str, Any]:
    """All that qemu-img says of it; without a kind, by its first bytes."""
    form = ["-f", kind] if kind else []
    answer: dict[str, Any] = json.loads(qemu_img("info", "--output=json", *form, image))
    return answer


def identical(one: Path, other: Path, *options: str) -> bool:
    """As a guest sees them."""
    return "identical" in qemu_img("compare", *options, one, other)


def scattered(path: Path, size: int, seed: int = 1) -> Path:
    """A raw image with data at odd offsets, zeroes that are stored, and holes, also at both ends."""
    choose = random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(8 if size > 64 else 0):
            file.seek(choose.randrange(size // 8, size * 3 // 4))
            file.write(choose.randbytes(min(choose.randrange(1, 300_000), size // 8)))
        file.seek(size // 2)
        file.write(bytes(min(MIB, size // 8)))
    return path


def filled(path: Path, size: int, seed: int = 1) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def qcow2(path: Path, content: Path, *options: str) -> Path:
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, content, path)
    return path


def overlay(path: Path, backing: str, format: str, *writes: str) -> Path:
    """A qcow2 on top of a backing file, which is named as given."""
    qemu_img("create", "-q", "-f", "qcow2", "-b", backing, "-F", format, path)
    for write in writes:
        subprocess.run(["qemu-io", "-c", f"write {write}", path], check=True, capture_output=True)
    return path


def luks_header(path: Path, size: int) -> Path:
    """A LUKS1 header as of its on-disk format 1.2.3, all key slots disabled; making a real one takes seconds."""
    slots = b"".join(struct.pack(">II32sII", 0xDEAD, 0, b"", 8 + 512 * slot, 4000) for slot in range(8))
    names = b"aes", b"xts-plain64", b"sha256"
    head = struct.pack(">6sH32s32s32sII20s32sI40s", b"LUKS\xba\xbe", 1, *names, 4096, 64, b"", b"", 1000, b"uuid")
    path.write_bytes((head + slots).ljust(4096 * 512, b"\0") + random.Random(1).randbytes(size))
    return path


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def everything_in(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Names with inode, mode and content: the same before and after what must have touched nothing."""
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_ino,
            path.lstat().st_mode,
            sha256(path) if path.is_file() else "",
        )
        for path in sorted(directory.rglob("*"))
    }


@contextmanager
def filesystem(directory: Path, kind: str, size: int) -> Iterator[Path]:
    """A fresh filesystem of `size` bytes, mounted on a directory; afterwards nothing of it is mounted."""
    where = directory / f"{kind} here"
    where.mkdir()
    if kind == "tmpfs":
        source, options = "tmpfs", ["-t", "tmpfs", "-o", f"size={size}"]
    else:
        need(f"mkfs.{kind}", "losetup")
        source = str(directory / f"{kind}.img")
        with open(source, "wb") as file:
            file.truncate(size)
        subprocess.run([f"mkfs.{kind}", "-q", source], check=True, capture_output=True)
        options = ["-o", "loop"]
    done = subprocess.run(["mount", *options, source, where], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount {kind}: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
        assert not os.path.ismount(where)
        shutil.rmtree(where)
