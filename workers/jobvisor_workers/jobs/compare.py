"""The job type `compare`."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import chain as chains
from jobvisor_workers import qemu_img
from jobvisor_workers.errors import JobError
from jobvisor_workers.jobtype import READ, JobType, volume
from jobvisor_workers.qemu_img import Format, Image
from jobvisor_workers.worker import Worker

OFFSET = re.compile(rb"[Oo]ffset (\d+)")


class Compare(JobType, tag="compare"):
    """Compare what a guest sees in two volumes.

    In any formats, backing files included. When one is longer, the rest of it must be zeroes; with --strict the sizes
    must be the same, and the same sectors allocated, as qemu-img compare -s wants it. A difference is a failed job, as
    with cmp and qemu-img compare; its error says where the first one is.
    """

    first: Annotated[str, volume("file or block device", READ)]
    second: Annotated[str, volume("file or block device to compare it with", READ)]
    strict: Annotated[bool, Meta(description="the sizes and the allocated sectors too")] = False
    format: Annotated[
        Format | None, Meta(description="the first one's format when its first bytes are not to be trusted")
    ] = None
    second_format: Annotated[Format | None, Meta(description="the second one's format")] = None
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        one, other = self._chains(worker)
        if all(worker.is_locked(image.path) for image in (*one, *other)):
            chains.check_readable(worker, one, self._doing)
            chains.check_readable(worker, other, self._doing)
            if worker.dry_run:
                # It ends at the first difference.
                for chain in (one, other):
                    worker.expect(reads=chains.data_of(worker, chain, self._doing), exact=False)

    def run(self, worker: Worker) -> dict[str, Any]:
        one, other = self._chains(worker)
        sizes = [one[0].size, other[0].size]
        worker.phase("compare", total=max(sizes))
        finished = qemu_img.compare(worker, one, other, strict=self.strict, doing=self._doing)
        found: dict[str, Any] = {"equal": not finished.status, "first_difference": None, "sizes": sizes}
        if finished.status:
            raise self._difference(finished.stdout, found)
        if sizes[0] != sizes[1]:
            longer, shorter = (self.first, self.second) if sizes[0] > sizes[1] else (self.second, self.first)
            worker.warn(f"{longer} is longer than {shorter}: {abs(sizes[0] - sizes[1])} bytes more, all of them zeroes")
        worker.reached(max(sizes))
        return found

    @property
    def _doing(self) -> str:
        return f"compare {self.first} with {self.second}"

    def _chains(self, worker: Worker) -> tuple[list[Image], list[Image]]:
        one = chains.open_chain(worker, self.first, self.format, self._doing)
        return one, chains.open_chain(worker, self.second, self.second_format, self._doing)

    def _difference(self, said: bytes, found: dict[str, Any]) -> JobError:
        if match := OFFSET.search(said):
            found["first_difference"] = int(match[1])
        what = f"{self.first} and {self.second} differ"
        if b"status mismatch" in said:
            return JobError(f"{what}: from byte {found['first_difference']} on one is allocated only", result=found)
        if match:
            return JobError(f"{what}: from byte {found['first_difference']} on", result=found)
        return JobError(f"{what} in size: {found['sizes'][0]} and {found['sizes'][1]} bytes", result=found)
