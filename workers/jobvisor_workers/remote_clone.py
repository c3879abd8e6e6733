"""Clones from or to volumes that only libvirtd gets at.

Between two volumes of one libvirtd it makes the clone itself, in one call. Else the container is copied, byte by byte,
through a stream.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

from jobvisor_workers import making, pool_volume, qemu_img, room
from jobvisor_workers.data import transfer
from jobvisor_workers.data.extents import allocated
from jobvisor_workers.data.window import Window
from jobvisor_workers.data.zeros import preallocate, zero_out
from jobvisor_workers.errors import BadArgument, JobError, NoSpace, from_os_error
from jobvisor_workers.remote import RemoteVolume, refuse
from jobvisor_workers.resources import pools, uri
from jobvisor_workers.resources.pools import Pools

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobvisor_workers.jobs.clone import Clone
    from jobvisor_workers.worker import Worker


def plan(worker: Worker, job: Clone, doing: str) -> None:
    """Everything that can be known before the first byte."""
    if job.keep_partial:
        raise BadArgument(f"cannot {doing} with --keep-partial: a volume that has no path here is copied as a whole")
    if not uri.is_name(job.target):
        _plan_here(worker, job, doing)
        return
    if job.replace:
        raise BadArgument(f"cannot {doing} to {job.target} with --replace: it has no path here; delete it first")
    refuse(doing, format=job.format)
    pool_volume.check_name(worker, job.target, f"{doing} to {job.target}")
    if uri.is_name(job.source):
        refuse(doing, bandwidth=worker.bandwidth, **{"sparse" if job.sparse else "no-sparse": job.sparse is not None})
        source = RemoteVolume(worker, job.source, doing)
        needed = 0 if job.reflink else source.allocation
    else:
        _refuse_sharing(job, doing)
        volume = worker.volume(job.source)
        needed = volume.size if job.sparse is False else allocated(volume.fd, volume.size)
        image = qemu_img.look(worker, job.source, volume.fd, None, doing)
        _warn_of_backing(worker, job.source, image.backing)
    pool_volume.check_room(worker, job.target, needed, f"{doing} to {job.target}")
    free = pool_volume.available(worker, job.target)
    worker.expect(reads={job.source: needed}, writes={job.target: needed}, space=needed, free=free, exact=False)


def run(worker: Worker, job: Clone, doing: str) -> dict[str, Any]:
    if not uri.is_name(job.target):
        found = _fetch(worker, job, doing)
    elif uri.is_name(job.source):
        found = _let_clone(worker, job, doing)
    else:
        found = _send(worker, job, doing)
    return {"source": job.source, "target": job.target, **found}


# --- both at libvirtd ------------------------------------------------------------------------------------------------


def _let_clone(worker: Worker, job: Clone, doing: str) -> dict[str, Any]:
    source = RemoteVolume(worker, job.source, doing)
    flags = pools.load().VIR_STORAGE_VOL_CREATE_REFLINK if job.reflink else 0
    described = ElementTree.fromstring(source.xml)
    name = described.find("name")
    assert name is not None
    name.text = uri.parse(job.target).volume
    wanted = ElementTree.tostring(described, encoding="unicode")
    worker.phase("clone", total=source.allocation)
    watch = _watch(worker, job.target, source.allocation)
    pool_volume.ask_for(worker, job.target, lambda pool: pool.createXMLFrom(wanted, source.handle, flags), watch)
    worker.reached(source.allocation)
    made = RemoteVolume(worker, job.target, doing)
    return {"format": made.format, "method": "libvirt", "size": made.capacity, "allocated": made.allocation}


def _watch(worker: Worker, target: str, total: int) -> Callable[[], None]:
    """How far libvirtd is only what is allocated by now tells; asked by a connection of its own."""
    assert worker.pools is not None
    there, volume = Pools(worker.pools.uri, "clone"), None

    def look() -> None:
        nonlocal volume
        try:
            volume = volume or there.volume(uri.parse(target))
            worker.reached(min(total, there.ask(volume.info, target)[2]))
        except JobError:  # it is not listed yet, or not any more; the call itself tells why
            volume = None

    return look


# --- one of them here ------------------------------------------------------------------------------------------------


def _send(worker: Worker, job: Clone, doing: str) -> dict[str, Any]:
    """A volume is made as raw, and so is empty; what it holds its pool finds out by the refresh at the end."""
    assert worker.pools is not None
    volume = worker.volume(job.source)
    form = qemu_img.probe(volume.fd)
    data = volume.size if job.sparse is False else 0
    wanted = pool_volume.described(job.target, volume.size, data)
    worker.phase("make the volume")
    worker.pools.changed.add(uri.parse(job.target).pool)
    pool_volume.ask_for(worker, job.target, lambda pool: pool.createXML(wanted, 0))
    target = RemoteVolume(worker, job.target, f"{doing} to {job.target}")
    worker.phase("copy", total=volume.size)
    source = transfer.FileSource(volume.fd, 0, volume.size)
    with target.writing(0, new=target.kind == "file" and job.sparse is not False) as sink:
        transfer.transfer(source, sink, digest=None, advance=worker.advance, skip=worker.skip)
    made = RemoteVolume(worker, job.target, doing)
    return {"format": form, "method": "stream", "size": volume.size, "allocated": made.allocation}


def _plan_here(worker: Worker, job: Clone, doing: str) -> None:
    refuse(doing, format=job.format)
    _refuse_sharing(job, doing)
    source = RemoteVolume(worker, job.source, doing)
    if device := making.device_of(worker, job.target):
        if source.size > device.size:
            short = room.compare(source.size, "the device", device.size)
            raise NoSpace(f"cannot {doing} to {job.target}: {short}")
    else:
        directory = making.directory_of(job.target, job.replace)
        room.check_writable(job.target, directory)
        if not job.sparse:
            needed = source.size if job.sparse is False else min(source.size, source.allocation)
            room.check_free(directory, needed, f"{doing} to {job.target}")
    backing = ElementTree.fromstring(source.xml).findtext("backingStore/path")
    _warn_of_backing(worker, job.source, backing)
    making.expect(worker, {job.source: source.size}, job.target, min(source.size, source.allocation))


def _fetch(worker: Worker, job: Clone, doing: str) -> dict[str, Any]:
    source = RemoteVolume(worker, job.source, doing)
    worker.phase("copy", total=source.size)

    def fill(target: int, directory: str | None) -> str:
        if directory:
            os.fchmod(target, os.fstat(target).st_mode & source.mode)
        if directory and job.sparse is False:
            preallocate(target, source.size)
        zeros = None if directory else zero_out
        sink = transfer.VolumeSink(target, 0, sparse=bool(job.sparse), zeros=zeros, window=Window(target))
        with source.reading(0, source.size) as stream:
            try:
                transfer.transfer(stream, sink, digest=None, advance=worker.advance, skip=worker.skip)
            except OSError as error:
                raise from_os_error(error, f"{doing} to {job.target}")
        worker.phase("sync")
        return "stream"

    method, space = making.make(worker, job.target, job.replace, fill, what="the clone", doing=doing)
    return {"format": source.format, "method": method, "size": source.size, "allocated": space}


def _refuse_sharing(job: Clone, doing: str) -> None:
    if job.reflink:
        raise BadArgument(f"cannot {doing} with --reflink: {job.source} and {job.target} are in different places")


def _warn_of_backing(worker: Worker, source: str, backing: str | None) -> None:
    if backing:
        worker.warn(f"{source} is based on {backing}, and so is the clone, wherever it is")
