"""The supervisor's ends of a job's standard input and output; see `jobvisor_workers.pipes`.

Descriptors are non-blocking, for an event loop. One sender and one reader at a time: who serves them sees to that.
"""

from __future__ import annotations

import errno
import os

from jobvisor_workers import registry
from jobvisor_workers.pipes import INPUT, OUTPUT, RECEIVED
from jobvisor_workers.protocol import Request


def make(directory: str, request: Request) -> None:
    """In the directory of a job that is being accepted: what it reads and writes. May be done again."""
    job = registry.convert(request.type, request.args)
    if job.has_stdin or job.has_stdout:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    if job.has_stdin:
        _make_fifo(os.path.join(directory, INPUT), request)
        os.close(os.open(os.path.join(directory, RECEIVED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if job.has_stdout:
        _make_fifo(os.path.join(directory, OUTPUT), request)


def open_input(directory: str) -> int | None:
    """To write to; None while the job does not read (ask again: it says `waiting` when it does).

    Close it in any case, after `finish_input` if all was sent: else the job fails, as it does when this process dies.
    A write that meets EPIPE means that the job ended. Raises FileNotFoundError when it reads nothing.
    """
    try:
        return os.open(os.path.join(directory, INPUT), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def finish_input(directory: str, total: int) -> None:
    """All was written, `total` bytes: what follows is the end. Before the descriptor is closed."""
    fd = os.open(os.path.join(directory, RECEIVED), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d\n" % total)
    finally:
        os.close(fd)


def open_output(directory: str) -> int:
    """To read from, when a selector says so: before the job has opened its end a read looks like the end.

    Whether the output was complete is told by the job's final state. Raises FileNotFoundError when it writes nothing.
    """
    return os.open(os.path.join(directory, OUTPUT), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _make_fifo(path: str, request: Request) -> None:
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    if request.requester:
        os.chown(path, request.requester.uid, request.requester.gid)
