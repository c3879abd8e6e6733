"""The job type `commit`."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import chain as chains
from jobvisor_workers import jobtype, qemu_img, room
from jobvisor_workers.errors import BadArgument, NoSpace
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.qemu_img import Format, Image
from jobvisor_workers.worker import Worker


class Commit(JobType, tag="commit"):
    """Write an overlay's data into its backing file.

    Afterwards a guest sees the same in the backing file as in the overlay, which is not changed: it may be deleted, or
    used on. No VM may use either. Other overlays of the same backing file are worth nothing afterwards; which there
    are nobody can know. Until it is complete the overlay shows what it always showed, whatever happens.
    """

    volume: Annotated[str, jobtype.volume("overlay whose data is written down", WRITE)]
    base: Annotated[str, jobtype.volume("the backing file to write to, if not the nearest", WRITE)] | None = None
    format: Annotated[Format | None, Meta(description="the format when the first bytes are not to be trusted")] = None
    #: Until all is written, the overlay hides what the backing file holds: it can be written again.
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        chain = self._chain(worker)
        base = self._base(chain)
        if not all(worker.is_locked(image.path) for image in chain):
            return
        chains.check_readable(worker, chain, self._doing)
        worker.warn(f"other overlays of {base.path}, if there are any, cannot be used any more")
        for between in chain[1 : chain.index(base)]:
            worker.warn(f"{between.path} lies between, and cannot be used alone any more")
        if base.size < chain[0].size:
            worker.warn(f"{base.path} grows from {base.size} to {chain[0].size} bytes")
        if worker.dry_run:
            self._expect(worker, chain, base)

    def run(self, worker: Worker) -> dict[str, Any]:
        chain = self._chain(worker)
        top, base = chain[0], self._base(chain)
        worker.abort_effect = (
            f"partly written: {base.path} alone holds neither its old content nor the new one; "
            f"{top.path} shows what it always showed, and can be committed again"
        )
        worker.phase("commit", total=top.size)
        try:
            qemu_img.commit(worker, chain, base, self._doing)
            worker.reached(top.size)
            worker.phase("sync")
            os.fsync(base.fd)
        except BaseException as error:
            worker.warn(worker.abort_effect)
            if isinstance(error, OSError | NoSpace):
                raise room.outgrown(error, f"{self._doing} to {base.path}", worker.volume(base.path))
            raise
        worker.abort_effect = None
        return {"volume": self.volume, "base": base.path, "size": top.size}

    @property
    def _doing(self) -> str:
        return f"commit {self.volume}"

    def _expect(self, worker: Worker, chain: list[Image], base: Image) -> None:
        found = chains.data_of(worker, chain, self._doing)
        above = {image.path: found[image.path] for image in chain[: chain.index(base)]}
        most = sum(above.values()) + qemu_img.overhead(worker, base, self._doing)
        space = 0 if worker.volume(base.path).kind == "block" else most
        worker.expect(reads=above, writes={base.path: most}, space=space, exact=False)

    def _chain(self, worker: Worker) -> list[Image]:
        wanted = os.stat(self.base) if self.base else None

        def written(depth: int, facts: os.stat_result) -> bool:
            return os.path.samestat(facts, wanted) if wanted else depth == 1

        return chains.open_chain(worker, self.volume, self.format, self._doing, written=written)

    def _base(self, chain: list[Image]) -> Image:
        if len(chain) == 1:
            raise BadArgument(f"cannot {self._doing}: it has no backing file")
        if self.base is None:
            return chain[1]
        wanted = os.stat(self.base)
        for image in chain[1:]:
            if os.path.samestat(os.stat(image.path), wanted):
                return image
        raise BadArgument(f"cannot {self._doing} to {self.base}: that is none of its backing files")
