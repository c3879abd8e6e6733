"""What a job type's `plan` and `run` are given: the kit of a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobvisor_workers import children, pipes
from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.errors import JobError
from jobvisor_workers.expected import Expected
from jobvisor_workers.jobtype import READ, Access
from jobvisor_workers.output import Output, target_mode
from jobvisor_workers.protocol import Delegated
from jobvisor_workers.resources.pools import Pools

if TYPE_CHECKING:
    from jobvisor_workers.keeping import Keeping
    from jobvisor_workers.locks import Lock
    from jobvisor_workers.pipes import Ends
    from jobvisor_workers.pool_volume import PoolVolume
    from jobvisor_workers.progress import Reporter
    from jobvisor_workers.protocol import Made, Request, Temporary

#: The longest piece that `extents` yields, bytes: between two pieces progress is told and a signal is heard.
PIECE = 4 << 20
NOTHING: Mapping[str, int | None] = MappingProxyType({})


@dataclass(frozen=True)
class Volume:
    """A locked file or block device, open for what its access allows. `size` in bytes."""

    path: str
    fd: int
    size: int
    kind: str
    access: Access


class Worker:
    """One running job. Everything opened or created through it is released at the end, however that comes."""

    def __init__(
        self,
        request: Request,
        reporter: Reporter,
        record: Callable[[Temporary | Made | Delegated], None],
        ends: Ends,
        keeping: Keeping | None = None,
    ) -> None:
        self.id = request.id
        self.bandwidth = request.bandwidth
        #: Only plan() will run: it may spend time on what `expect` says.
        self.dry_run = request.dry_run
        #: advance(n): n more bytes are done; at most 200 ns, and the place where a bandwidth limit sleeps.
        self.advance = reporter.advance
        self.locks: list[Lock] = []
        self.outputs: list[Output] = []
        #: Volumes that a pool's driver made, which go when the job does not complete.
        self.made: list[PoolVolume] = []
        self.wanted: dict[tuple[str, Access], None] = {}
        self.expected = Expected()
        self.completed = threading.Event()
        #: A context in which no request to end is raised; it yields what tells whether there is one.
        self.held_back: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False)
        #: Libvirt's volumes and pools, of a job that names some.
        self.pools = Pools(request.connect, request.type) if request.connect else None
        self._keeping = keeping
        self._umask = request.umask
        self._reporter = reporter
        self.record = record
        self._ends = ends
        self._type = request.type

    # --- resources -------------------------------------------------------------------------------------------

    def lock(self, path: str, access: Access) -> None:
        """In `plan`: a further resource, found by looking (a backing file).

        All locks are then taken anew in one order, so that two jobs never wait for each other, and `plan` runs again.
        """
        self.wanted[path, access] = None

    def expect(
        self,
        *,
        reads: Mapping[str, int | None] = NOTHING,
        writes: Mapping[str, int | None] = NOTHING,
        space: int | None = None,
        free: int | None = None,
        exact: bool = True,
    ) -> None:
        """In `plan`: what `run` will do, for a dry run to say.

        reads, writes: path → bytes (None: nobody can know). space: bytes by which the files written grow on their
        filesystem. free: what there is, where the first path of `writes` does not tell. exact: False for the most
        that it may be. Calls add up.
        """
        self.expected.add(reads, writes, space, free, exact)

    @contextmanager
    def open(self, path: str) -> Iterator[Volume]:
        """The locked resource of this path; the descriptor stays locked until the job ends."""
        yield self.volume(path)

    def release(self, path: str) -> None:
        """Close this locked resource before the job ends: nobody can remove a partition that is open."""
        for lock in [lock for lock in self.locks if lock.path == path]:
            self.locks.remove(lock)
            lock.close()

    def volume(self, path: str) -> Volume:
        """As `open`, for the time of the whole job."""
        for lock in self.locks:
            if lock.path == path:
                return Volume(path, lock.fd, lock.size, lock.kind, lock.access)
        raise JobError(f"cannot open {path}: the job type does not declare it, and plan() did not lock it")

    def is_locked(self, path: str) -> bool:
        """True when `path` exists and is locked: a new volume that --replace gives up."""
        return any(lock.path == path for lock in self.locks)

    def create(
        self,
        path: str,
        *,
        size: int | None = None,
        replace: bool = False,
        copy: bool = True,
        keep: bool = False,
    ) -> Output:
        """A new file, unnamed until the whole job is done; leaving the with block makes its content durable.

        `size`: bytes to set its length to. Its mode is that of the first volume read, & ~umask; not that when it is
        no `copy` of it. `keep`: the file is written from the first byte to the last, and with --keep-partial
        `worker.keeping` says from where on, and is told what is finished.
        """
        keeping = self._keeping if keep else None
        source = next((lock.fd for lock in self.locks if copy and lock.access is READ), None)
        mode = target_mode(source, self._umask)
        output = Output(path, self.id, mode=mode, replace=replace, record=self.record, keeping=keeping)
        self.outputs.append(output)
        if keeping:
            keeping.take(output.fd, self._read, output.partial)
        if size and not (keeping and keeping.continues):
            output.resize(size)
        return output

    def keep(self, volume: Volume) -> None:
        """As `keep` of `create`, for a volume that is written in place from the first byte to the last."""
        if self._keeping:
            self._keeping.take(volume.fd, self._read)

    @property
    def keeping(self) -> Keeping | None:
        """With --keep-partial, of a target that was made or taken for it: where to go on; is told what is finished."""
        return self._keeping if self._keeping and self._keeping.taken else None

    @property
    def kept_space(self) -> int:
        """Bytes that the target needs no more, since an earlier job's partial has them."""
        return self._keeping.space if self._keeping else 0

    @property
    def _read(self) -> list[tuple[str, int]]:
        return [(lock.path, lock.fd) for lock in self.locks if lock.access is READ]

    def extents(self, volume: Volume) -> Iterator[tuple[int, int]]:
        """(offset, length) of the data, in pieces of at most 4 MiB; holes count as done on the way."""
        done = 0
        for start, length in data_extents(volume.fd, 0, volume.size):
            if start > done:
                self.skip(start - done)
            for offset in range(start, start + length, PIECE):
                yield offset, min(PIECE, start + length - offset)
            done = start + length
        if volume.size > done:
            self.skip(volume.size - done)

    def child(
        self,
        argv: Sequence[str],
        *,
        on_stdout: Callable[[bytes], None] | None = None,
        on_tick: Callable[[], None] | None = None,
        descriptors: Sequence[int] = (),
    ) -> children.Finished:
        """Run a program in this job: it shares stops and ends, and holds the locks as long as it lives."""
        locked = (descriptor for lock in self.locks for descriptor in lock.descriptors)
        inherited = {*descriptors, *locked, *(output.fd for output in self.outputs if output.fd >= 0)}

        def tick() -> None:
            if on_tick:
                on_tick()
            self._reporter.advance_nothing()

        return children.run(argv, descriptors=sorted(inherited), on_stdout=on_stdout, on_tick=tick)

    # --- pipes -----------------------------------------------------------------------------------------------

    @contextmanager
    def stdin(self) -> Iterator[pipes.Input]:
        """What the user sends, of types with reads_stdin; waits until somebody does. `read` to the end of it."""
        pipe = pipes.Input(self._declared_ends(self._ends.input, "reads_stdin"), self._await, self._type)
        try:
            yield pipe
        finally:
            pipe.close()

    @contextmanager
    def stdout(self) -> Iterator[pipes.Output]:
        """What the user reads, of types with writes_stdout; waits until somebody does."""
        pipe = pipes.Output(self._declared_ends(self._ends.output, "writes_stdout"), self._await, self._type)
        try:
            yield pipe
        finally:
            pipe.close()

    def _declared_ends(self, end: int, what: str) -> Ends:
        if end < 0:
            raise JobError(f"cannot {self._type}: the job type does not declare {what}")
        return self._ends

    def _await(self, reason: str | None) -> None:
        report = self._reporter.report
        report.state, report.reason = ("running", None) if reason is None else ("waiting", reason)
        self._reporter.send()

    # --- what is told ----------------------------------------------------------------------------------------

    def phase(self, name: str, total: int | None = None, *, done: int = 0) -> None:
        """A new part of the work begins. `total`: bytes of the whole job (counted from 0 again when given).

        `done`: how many of them an earlier job did.
        """
        report = self._reporter.report
        report.phase = name
        if total is not None:
            report.total, report.processed, report.continued = total, done, done
        self._reporter.send()

    def skip(self, count: int) -> None:
        """As `advance`, for bytes done without moving them (holes, shared blocks): no bandwidth limit counts those."""
        self._reporter.report.processed += count
        self._reporter.advance_nothing()

    def reached(self, processed: int) -> None:
        """As `skip`, for a child that tells its position and keeps the bandwidth limit itself; never backwards."""
        self.skip(max(0, processed - self._reporter.report.processed))

    def warn(self, text: str) -> None:
        """Something the user must know although the job goes on."""
        if text not in self._reporter.report.warnings:
            self._reporter.report.warnings.append(text)
            self._reporter.send()

    @property
    def abort_effect(self) -> str | None:
        """What an abort now would leave behind; None when nothing."""
        return self._reporter.report.abort_effect

    @abort_effect.setter
    def abort_effect(self, text: str | None) -> None:
        self._reporter.report.abort_effect = text
        self._reporter.send()

    def delegate(self, delegated: bool) -> None:
        """From here on another program does the work, or not any more: no stop and no end would reach it."""
        self.record(Delegated(delegated))
        self._reporter.report.delegated = delegated
        self._reporter.send()

    def ready(self) -> None:
        """The job converged: wait until it is told to complete (or aborted)."""
        self._reporter.report.state = "ready"
        self._reporter.send()
        self.completed.wait()
        self._reporter.report.state = "running"
        self._reporter.send()
