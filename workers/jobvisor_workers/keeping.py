"""`--keep-partial`: what a job has finished outlives it, and `retry` goes on from there.

**For whom.** Types with retry = "continue" have the field `keep_partial`. Their work goes over bytes from the first to
the last, once or in several passes, so that what is finished is two numbers: the pass, and the byte before which all
is done. What another program writes (qemu-img), and what shares blocks, is not of that kind: it begins anew, and says
so.

**The partial.** A new file has the name `.jobvisor-<id>-<8 hex>` in its target's directory from the beginning, mode
0600 and the requester's; the name is in the life file (Temporary, kept) before it is made. Without --keep-partial it
has no name as ever. Work in place (wipe, a block device, an upload) has no partial but the target itself.

**The map** (`finished`) is jobs/<id>/map. That directory is the supervisor's; a worker that drops its rights opens the
map before. So no user can write to it but through a worker's code, and what it says is used only by workers of the same
user, with that user's rights. It is never ahead of the data: fsync of the target first, then the line, then fdatasync
of the map. That is done every EVERY seconds, and less often where it takes long, so that it costs at most a COST-th of
the time. What was written later than the last line counts for nothing, and is cut off or written again.

**One map for all retries.** Accepting a retry hard-links the map into the new job's directory, if it has something to
go on from. So every job of such a row can be retried, each goes on from the newest state, flock on the map lets one at
a time, and its link count tells `forget` (and expiry) when nobody else needs the partial: then it goes too. When a job
completes the map is emptied. All of that is the supervisor's (`jobvisor.partial`).

**Both ends are the same, or it is refused** (`unchanged`). Of each source: exactly what it was when the first job
began, for else the target would be a mix of two states. Of the target: the very file or device, and nobody wrote to it
since our last worker did. One that left in order noted how the target looked at that moment (Left). One that was killed
did not: then the target must be no older than at the last line, and not younger than the end of that job (the kernel's
word in `exit`), or than the start of the host if that came since. Where neither is known (the zygote was killed with
the worker), writes by others in between are not noticed, nor are those to a device after a kill, of which a warning
tells. A refused retry changes nothing.

**Who dies when.** Before the first Finished: settling removes the partial, as if it had not been kept. Within a line:
the line counts for nothing. After the commit, before the name is made: the partial stays, with everything finished.
After the name is made: the job completed, and settling removes the partial's name. Power lost: the map tells what was
on the disk before.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Sequence

import msgspec

from jobvisor_workers import unchanged
from jobvisor_workers.errors import Held, JobError
from jobvisor_workers.finished import NAME, Begun, Finished, Left, Line, Map, Taken
from jobvisor_workers.protocol import Request, decode_exit

#: Seconds between two lines, which are what a kill can cost; and at least so many times as long as writing one takes.
EVERY = 3.0
COST = 30


class Keeping:
    """A worker's hold on the map of its job; made before the worker becomes the requester."""

    def __init__(self, directory: int, request: Request, warn: Callable[[str], None] = print) -> None:
        """`directory`: the job's."""
        self.warn = warn
        self._request = request
        self._fd = os.open(NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
        self._alone = _locked(self._fd)
        self._map = Map(_content(self._fd))
        #: Something is there, and this job is to go on from it.
        self.continues = request.retry_of is not None and os.fstat(self._fd).st_size > 0
        self._latest = self._last_moment(directory) if self.continues else None
        self._target = -1
        self._due = 0.0
        self._writable = True

    # --- what there is ---------------------------------------------------------------------------------------

    @property
    def partial(self) -> str | None:
        """The path of the file to go on with."""
        return self._map.begun.partial if self.continues and self._map.begun else None

    @property
    def part(self) -> int:
        """The pass to go on with."""
        return self._map.finished.part if self._map.finished else 0

    @property
    def done(self) -> int:
        """The byte of that pass to go on from."""
        return self._map.finished.done if self._map.finished else 0

    @property
    def processed(self) -> int:
        """Bytes of all passes that are finished."""
        return self._map.processed

    @property
    def space(self) -> int:
        """Bytes that the partial has allocated already."""
        try:
            return os.stat(self.partial, follow_symlinks=False).st_blocks * 512 if self.partial else 0
        except OSError:
            return 0

    # --- for the job -----------------------------------------------------------------------------------------

    def take(self, target: int, sources: Sequence[tuple[str, int]], partial: str | None = None) -> None:
        """Go on with `target`, or begin. `sources`: path and descriptor of all that is read; `partial`: target's path.

        Raises JobError when an end is not what it was, Held when another worker is at it.
        """
        if not self._alone:
            raise Held(self._request.args.get("target") or partial or "the volume", None, self._doing)
        if self.continues:
            self._prove(target, sources)
            if self.partial:
                os.fchmod(target, 0o600)  # it may have had its last mode when the worker was killed
        else:
            self._map = Map()
            os.ftruncate(self._fd, 0)
            looks = [unchanged.settled(fd) for _, fd in sources]
            self._append(Begun(os.urandom(8).hex(), looks, unchanged.look(target), partial))
        self._append(Taken(self._request.id))
        self._target = target
        self._due = time.monotonic() + EVERY

    @property
    def taken(self) -> bool:
        """True after `take`."""
        return self._target >= 0

    def due(self) -> bool:
        """True when it is time for `finished`."""
        return time.monotonic() >= self._due

    def finished(self, done: int, part: int = 0) -> None:
        """All bytes before `done` of this pass, and all earlier passes, are written. Makes that durable, then notes it.

        Raises OSError when it does not reach the disk.
        """
        began = time.monotonic()
        # Before the sync: what is on the disk afterwards is no older.
        facts = unchanged.look(self._target)
        os.fsync(self._target)
        self._append(Finished(part, done, facts), durable=True)
        now = time.monotonic()
        self._due = now + max(EVERY, COST * (now - began))

    def leave(self) -> bool:
        """The job ends without being complete. False if nothing is worth keeping: the partial is to be removed."""
        if self._target < 0:
            return self.continues
        if not self.processed:
            os.ftruncate(self._fd, 0)
            return False
        if self._map.left is None:  # an abort may interrupt this, and it is done again
            try:
                if self._map.begun and self._map.begun.partial:
                    os.fchmod(self._target, 0o600)
                self._append(Left(unchanged.settled(self._target)))
            except OSError:  # it counts as killed
                pass
        return True

    # --- the proof -------------------------------------------------------------------------------------------

    @property
    def _doing(self) -> str:
        return f"continue job {self._request.retry_of} with"

    def _prove(self, target: int, sources: Sequence[tuple[str, int]]) -> None:
        begun, last = self._map.begun, self._map.finished
        if begun is None or last is None:
            raise self._refused("", "the map of what is finished is damaged")
        if len(begun.sources) != len(sources):
            raise self._refused(sources[0][0], "it has other backing files now")
        for (path, fd), before in zip(sources, begun.sources, strict=True):
            if why := unchanged.change(before, unchanged.settled(fd)):
                raise self._refused(path, why)
        now = unchanged.look(target)
        left = self._map.left
        name = begun.partial or os.readlink(f"/proc/self/fd/{target}")
        if begun.partial and os.fstat(target).st_uid != os.geteuid():  # nobody can make a file that is another user's
            raise self._refused(name, "it is another user's")
        if why := unchanged.other(begun.target, msgspec.structs.replace(now, size=begun.target.size)):
            raise self._refused(name, why)
        if left and left.target.boot == now.boot:
            if why := unchanged.change(left.target, now):
                raise self._refused(name, why)
            return
        if why := unchanged.change_between(last.target, self._latest, now):
            raise self._refused(name, why)
        if now.block:
            self.warn(f"whether anybody wrote to {name} since the worker of the job before was killed cannot be told")

    def _refused(self, path: str, why: str) -> JobError:
        job, what = self._request.retry_of, f"{path} is not what it was: {why}" if path else why
        return JobError(f"cannot continue job {job}: {what}; start it anew, and forget job {job}")

    def _last_moment(self, directory: int) -> int | None:
        """When at the latest the last worker wrote to the target, ns, as far as can be known."""
        left, last, taken = self._map.left, self._map.finished, self._map.taken
        rebooted = last is not None and last.target.boot != unchanged.boot_id()
        if left:  # a copy in memory of the time may have been lost with the power, but none is later
            return left.target.ctime
        if taken:
            try:
                exit_ = os.open(f"../{taken.job}/exit", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            except FileNotFoundError:
                pass
            else:
                try:
                    return _ns(decode_exit(_content(exit_)).ended)
                except msgspec.DecodeError:
                    pass
                finally:
                    os.close(exit_)
        return _ns(unchanged.boot_moment()) if rebooted else None

    def _append(self, line: Line, *, durable: bool = False) -> None:
        """The job goes on without its map when that cannot be written: a full state disk is no reason to end it."""
        if not self._writable:
            return
        try:
            self._map.append(self._fd, line)
            if durable:
                os.fdatasync(self._fd)
        except OSError as error:
            self._writable = False
            self.warn(f"a retry will not go on from here: its map cannot be written: {error.strerror}")


def _ns(moment: float) -> int:
    return int(moment * 1e9)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _content(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()
