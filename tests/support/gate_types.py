"""Job types that go on until a file is there, and others that do little."""

import os
import time
from typing import Annotated, Any, ClassVar, Literal

from jobvisor_workers import READ, WRITE, JobError, JobType, Worker, new_volume, volume


class Gate(JobType, tag="test-gate"):
    """Wait until a file is there; with a volume, have it alone meanwhile."""

    gate: str
    image: Annotated[str, volume("volume to lock", WRITE)] | None = None
    fail: bool = False
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("wait", total=10)
        while not os.path.exists(self.gate):
            time.sleep(0.002)
        worker.advance(10)
        if self.fail:
            raise JobError("cannot go on: it was told to fail")
        worker.warn("something to know")
        return {"gate": self.gate}


class Look(JobType, tag="test-look"):
    """Read a volume."""

    volume: Annotated[str, volume("volume to read", READ)]
    gate: str

    def run(self, worker: Worker) -> None:
        worker.phase("look")
        while not os.path.exists(self.gate):
            time.sleep(0.002)


class TwoPhases(JobType, tag="test-two-phases"):
    """Converge, then wait to be told."""

    def run(self, worker: Worker) -> dict[str, bool]:
        worker.ready()
        return {"completed": True}


class Unstoppable(JobType, tag="test-unstoppable"):
    """A stop would do harm."""

    gate: str
    can_suspend: ClassVar[bool] = False

    def run(self, worker: Worker) -> None:
        worker.phase("wait")
        while not os.path.exists(self.gate):
            time.sleep(0.002)


class Large(JobType, tag="test-large"):
    """Take an argument that fits in no packet."""

    text: str
    target: Annotated[str, new_volume("not used")] | None = None

    def run(self, worker: Worker) -> dict[str, int]:
        return {"length": len(self.text)}


class Count(JobType, tag="test-count"):
    """Count the bytes that are sent."""

    reads_stdin: ClassVar[bool] = True

    def run(self, worker: Worker) -> dict[str, int]:
        worker.phase("count")
        with worker.stdin() as stdin:
            while piece := stdin.read():
                worker.advance(len(piece))
        return {"bytes": stdin.count}


class Fill(JobType, tag="test-fill"):
    """Write so many bytes."""

    size: int
    gate: str = ""
    writes_stdout: ClassVar[bool] = True

    def run(self, worker: Worker) -> None:
        while self.gate and not os.path.exists(self.gate):
            time.sleep(0.002)
        if self.size < 0:
            raise JobError("cannot fill: there is no such size")
        with worker.stdout() as stdout:
            for begin in range(0, self.size, 1 << 20):
                stdout.write(b"f" * min(1 << 20, self.size - begin))
