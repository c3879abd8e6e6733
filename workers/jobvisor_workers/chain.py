"""Backing chains: which files an image is made of, and how a clone elsewhere names them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jobvisor_workers import qemu_img
from jobvisor_workers.errors import JobError, from_os_error
from jobvisor_workers.jobtype import READ, WRITE
from jobvisor_workers.resources.path import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobvisor_workers.qemu_img import Image
    from jobvisor_workers.worker import Worker


def open_chain(
    worker: Worker,
    path: str,
    format: str | None,
    doing: str,
    *,
    written: Callable[[int, os.stat_result], bool] = lambda _depth, _facts: False,
) -> list[Image]:
    """The locked volume `path` as an image, and below it its backing files, nearest first.

    Those not yet locked are asked for (READ, or WRITE if `written` says so; the nearest one has depth 1), and their
    descriptors in the result are closed: it is good for use when `is_locked` is true for all of them, which the runtime
    sees to between `plan` and `run`. Raises JobError for a file that is missing, that leads back into the chain, or
    that is not on this machine.
    """
    volume = worker.volume(path)
    chain = [qemu_img.look(worker, path, volume.fd, format, doing)]
    seen = {_identity(os.fstat(volume.fd))}
    while (overlay := chain[-1]).backing is not None:
        below = _path_of_backing(overlay, doing)
        try:
            facts = os.stat(below)
        except OSError as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"is out of reach ({error.strerror})"
            raise JobError(f"cannot {doing}: {below}, the backing file of {overlay.path}, {reason}")
        if _identity(facts) in seen:
            raise JobError(f"cannot {doing}: its backing chain is a loop: {overlay.path} leads back to {below}")
        kind_of(facts, f"{doing}, whose backing file is {below}")
        seen.add(_identity(facts))
        worker.lock(below, WRITE if written(len(chain), facts) else READ)
        chain.append(_look_below(worker, below, overlay.backing_format, doing))
    return chain


def check_readable(worker: Worker, chain: Sequence[Image], doing: str) -> None:
    """Raises JobError when what a guest sees cannot be read: a key is needed, or an image is corrupt or cut off."""
    for image in chain:
        if image.encrypted or image.format == "luks":
            raise JobError(f"cannot {doing}: {image.path} is encrypted; its content needs a key")
        if not image.plain:
            qemu_img.sound(worker, image, doing)


def data_of(worker: Worker, chain: Sequence[Image], doing: str) -> dict[str, int]:
    """Path → bytes that come from there, of what the guest sees."""
    counts = qemu_img.data_by_depth(worker, chain, doing)
    return {image.path: counts.get(depth, 0) for depth, image in enumerate(chain)}


def name_for(overlay: Image, below: Image, directory: str | None) -> tuple[str, str]:
    """Name and format under which a clone of `overlay` in `directory` finds the same backing file.

    A relative name stays one, counted from the clone's directory. directory None: the clone is a device, whose
    directory says nothing; the name becomes absolute.
    """
    assert overlay.backing is not None
    if os.path.isabs(overlay.backing):
        return overlay.backing, below.format
    if directory is None:
        return below.path, below.format
    there = os.path.realpath(directory)
    if there == os.path.realpath(os.path.dirname(overlay.path)):
        return overlay.backing, below.format
    name = os.path.relpath(below.path, there)
    # Before the first slash a colon would end the name of a protocol.
    return (f"./{name}" if ":" in name.split("/")[0] else name), below.format


def _path_of_backing(overlay: Image, doing: str) -> str:
    """As QEMU counts: from the directory of the name by which the overlay was opened, not of what a link leads to."""
    assert overlay.backing is not None
    name = overlay.backing.removeprefix("file:")
    if ":" in name.split("/")[0]:
        raise JobError(f"cannot {doing}: the backing file of {overlay.path} is {name[:100]}, no file on this machine")
    if overlay.format not in qemu_img.BACKED:
        raise JobError(
            f"cannot {doing}: {overlay.path} is a {overlay.format} with a backing file; that is not supported"
        )
    directory, last = os.path.split(os.path.join(os.path.dirname(overlay.path), name))
    return os.path.join(os.path.realpath(directory), last)


def _look_below(worker: Worker, path: str, format: str | None, doing: str) -> Image:
    if worker.is_locked(path):
        return qemu_img.look(worker, path, worker.volume(path).fd, format, doing)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"{doing}: its backing file {path}")
    try:
        return qemu_img.look(worker, path, fd, format, doing)
    finally:
        os.close(fd)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino
