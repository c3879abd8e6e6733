"""The job type `rebase`."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import chain as chains
from jobvisor_workers import jobtype, qemu_img, room
from jobvisor_workers.errors import BadArgument, NoSpace
from jobvisor_workers.jobtype import READ, WRITE, JobType
from jobvisor_workers.qemu_img import BACKED, Format, Image
from jobvisor_workers.worker import Worker


class Rebase(JobType, tag="rebase"):
    """Give an overlay another backing file, or none.

    What a guest sees stays the same: where the old and the new backing file differ, the old one's data is copied into
    the overlay first. With --unsafe only the name changes, which is right when the new file holds what the old one
    held. No VM may use the images. Until it is complete the overlay keeps its old backing file and shows the same.
    """

    volume: Annotated[str, jobtype.volume("overlay to change", WRITE)]
    backing: Annotated[str, jobtype.volume("the new backing file", READ)] | None = None
    backing_format: Annotated[
        Format | None, Meta(description="its format when its first bytes are not to be trusted")
    ] = None
    flatten: Annotated[bool, Meta(description="no backing file: all data is copied into the overlay")] = False
    unsafe: Annotated[bool, Meta(description="change the name only, also when the old backing file is gone")] = False
    format: Annotated[
        Format | None, Meta(description="the overlay's format when its first bytes are not to be trusted")
    ] = None
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        if (self.backing is None) != self.flatten:
            raise BadArgument(f"cannot {self._doing}: give either --backing with the new backing file, or --flatten")
        if self.flatten and (self.unsafe or self.backing_format):
            other = "--unsafe would lose" if self.unsafe else "--backing-format says nothing about"
            raise BadArgument(f"cannot {self._doing} with --flatten: {other} what the backing file holds")
        old, new = self._old(worker), self._new(worker)
        if old[0].format not in BACKED:
            raise BadArgument(f"cannot {self._doing}: a {old[0].format} has no backing file")
        own = os.fstat(old[0].fd)
        if any(os.path.samestat(os.stat(image.path), own) for image in new):
            raise BadArgument(f"cannot {self._doing} on {self.backing}: that is based on {self.volume} itself")
        if all(worker.is_locked(image.path) for image in (*old, *new)):
            chains.check_readable(worker, [*old, *new], self._doing)
            if worker.bandwidth and not self.unsafe:
                worker.warn("--bandwidth limits what is written to the overlay, not what is read to compare")
            if worker.dry_run:
                self._expect(worker, old, new)

    def run(self, worker: Worker) -> dict[str, Any]:
        old, new = self._old(worker), self._new(worker)
        top = old[0]
        name = self._recorded(top)
        worker.phase("rebase", total=top.size)
        try:
            if not self.unsafe:
                worker.abort_effect = f"{self.volume} shows what it always showed; it may have grown"
                # By name: qemu-img opens it itself, with locks of its own beside the job's.
                backing = (self.backing, new[0].format) if self.backing else None
                qemu_img.rebase(worker, old, backing, self._doing)
            if new and name and (self.unsafe or name != self.backing):
                qemu_img.rename_backing(worker, top.fd, top.format, (name, new[0].format), self._doing)
            worker.reached(top.size)
            os.fsync(top.fd)
        except BaseException as error:
            if worker.abort_effect:
                worker.warn(worker.abort_effect)
            if isinstance(error, OSError | NoSpace):
                raise room.outgrown(error, self._doing, worker.volume(self.volume))
            raise
        worker.abort_effect = None
        return {
            "volume": self.volume,
            "backing": name,
            "backing_format": new[0].format if new else None,
            "backing_before": top.backing,
        }

    @property
    def _doing(self) -> str:
        return f"rebase {self.volume}"

    def _expect(self, worker: Worker, old: list[Image], new: list[Image]) -> None:
        if self.unsafe:
            worker.expect(writes={self.volume: None}, space=0)
            return
        below = chains.data_of(worker, old, self._doing)
        own = below.pop(old[0].path)
        # Where the overlay has nothing, whatever one of the two backing files has may have to be copied.
        other = chains.data_of(worker, new, self._doing) if new else {}
        most = min(sum(below.values()) + sum(other.values()), old[0].size - own)
        most += qemu_img.overhead(worker, old[0], self._doing)
        space = 0 if worker.volume(self.volume).kind == "block" else most
        worker.expect(reads={**below, **other}, writes={self.volume: most}, space=space, exact=False)

    def _old(self, worker: Worker) -> list[Image]:
        if self.unsafe:
            fd = worker.volume(self.volume).fd
            return [qemu_img.look(worker, self.volume, fd, self.format, self._doing)]
        return chains.open_chain(worker, self.volume, self.format, self._doing)

    def _new(self, worker: Worker) -> list[Image]:
        if self.backing is None:
            return []
        return chains.open_chain(worker, self.backing, self.backing_format, self._doing)

    def _recorded(self, top: Image) -> str | None:
        """The name that the overlay keeps: relative, from its own directory, if it was so before."""
        if self.backing is None or top.backing is None or os.path.isabs(top.backing):
            return self.backing
        name = os.path.relpath(self.backing, os.path.realpath(os.path.dirname(self.volume)))
        # Before the first slash a colon would end the name of a protocol.
        return f"./{name}" if ":" in name.split("/")[0] else name
