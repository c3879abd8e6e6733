"""The job type `xor-copy`, from a package of its own."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import READ, BadArgument, JobType, Worker, new_volume, volume


class XorCopy(JobType, tag="xor-copy"):
    """Copy a volume, every byte XORed with a key.

    Once more with the same key gives back what was there. This hides data from a glance, and from nothing else.
    """

    source: Annotated[str, volume("file or block device to read", READ)]
    target: Annotated[str, new_volume("file to make")]
    key: Annotated[int, Meta(ge=1, le=255, description="the byte to XOR with")] = 255
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        size = worker.volume(self.source).size
        if not size:
            raise BadArgument(f"cannot copy {self.source}: it is empty; name a volume with data")
        worker.expect(reads={self.source: size}, writes={self.target: size}, space=size)

    def run(self, worker: Worker) -> dict[str, Any]:
        table = bytes(byte ^ self.key for byte in range(256))
        with worker.open(self.source) as source, worker.create(self.target, size=source.size) as output:
            worker.phase("copy", total=source.size)
            # All of it: a hole reads as zeroes, which become key bytes.
            for offset in range(0, source.size, 4 << 20):
                piece = os.pread(source.fd, 4 << 20, offset)
                _write(output.fd, piece.translate(table), offset)
                worker.advance(len(piece))  # progress, and where --bandwidth is kept
        return {"key": self.key}


def _write(fd: int, content: bytes, offset: int) -> None:
    """All of it: a full filesystem takes a part, and says so only to the next call."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written
