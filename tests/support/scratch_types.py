"""Job types of another package, as the command line's tests need them: their pace is set by files that a test makes.

Declared as real entry points: `plugin` writes the metadata that pip would have installed.
"""

from __future__ import annotations

import atexit
import os
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers.errors import JobError, NoSpace
from jobvisor_workers.jobtype import READ, JobType, byte_size, new_volume, volume
from jobvisor_workers.worker import Worker

MIB = 1 << 20
#: Between two steps of work, seconds.
STEP = 0.005


class Pace(JobType, tag="pace"):
    """Read a volume, at the pace of a test.

    It begins when it is told and ends when it is told.
    """

    source: Annotated[str, volume("volume to read", READ)]
    target: Annotated[str, new_volume("a file to make")] | None = None
    until: Annotated[str | None, Meta(description="work on until this file exists")] = None
    linger: Annotated[str | None, Meta(description="when aborted, live on until this file exists")] = None
    ticks: Annotated[str | None, Meta(description="a file that grows by one byte per step")] = None
    chunk: Annotated[int, byte_size("bytes per step", least=1)] = MIB
    total: Annotated[int, byte_size("bytes of all")] = 1000 * MIB
    key: Annotated[int, Meta(ge=1, le=255, description="a number with bounds")] = 255
    color: Annotated[Literal["red", "green"], Meta(description="a choice")] = "red"
    deep_look: Annotated[bool, Meta(description="a flag")] = False
    maybe: Annotated[bool | None, Meta(description="a flag that need not be given")] = None
    fails: Annotated[str | None, Meta(description="fail with these words")] = None
    warns: Annotated[str | None, Meta(description="warn with these words")] = None
    says: Annotated[str | None, Meta(description="write what is in this file to the log, and remove it")] = None
    effect: Annotated[str | None, Meta(description="what an abort would leave")] = None
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("pace", total=self.total or None)
        if self.warns:
            worker.warn(self.warns)
        if self.effect:
            worker.abort_effect = self.effect
        if self.linger:
            atexit.register(_wait_for, self.linger)
        done = 0
        while self.until and not os.path.exists(self.until):
            if not self.total or done < self.total:
                worker.advance(self.chunk)
                done += self.chunk
            else:
                worker.advance(0)
            if self.says:
                _say(self.says)
            if self.ticks:
                with open(self.ticks, "ab") as file:
                    file.write(b".")
            time.sleep(STEP)
        if self.fails:
            raise NoSpace(self.fails) if "space" in self.fails else JobError(self.fails)
        if self.target:
            with worker.create(self.target, size=1):
                pass
        return {"key": self.key, "color": self.color, "deep_look": self.deep_look, "maybe": self.maybe}


class Rigid(JobType, tag="rigid"):
    """A job that must not be stopped."""

    source: Annotated[str, volume("volume to read", READ)]
    until: Annotated[str | None, Meta(description="work on until this file exists")] = None
    can_suspend: ClassVar[bool] = False

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("hold")
        if self.until:
            _wait_for(self.until, worker)
        return {}


class Crash(JobType, tag="crash"):
    """A job type with a defect."""

    nice: Annotated[str, Meta(description="a field with the name of a common option")] = "own"

    def run(self, worker: Worker) -> dict[str, Any]:
        print(f"last words, {self.nice}", flush=True)
        if self.nice == "raise":
            raise RuntimeError("out of cheese")
        os._exit(7)


def _say(path: str) -> None:
    try:
        content = Path(path).read_text()
    except FileNotFoundError:
        return
    if content:
        print(content, end="", flush=True)
        os.unlink(path)


def _wait_for(path: str, worker: Worker | None = None) -> None:
    while not os.path.exists(path):
        time.sleep(STEP)
        if worker:
            worker.advance(0)


def plugin(directory: Path) -> str:
    """Declare the types in a directory, with one whose module cannot be imported; returns a PYTHONPATH."""
    metadata = directory / "scratch_types-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: scratch-types\nVersion: 1.0\n")
    points = {name.lower(): f"scratch_types:{name}" for name in ("Pace", "Rigid", "Crash")}
    points["broken"] = "scratch_types_that_are_not_there:Broken"
    lines = "".join(f"{name} = {where}\n" for name, where in points.items())
    (metadata / "entry_points.txt").write_text(f"[jobvisor.jobtypes]\n{lines}")
    # Not the directory that it lies in: another module there is called like one of Python's.
    os.symlink(__file__, directory / "scratch_types.py")
    return str(directory)
