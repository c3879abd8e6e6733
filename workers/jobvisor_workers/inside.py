"""Overwriting what a guest wrote into an image, in place and around its tables, so that it stays an image.

The format's driver is not asked to write: what it would do (a flag that says "zeroes", a copy elsewhere) leaves the
old bytes in the file. Of a qcow2 everything that is no table is overwritten, also what its guest discarded or its
deleted snapshots had; of other formats what their tables point at.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jobvisor_workers import qcow2, qemu_img
from jobvisor_workers.errors import BadArgument, JobError

if TYPE_CHECKING:
    from jobvisor_workers.qcow2 import Range
    from jobvisor_workers.qemu_img import Image
    from jobvisor_workers.worker import Worker

#: Of those qemu-img tells where in the file the data lies.
MAPPED = ("qcow", "qed", "vdi", "vmdk", "vpc", "parallels")
#: Bytes that one command makes zeroes.
STEP = 1 << 30
#: Commands that one program is given.
COMMANDS = 1000


def check(worker: Worker, image: Image, doing: str) -> None:
    """Raises JobError when what the guest wrote cannot be overwritten where it is. For `look`ed at images."""
    if image.encrypted or image.format == "luks":
        raise BadArgument(f"cannot {doing}: it is encrypted, and its content needs a key; omit --content")
    if image.format == "raw":
        return
    if image.format != "qcow2" and image.format not in MAPPED:
        raise BadArgument(f"cannot {doing}: nobody tells where in a {image.format} its data lies; omit --content")
    if image.snapshots:
        raise JobError(
            f"cannot {doing}: it has {image.snapshots} internal snapshots, which share its data; delete them first "
            "(qemu-img snapshot -d), and what they had is overwritten too"
        )
    if count := len(image.details.get("bitmaps", ())):
        raise JobError(f"cannot {doing}: it has {count} bitmaps; remove them first (qemu-img bitmap --remove)")
    if image.dirty:
        raise JobError(f"cannot {doing}: it was not closed cleanly; check --repair all comes first")
    qemu_img.sound(worker, image, doing)
    if image.backing:
        worker.warn(f"what {image.path} has from its backing file {image.backing} stays there, and is still seen")
    if image.format != "qcow2":
        worker.warn(f"what the tables of {image.path} do not point at any more is not overwritten")


def places(worker: Worker, image: Image, doing: str) -> list[Range]:
    """Offsets and lengths in the file of what is to be overwritten, in order."""
    if image.format == "raw":
        return [(0, image.container)]
    if image.format == "qcow2":
        return qcow2.rest(image.fd, qcow2.layout(image.fd, doing), image.container)
    return qcow2.merged(qemu_img.places(worker, image, doing))


def unpack(worker: Worker, image: Image, doing: str) -> None:
    """Let the guest see zeroes where a qcow2 has compressed data: that cannot be overwritten and still be read."""
    if image.format != "qcow2":
        return
    found = qcow2.layout(image.fd, doing).compressed
    if not found:
        return
    worker.phase("compressed data")
    pieces = [
        (at, min(STEP, offset + length - at)) for offset, length in found for at in range(offset, offset + length, STEP)
    ]
    for first in range(0, len(pieces), COMMANDS):
        qemu_img.zero(worker, image, pieces[first : first + COMMANDS], doing)
    os.fsync(image.fd)
    if qcow2.layout(image.fd, doing).compressed:
        raise JobError(f"cannot {doing}: its compressed data could not be given up; omit --content")
