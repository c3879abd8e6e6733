"""The job type `wipe`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import jobtype
from jobvisor_workers.data import overwrite
from jobvisor_workers.data.passes import PASSES
from jobvisor_workers.errors import from_os_error
from jobvisor_workers.jobtype import WRITE, JobType
from jobvisor_workers.worker import Volume, Worker

#: What an abort would leave is told anew after this part of a pass.
TOLD_EVERY = 0.02


class Wipe(JobType, tag="wipe"):
    """Overwrite a volume so that its data cannot be read back.

    All bytes of the file or device are overwritten, holes too, and its length stays. An image in another format than
    raw is no image afterwards. With --algorithm trim nothing is overwritten: the blocks are given back to the
    filesystem or the device, which may keep the data for long.
    """

    volume: Annotated[str, jobtype.volume("file or block device to wipe", WRITE)]
    algorithm: Annotated[
        Literal["zero", "nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random", "trim"],
        Meta(description="the passes to make, under libvirt's names"),
    ] = "zero"
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def load(self) -> None:
        if any(step.kind == "random" for step in PASSES.get(self.algorithm, ())):
            overwrite.load_cipher()

    def plan(self, worker: Worker) -> None:
        target = worker.volume(self.volume)
        warn_of_copies(worker, target)
        if self.algorithm == "trim":
            worker.warn(f"trim does not overwrite {self.volume}: the storage may keep the old data")
        if worker.dry_run:
            self._expect(worker, target)

    def run(self, worker: Worker) -> dict[str, Any]:
        target = worker.volume(self.volume)
        result = {"algorithm": self.algorithm, "size": target.size, "overwritten": False, "verified": False}
        try:
            result |= self._trim(worker, target) if self.algorithm == "trim" else self._overwrite(worker, target)
        except BaseException as error:
            # What an abort would leave is now what it did leave.
            if worker.abort_effect:
                worker.warn(f"{self.volume} is {worker.abort_effect}")
            if isinstance(error, OSError):
                raise from_os_error(error, f"wipe {self.volume}")
            raise
        return result

    def _expect(self, worker: Worker, target: Volume) -> None:
        held = allocation(target)
        if self.algorithm == "trim":
            worker.expect(writes={self.volume: 0}, space=-held)
            return
        verified = sum(step.kind == "verify" for step in PASSES[self.algorithm])
        written = target.size * (len(PASSES[self.algorithm]) - verified)
        worker.expect(
            reads={self.volume: target.size * verified} if verified else {},
            writes={self.volume: written},
            space=max(0, target.size - held) if target.kind == "file" else 0,
        )

    def _trim(self, worker: Worker, target: Volume) -> dict[str, Any]:
        worker.phase("discard", total=target.size)
        worker.abort_effect = "partly discarded: some of the old data cannot be read any more, but was not overwritten"
        overwrite.trim(target.fd, target.size, advance=worker.advance)
        return {"passes": 0, "discarded": True}

    def _overwrite(self, worker: Worker, target: Volume) -> dict[str, Any]:
        passes = PASSES[self.algorithm]
        total = target.size * len(passes)
        for number, step in enumerate(passes, 1):
            name = f"pass {number} of {len(passes)}"
            worker.phase(f"{name}: {step.name}", total=total if number == 1 else None)
            overwrite.run_pass(target.fd, target.size, step, advance=telling(worker, name, target.size))
        verified = any(step.kind == "verify" for step in passes)
        return {"passes": len(passes), "overwritten": True, "verified": verified}


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


def telling(worker: Worker, name: str, size: int) -> Callable[[int], None]:
    """worker.advance that also keeps abort_effect up to date."""
    done, due = 0, 0.0

    def tell(count: int) -> None:
        nonlocal done, due
        worker.advance(count)
        done += count
        if done >= due:
            due = done + size * TOLD_EVERY
            worker.abort_effect = (
                f"partly overwritten: {name} at {100 * done // size if size else 100}%; "
                "the old data cannot be used, and may still be readable in part"
            )

    tell(0)
    return tell
