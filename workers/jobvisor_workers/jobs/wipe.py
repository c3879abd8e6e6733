"""The job type `wipe`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import inside, jobtype, qemu_img
from jobvisor_workers.data import overwrite
from jobvisor_workers.data.passes import PASSES, Pass, verified
from jobvisor_workers.errors import BadArgument, JobError, from_os_error
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.keeping import Keeping
from jobvisor_workers.qcow2 import Range
from jobvisor_workers.qemu_img import Format, Image
from jobvisor_workers.remote import RemoteVolume, refuse
from jobvisor_workers.resources import uri
from jobvisor_workers.worker import Volume, Worker

#: virStorageVolWipeAlgorithm.
LIBVIRTS = {
    name: number
    for number, name in enumerate(
        ("zero", "nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random", "trim")
    )
}
#: What an abort would leave is told anew after this part of a pass.
TOLD_EVERY = 0.02


class Wipe(JobType, tag="wipe"):
    """Overwrite a volume so that its data cannot be read back.

    All bytes of the file or device are overwritten, holes too, and its length stays. An image in another format than
    raw is no image afterwards; with --content it stays one, of the same capacity, and what its guest wrote is
    overwritten where it lies. With --algorithm trim nothing is overwritten: the blocks are given back to the filesystem
    or the device, which may keep the data for long.
    """

    volume: Annotated[str, jobtype.volume("file or block device to wipe", WRITE)]
    algorithm: Annotated[
        Literal["zero", "nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random", "trim"],
        Meta(description="the passes to make, under libvirt's names"),
    ] = "zero"
    content: Annotated[
        bool, Meta(description="what a guest wrote into an image that stays valid, instead of the file itself")
    ] = False
    verify: Annotated[
        bool, Meta(description="read back what the last pass wrote (nnsa and dod always do), past the caches")
    ] = False
    format: Annotated[
        Format | None, Meta(description="with --content: the format when the first bytes are not to be trusted")
    ] = None
    keep_partial: Annotated[
        bool, Meta(description="note how far it came, for retry to go on from there (not with --content or trim)")
    ] = False
    remote: ClassVar[bool] = True
    retry: ClassVar[Literal["never", "restart", "continue"]] = "continue"

    def load(self) -> None:
        if any(step.kind == "random" for step in PASSES.get(self.algorithm, ())):
            overwrite.load_cipher()

    def plan(self, worker: Worker) -> None:
        self._check_options()
        if uri.is_name(self.volume):
            self._plan_remote(worker)
            return
        target = worker.volume(self.volume)
        image = self._image(worker) if self.content else None
        if image:
            inside.check(worker, image, self._doing)
            places = inside.places(worker, image, self._doing)
        warn_of_copies(worker, target)
        if self.algorithm == "trim":
            worker.warn(f"trim does not overwrite {self.volume}: the storage may keep the old data")
        if self.keep_partial and not self._goes_on:
            how = "--content" if self.content else "trim"
            worker.warn(f"how far it came is not noted: a wipe with {how} begins anew in any case")
        if worker.dry_run:
            self._expect(worker, target, places if image else [(0, target.size)])

    def run(self, worker: Worker) -> dict[str, Any]:
        if uri.is_name(self.volume):
            return self._run_remote(worker)
        target = worker.volume(self.volume)
        told = {"algorithm": self.algorithm, "content": self.content, "overwritten": False, "verified": False}
        try:
            done = self._trim(worker, target) if self.algorithm == "trim" else self._overwrite(worker, target)
        except BaseException as error:
            # What an abort would leave is now what it did leave.
            if worker.abort_effect:
                worker.warn(f"{self.volume} is {worker.abort_effect}")
            if isinstance(error, OSError):
                raise from_os_error(error, self._doing)
            raise
        return {**told, **done}

    @property
    def _doing(self) -> str:
        return f"wipe {self.volume}"

    @property
    def _goes_on(self) -> bool:
        return not self.content and self.algorithm != "trim"

    def _check_options(self) -> None:
        if self.format and not self.content:
            raise BadArgument(f"cannot {self._doing}: --format {self.format} says nothing without --content")
        for option, given in (("--content", self.content), ("--verify", self.verify)):
            if given and self.algorithm == "trim":
                raise BadArgument(f"cannot {self._doing}: --algorithm trim overwrites nothing; omit {option}")

    def _image(self, worker: Worker) -> Image:
        return qemu_img.look(worker, self.volume, worker.volume(self.volume).fd, self.format, self._doing)

    def _passes(self) -> tuple[Pass, ...]:
        passes = PASSES[self.algorithm]
        return verified(passes) if self.verify else passes

    def _expect(self, worker: Worker, target: Volume, places: list[Range]) -> None:
        held, size = allocation(target), sum(length for _, length in places)
        if self.algorithm == "trim":
            worker.expect(writes={self.volume: 0}, space=-held)
            return
        passes = self._passes()
        read = sum(step.kind == "verify" for step in passes)
        worker.expect(
            reads={self.volume: size * read} if read else {},
            writes={self.volume: size * (len(passes) - read)},
            space=max(0, size - held) if target.kind == "file" else 0,
        )

    # --- where only libvirtd gets at it ----------------------------------------------------------------------

    def _plan_remote(self, worker: Worker) -> None:
        refuse(self._doing, content=self.content, verify=self.verify, keep_partial=self.keep_partial)
        refuse(self._doing, bandwidth=worker.bandwidth)
        target = RemoteVolume(worker, self.volume, self._doing)
        if target.has_holes:
            worker.warn(
                f"{self.volume} has holes: libvirtd then gives all of its blocks back instead of overwriting them"
            )
        worker.expect(writes={self.volume: None})

    def _run_remote(self, worker: Worker) -> dict[str, Any]:
        target = RemoteVolume(worker, self.volume, self._doing)
        overwrites = self.algorithm != "trim" and not target.has_holes
        worker.phase("wipe")
        try:
            number = LIBVIRTS[self.algorithm]
            target.delegate(worker, lambda: target.handle.wipePattern(number, 0), "wiped")
        except JobError:
            worker.warn(f"{self.volume} may be partly overwritten")
            raise
        told = {"algorithm": self.algorithm, "content": False, "overwritten": overwrites, "verified": False}
        return {**told, "size": target.size}

    # --- the bytes -------------------------------------------------------------------------------------------

    def _trim(self, worker: Worker, target: Volume) -> dict[str, Any]:
        worker.phase("discard", total=target.size)
        worker.abort_effect = "partly discarded: some of the old data cannot be read any more, but was not overwritten"
        overwrite.trim(target.fd, target.size, advance=worker.advance)
        return {"passes": 0, "discarded": True, "size": target.size}

    def _overwrite(self, worker: Worker, target: Volume) -> dict[str, Any]:
        places, left = [(0, target.size)], "the old data cannot be used, and may still be readable in part"
        if self.content:
            left = "it is a valid image, and some of what its guest wrote is still there"
            worker.abort_effect = f"perhaps changed: {left}"
            image = self._image(worker)
            inside.unpack(worker, image, self._doing)
            places = inside.places(worker, self._image(worker), self._doing)
        passes, size = self._passes(), sum(length for _, length in places)
        if self._goes_on:
            worker.keep(target)
        keeping = worker.keeping
        first, start = _place(keeping, passes, size) if keeping else (0, 0)
        seed = b""
        for part, step in enumerate(passes[first:], first):
            name = f"pass {part + 1} of {len(passes)}"
            total = size * len(passes) if part == first else None
            worker.phase(f"{name}: {step.name}", total=total, done=first * size + start)
            seed = overwrite.new_seed() if step.kind == "random" else seed
            advance = telling(worker, name, size, left, start)
            rest = [(start, size - start)] if start else places
            overwrite.run_pass(
                target.fd, size, step, advance=advance, ranges=rest, seed=seed, keeping=keeping, part=part
            )
            start = 0
        return {
            "passes": len(passes),
            "overwritten": True,
            "verified": passes[-1].kind == "verify",
            "size": size,
        }


def _place(keeping: Keeping, passes: Sequence[Pass], size: int) -> tuple[int, int]:
    """The pass to go on with, and the byte."""
    if passes[-1].kind == "verify" and not passes[-1].pattern and keeping.part >= len(passes) - 2:
        return len(passes) - 2, 0  # what was random is not known any more, and cannot be told from what is there
    if keeping.done == size and keeping.part < len(passes) - 1:
        return keeping.part + 1, 0
    # Whole steps, for patterns to go on as they began.
    return keeping.part, keeping.done // overwrite.STEP * overwrite.STEP


def allocation(target: Volume) -> int:
    """Bytes that a file has of its filesystem; 0 for a device."""
    return os.fstat(target.fd).st_blocks * 512 if target.kind == "file" else 0


def warn_of_copies(worker: Worker, target: Volume) -> None:
    """What overwriting does not reach, and what it reaches beside the name that was given."""
    if reason := overwrite.cow_reason(target.fd):
        worker.warn(f"old blocks of {target.path} may live on: {reason}")
    links = os.fstat(target.fd).st_nlink
    if target.kind == "file" and links > 1:
        worker.warn(f"{target.path} has {links} names (hard links): it is wiped under all of them")


def telling(
    worker: Worker,
    name: str,
    size: int,
    left: str = "the old data cannot be used, and may still be readable in part",
    done: int = 0,
) -> Callable[[int], None]:
    """worker.advance that also keeps abort_effect up to date. `left`: what the end of it says.

    `done`: bytes that the pass has behind it already.
    """
    due = 0.0

    def tell(count: int) -> None:
        nonlocal done, due
        worker.advance(count)
        done += count
        if done >= due:
            due = done + size * TOLD_EVERY
            worker.abort_effect = f"partly overwritten: {name} at {100 * done // size if size else 100}%; {left}"

    tell(0)
    return tell
