"""What a program sends to a job's standard input, and takes from its standard output; on the thread that calls."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from jobvisor import streams
from jobvisor.core import Core
from jobvisor.errors import UsageError, WrongState
from jobvisor_workers.pipes import CAPACITY, INPUT, OUTPUT

#: Milliseconds between two looks: whether the job reads by now, and whether it is over.
OPENED, OVER = 10, 100
_taken: set[str] = set()


def send(core: Core, id: int, file: IO[bytes], leave: threading.Event) -> int:
    """The whole file, unless the job ends before; returns how many bytes went. `leave`: set to break off.

    Raises UsageError, WrongState.
    """
    with _end_of(core, id, INPUT) as (directory, is_over):
        fd = streams.open_input(directory)
        while fd is None:
            if is_over() or leave.wait(OPENED / 1000):
                raise WrongState(id, core.info(id).result().state, "send to", ())
            fd = streams.open_input(directory)
        try:
            total = _feed(fd, file, leave)
            if not leave.is_set():
                streams.finish_input(directory, total)
            return total
        finally:
            os.close(fd)


def receive(core: Core, id: int, file: IO[bytes], leave: threading.Event) -> int:
    """Until the job has written all; returns how many bytes came. Whether they were all, its final state tells.

    Raises UsageError, WrongState.
    """
    with _end_of(core, id, OUTPUT) as (directory, is_over):
        if is_over():
            raise WrongState(id, core.info(id).result().state, "receive from", ())
        fd = streams.open_output(directory)
        try:
            total = 0
            while not leave.is_set():
                over = is_over()
                if not _is_ready(fd, select.POLLIN):
                    if over:  # it never wrote
                        break
                    continue
                piece = os.read(fd, CAPACITY)
                if not piece:
                    break
                file.write(piece)
                total += len(piece)
            return total
        finally:
            os.close(fd)


def _feed(fd: int, file: IO[bytes], leave: threading.Event) -> int:
    total = 0
    while piece := file.read(CAPACITY):
        rest = memoryview(piece)
        while rest:
            if leave.is_set():
                return total
            if _is_ready(fd, select.POLLOUT):
                try:
                    written = os.write(fd, rest)
                except BlockingIOError:  # room, but less than an atomic piece needs
                    continue
                except BrokenPipeError:  # it ended, and says why itself
                    return total
                rest = rest[written:]
                total += written
    return total


@contextmanager
def _end_of(core: Core, id: int, name: str) -> Iterator[tuple[str, Callable[[], bool]]]:
    """The job's directory, and what tells that the job is over. One at a time has an end of its pipe."""
    future, waiter = core.wait(id, None)
    core.info(id).result()
    directory = core.home.job(id)
    mark = os.path.join(directory, name)
    if mark in _taken:
        raise UsageError(f"somebody else has the {name} of job {id}")
    _taken.add(mark)
    try:
        yield directory, future.done
    except FileNotFoundError:
        raise UsageError(f"job {id} has no {name}: its type says nothing of one")
    finally:
        _taken.discard(mark)
        core.unwait(id, waiter)


def _is_ready(fd: int, event: int) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(OVER))
