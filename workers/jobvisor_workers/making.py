"""What job types that make a volume from another one share: where it goes, and what holds at its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from jobvisor_workers import pool_volume, room
from jobvisor_workers.data import libc
from jobvisor_workers.data.copy import copy as copy_bytes
from jobvisor_workers.data.window import MIB, Window
from jobvisor_workers.data.zeros import write_zeros
from jobvisor_workers.errors import BadArgument, JobError, NoSpace, from_os_error
from jobvisor_workers.resources import uri

if TYPE_CHECKING:
    from jobvisor_workers.output import Output
    from jobvisor_workers.qemu_img import Image
    from jobvisor_workers.worker import Volume, Worker

#: Bytes written back at a time in the phase "sync", so that an abort does not wait for all of it.
STEP = 32 * MIB


def device_of(worker: Worker, target: str) -> Volume | None:
    """The target if it is a block device to be given up; None for a file to be made."""
    if not worker.is_locked(target):
        return None
    volume = worker.volume(target)
    return volume if volume.kind == "block" else None


def directory_of(target: str, replace: bool) -> str:
    """Where the file is made: with --replace what a link leads to is replaced."""
    return os.path.dirname(os.path.realpath(target) if replace else target)


def refuse_own_chain(chain: Sequence[Image], target: str, doing: str) -> None:
    """Raises BadArgument when `target` is a backing file of what is read."""
    try:
        there = os.stat(target)
    except OSError:
        return
    for image in chain[1:]:
        if os.path.samestat(there, os.stat(image.path)):
            raise BadArgument(f"cannot {doing} to {target}: the source is based on it")


def expect(
    worker: Worker,
    reads: Mapping[str, int | None],
    target: str,
    written: int,
    space: int | None = None,
    *,
    exact: bool = False,
) -> None:
    """What `make` will do. `space`: of a new file, if it is not what is written to it; a device takes none."""
    if uri.is_name(target):
        worker.expect(reads=reads, writes={target: written}, space=written, free=pool_volume.available(worker, target))
        return
    taken = written if space is None else space
    worker.expect(reads=reads, writes={target: written}, space=0 if device_of(worker, target) else taken, exact=exact)


def make(
    worker: Worker,
    target: str,
    replace: bool,
    fill: Callable[[int, str | None], str],
    *,
    what: str,
    doing: str,
    copy: bool = True,
    capacity: Callable[[], int] | None = None,
    keep: bool = False,
) -> tuple[str, int | None]:
    """Let `fill` write a new file, or a device; returns what it returned, and the bytes allocated to a file.

    fill(descriptor, directory): directory is None for a device. It is durable afterwards. `what`: such as "the clone".
    `copy`: see Worker.create. `capacity`: bytes of a volume that its pool's driver is to make first, as a device; what
    it has more is zeroed.
    `keep`: fill tells worker.keeping what is finished, and goes on from there.
    """
    space: int | None = None
    try:
        if capacity and uri.is_name(target):
            size = capacity()
            made = pool_volume.make(worker, target, size)
            method = fill(made.fd, None)
            write_zeros(made.fd, size, made.size - size, Window(made.fd))
            os.fsync(made.fd)
        elif device := device_of(worker, target):
            worker.abort_effect = f"partly overwritten: {target} holds neither its old content nor {what}"
            if keep:
                worker.keep(device)
            method = fill(device.fd, None)
            os.fsync(device.fd)
        else:
            with worker.create(target, replace=replace, copy=copy, keep=keep) as output:
                try:
                    method = fill(output.fd, output.directory_path)
                except (OSError, NoSpace) as error:
                    raise _exhausted(error, f"{doing} to {target}", output)
            space = os.fstat(output.fd).st_blocks * 512
    except BaseException as error:
        # What an abort would leave is now what it did leave.
        if worker.abort_effect:
            worker.warn(worker.abort_effect)
        if isinstance(error, OSError):
            raise from_os_error(error, f"{doing} to {target}")
        raise
    return method, space


def _exhausted(error: OSError | NoSpace, doing: str, output: Output) -> JobError:
    met = from_os_error(error, doing) if isinstance(error, OSError) else error
    if not isinstance(met, NoSpace):
        return met
    return room.exhausted(met, doing, output.directory_path, output.fd, ", or choose a target on another filesystem")


def lay_out(container: int, target: int) -> None:
    """Copy an empty container, made in memory, to the beginning of the target; closes it."""
    try:
        length, device = os.fstat(container).st_size, libc.is_block_device(target)
        copy_bytes(container, target, length, sparse=not device, reflink=False, advance=_ignore, window=None)
    finally:
        os.close(container)


def write_back(worker: Worker, target: int) -> None:
    """The phase "sync": bring to the disk what a program wrote, but for the metadata."""
    worker.phase("sync")
    window = Window(target, STEP)
    for offset in range(0, libc.size_of(target), STEP):
        window.note(offset, STEP)
        worker.reached(0)
    window.finish()


def _ignore(_count: int) -> None:
    pass
