"""What a job may raise, told apart by the cause that the final job will show.

JobError                 cause "error"
├── BadArgument          cause "error"      a value that makes no sense together with what was found
├── Held                 cause "busy"       somebody has the resource; fields resource, holder
├── NoSpace              cause "no-space"   the filesystem, a quota or a file-size limit is at its end
└── InputOutput          cause "io-error"   the device or the filesystem reported a defect
"""

from __future__ import annotations

import errno
import os
from typing import Any

from jobvisor_workers.protocol import Holder

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
IO_ERRORS = {errno.EIO, errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG, errno.EILSEQ}


class JobError(Exception):
    """A job cannot go on; the text becomes the job's `errmsg`.

    The text is one line: what failed, on what, why, what to do. `result` becomes that of the failed job: what was
    found, for those who cannot read the line.
    """

    cause = "error"

    def __init__(self, text: str, *, result: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.result = result


class BadArgument(JobError):
    """An argument that only the worker could find wrong, with the file in its hands."""


class Held(JobError):
    """A resource is in somebody else's use."""

    cause = "busy"

    def __init__(self, resource: str, holder: Holder | None, doing: str = "use") -> None:
        self.resource, self.holder, self.doing = resource, holder, doing
        super().__init__(f"cannot {doing} {resource}: in use by {holder or 'another process'}{self._advice()}")

    def _advice(self) -> str:
        match self.holder.kind if self.holder else "":
            case "qemu":
                return "; shut it down, or add --on-conflict wait"
            case "mount" | "swap" | "loop" | "kernel":
                return "; release it first"
            case _:
                return "; wait for it to end, or add --on-conflict wait"


class NoSpace(JobError):
    """No room: found before the first byte where it can be known, else at the byte where it happened."""

    cause = "no-space"


class InputOutput(JobError):
    """The kernel reported a defect of the device or filesystem."""

    cause = "io-error"


def from_os_error(error: OSError, doing: str) -> JobError:
    """Turn an OSError into the JobError with the right cause; `doing` is like "write to /v/a.raw"."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    text = f"cannot {doing}: {reason}"
    if error.errno == errno.EFBIG:
        return NoSpace(text + " (the file-size limit of the user or the filesystem)")
    if error.errno in NO_SPACE:
        return NoSpace(text)
    if error.errno in IO_ERRORS:
        return InputOutput(text)
    return JobError(text)
