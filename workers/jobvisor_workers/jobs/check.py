"""The job type `check`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from jobvisor_workers import jobtype, qemu_img
from jobvisor_workers.errors import JobError, from_os_error
from jobvisor_workers.jobtype import READ, JobType
from jobvisor_workers.qemu_img import CHECKED, Format, Image
from jobvisor_workers.worker import Worker

COUNTS = ("corruptions", "leaks", "corruptions-fixed", "leaks-fixed", "check-errors")
SIZES = ("allocated-clusters", "total-clusters", "fragmented-clusters", "compressed-clusters", "image-end-offset")


class Check(JobType, tag="check"):
    """Look through the tables of an image, and repair them.

    By qemu-img check, which knows qcow2, qed, vdi, vmdk, vhdx and parallels. What is found wrong and not repaired
    fails the job: corruption (what a guest sees may be wrong) and leaks (space that nobody uses). The data is not
    looked at, nor are backing files.
    """

    volume: Annotated[str, jobtype.volume("image to look through", READ, written_if="repair")]
    repair: Annotated[
        Literal["leaks", "all"] | None,
        Meta(description="free what leaked; or mend also what is corrupt, as far as that can be done"),
    ] = None
    format: Annotated[Format | None, Meta(description="the format when the first bytes are not to be trusted")] = None
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        self._look(worker)
        worker.expect(reads={self.volume: None}, writes={self.volume: None} if self.repair else {})

    def run(self, worker: Worker) -> dict[str, Any]:
        image = self._look(worker)
        if self.repair:
            worker.abort_effect = f"perhaps repaired in part: check {self.volume} again before it is used"
        worker.phase("repair" if self.repair else "check")
        try:
            finished = qemu_img.check(worker, image, self.repair)
            if self.repair:
                os.fsync(image.fd)
        except BaseException as error:
            if worker.abort_effect:
                worker.warn(f"{self.volume} is {worker.abort_effect}")
            if isinstance(error, OSError):
                raise from_os_error(error, self._doing)
            raise
        worker.abort_effect = None
        sys.stderr.write(finished.stderr.decode(errors="replace"))
        if finished.status not in (0, 2, 3) or not finished.stdout.strip().startswith(b"{"):
            raise JobError(f"cannot {self._doing}: qemu-img check could not finish: {qemu_img.message_of(finished)}")
        said = msgspec.json.decode(finished.stdout)
        counts = {name.replace("-", "_"): said.get(name, 0) for name in COUNTS}
        found = {"format": image.format, **counts, **{name.replace("-", "_"): said.get(name) for name in SIZES}}
        if finished.status:
            raise JobError(self._judged(counts), result=found)
        return found

    @property
    def _doing(self) -> str:
        return f"check {self.volume}"

    def _look(self, worker: Worker) -> Image:
        image = qemu_img.look(worker, self.volume, worker.volume(self.volume).fd, self.format, self._doing)
        if image.format not in CHECKED:
            other = "" if image.format != "raw" else "; checksum and compare tell about its data"
            raise JobError(f"cannot {self._doing}: qemu-img check knows nothing of {image.format} images{other}")
        return image

    def _judged(self, counts: dict[str, int]) -> str:
        corruptions, leaks = counts["corruptions"], counts["leaks"]
        if not corruptions:
            advice = "" if self.repair else "; they do no harm, and --repair leaks frees them"
            return f"{self.volume} has {leaks} leaked clusters{advice}"
        more = f" and {leaks} leaked clusters" if leaks else ""
        advice = "restore it from a copy" if self.repair == "all" else "copy it, then try --repair all"
        return f"{self.volume} is corrupt: {corruptions} errors{more}; the log names them; {advice}"
