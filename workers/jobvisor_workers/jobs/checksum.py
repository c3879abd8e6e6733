"""The job type `checksum`."""

from __future__ import annotations

import socket
import threading
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from jobvisor_workers import chain as chains
from jobvisor_workers import jobtype, nbd, qemu_img
from jobvisor_workers.data import digest, transfer
from jobvisor_workers.data.extents import allocated
from jobvisor_workers.errors import BadArgument, JobError, from_os_error
from jobvisor_workers.jobtype import READ, JobType
from jobvisor_workers.qemu_img import Format, Image
from jobvisor_workers.remote import RemoteVolume, volume_of
from jobvisor_workers.resources import uri
from jobvisor_workers.worker import Worker


class Checksum(JobType, tag="checksum"):
    """Compute the digest of a volume.

    Of the file or device itself, as sha256sum and its kin would; or with --content of what a guest sees in it, backing
    files included: the same digest for the same disk, whatever its format.
    """

    volume: Annotated[str, jobtype.volume("file or block device to read", READ)]
    algorithm: Annotated[digest.Algorithm, Meta(description="the digest to compute")] = "sha256"
    content: Annotated[bool, Meta(description="what a guest sees, instead of the file itself")] = False
    format: Annotated[
        Format | None, Meta(description="with --content: the format when the first bytes are not to be trusted")
    ] = None
    remote: ClassVar[bool] = True
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def plan(self, worker: Worker) -> None:
        if not self.content:
            if self.format:
                raise BadArgument(f"cannot {self._doing}: --format {self.format} says nothing without --content")
            volume = volume_of(worker, self.volume, self._doing)
            if isinstance(volume, RemoteVolume):
                worker.expect(reads={self.volume: min(volume.size, volume.allocation)})
            else:
                worker.expect(reads={self.volume: allocated(volume.fd, volume.size)} if worker.dry_run else {})
            return
        if uri.is_name(self.volume):
            raise BadArgument(f"cannot {self._doing} with --content: only its container can be read from here")
        chain = chains.open_chain(worker, self.volume, self.format, self._doing)
        if not all(worker.is_locked(image.path) for image in chain):
            return
        chains.check_readable(worker, chain, self._doing)
        if worker.dry_run:
            worker.expect(reads=chains.data_of(worker, chain, self._doing))

    def run(self, worker: Worker) -> dict[str, Any]:
        volume = volume_of(worker, self.volume, self._doing)
        if isinstance(volume, RemoteVolume):
            return self._run_remote(worker, volume)
        chain = chains.open_chain(worker, self.volume, self.format, self._doing) if self.content else []
        size = chain[0].size if chain else volume.size
        worker.phase("read", total=size)
        if chain and not chain[0].plain:
            value = self._of_content(worker, chain)
        else:
            try:
                value = digest.digest(volume.fd, size, self.algorithm, advance=worker.advance)
            except OSError as error:
                raise from_os_error(error, self._doing)
        return {"algorithm": self.algorithm, "digest": value, "size": size, "content": self.content}

    def _run_remote(self, worker: Worker, volume: RemoteVolume) -> dict[str, Any]:
        worker.phase("read", total=volume.size)
        state = digest.new(self.algorithm)
        with volume.reading(0, volume.size) as source:
            transfer.transfer(source, transfer.Nowhere(), digest=state, advance=worker.advance, skip=worker.skip)
        return {"algorithm": self.algorithm, "digest": state.hexdigest(), "size": volume.size, "content": False}

    @property
    def _doing(self) -> str:
        return f"checksum {self.volume}"

    def _of_content(self, worker: Worker, chain: list[Image]) -> str:
        state = digest.new(self.algorithm)
        seen = 0
        failed: list[Exception] = []
        ours, theirs = socket.socketpair()

        def consume(piece: memoryview) -> None:
            nonlocal seen
            state.update(piece)
            seen += len(piece)

        def receive() -> None:
            try:
                nbd.Sink(ours, chain[0].size, consume).serve()
            except Exception as error:
                failed.append(error)
                ours.close()  # so that qemu-img ends

        # A daemon: an abort must not wait for it.
        thread = threading.Thread(target=receive, name="digest", daemon=True)
        with ours:
            with theirs:
                thread.start()
                qemu_img.send(worker, chain, theirs.fileno(), doing=self._doing, on_tick=lambda: worker.reached(seen))
            thread.join()
        if failed:
            raise JobError(f"cannot {self._doing}: what qemu-img sent broke off: {failed[0]!r}")
        worker.reached(chain[0].size)
        return state.hexdigest()
