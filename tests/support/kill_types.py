"""Job types for the kill loops: each start leaves a mark, so that a second start of one job is seen."""

import os
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from jobvisor_workers import READ, JobType, Worker, new_volume, volume


class Steady(JobType, tag="steady"):
    """Copy a small volume in pieces, slowly enough to be killed anywhere in it."""

    source: Annotated[str, volume("volume to read", READ)]
    target: Annotated[str, new_volume("where the copy goes")]
    marks: str
    pieces: int = 16
    delay: float = 0.002
    child: bool = False
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def run(self, worker: Worker) -> dict[str, Any]:
        mark = os.open(self.marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(mark, f"{worker.id}\n".encode())
        os.close(mark)
        with worker.open(self.source) as source, worker.create(self.target, size=source.size) as output:
            worker.phase("copy", total=source.size)
            if self.child:
                block = max(1, source.size // self.pieces)
                script = (
                    f"set -e; i=0; while [ $i -le {self.pieces} ]; do "
                    f'dd if="$0" of="$1" bs={block} skip=$i seek=$i count=1 conv=notrunc status=none; '
                    f"sleep {self.delay}; i=$((i+1)); done"
                )
                source_path = f"/proc/self/fd/{source.fd}"
                finished = worker.child(["sh", "-c", script, source_path, output.path])
                if finished.status:
                    raise RuntimeError(finished.last_line())
            else:
                for offset in range(0, source.size, max(1, source.size // self.pieces)):
                    piece = os.pread(source.fd, source.size // self.pieces, offset)
                    os.pwrite(output.fd, piece, offset)
                    worker.advance(len(piece))
                    time.sleep(self.delay)
        return {"size": source.size}


def declare(directory: Path) -> str:
    """As pip would, so that daemons find it that nobody told of it; returns what is to be on sys.path."""
    metadata = directory / "kill_types-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kill-types\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[jobvisor.jobtypes]\nsteady = support.kill_types:Steady\n")
    return str(directory)
