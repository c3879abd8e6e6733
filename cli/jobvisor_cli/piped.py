"""The command's standard input and output as those of its job, on threads beside the command's loop."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from typing import IO, cast

import click

from jobvisor.errors import JobvisorError
from jobvisor.job import Job
from jobvisor_cli.asked import Asked
from jobvisor_workers.jobtype import JobType
from jobvisor_workers.pipes import enlarge

#: Who wrote into our input may have been ended by the ^C that reaches us so many seconds later.
SAME_SIGNAL = 0.03


def check(job: JobType, *, json: bool, info: bool) -> None:
    """That both streams are free for the job's data. Raises UsageError."""
    if job.has_stdout:
        if json or info:
            option = "--json" if json else "--info"
            raise click.UsageError(f"{option} goes to standard output, and so does the data of this job; leave it out")
        if sys.stdout is not None and sys.stdout.isatty():
            raise click.UsageError("standard output is a terminal; send it to a file or into a pipe")


class Piped:
    """Moves the data of one job. `idle`: all that the job writes has arrived."""

    def __init__(self, job: JobType, nudge: Callable[[], None], is_ending: Callable[[], bool]) -> None:
        """`is_ending`: whether a signal has come that is to end the command."""
        self._job, self._nudge, self._is_ending = job, nudge, is_ending
        self._sending: Asked[int] | None = None
        self._receiving: Asked[int] | None = None

    def start(self, handle: Job) -> None:
        if self._job.has_stdin:
            source = cast("IO[bytes]", _Input(self._is_ending))
            self._sending = Asked(lambda: handle.send(source), self._nudge)
        if self._job.has_stdout:
            sink = cast("IO[bytes]", _Output())
            self._receiving = Asked(lambda: handle.receive(sink), self._nudge)

    @property
    def idle(self) -> bool:
        return self._receiving is None or self._receiving.answered

    def error(self) -> str | None:
        """What went wrong at this end, once the job is over."""
        # Why a job was sent nothing more it says itself; and one that has enough is not waited for.
        if self._sending and self._sending.answered:
            try:
                self._sending.answer()
            except OSError as error:
                if not isinstance(error, JobvisorError):
                    return f"cannot read standard input: {error.strerror or error}"
            except (JobvisorError, _EndedWithUs):
                pass
        if self._receiving and self._receiving.answered:
            try:
                self._receiving.answer()
            except JobvisorError as error:
                return f"cannot receive what the job writes: {error}"
            except OSError as error:
                return f"cannot write to standard output: {error.strerror or error}"
        return None


class _EndedWithUs(Exception):
    """Our input ended, and so will we."""


class _Input:
    """Standard input, without a buffer that a thread would hold at the end of the program."""

    def __init__(self, is_ending: Callable[[], bool]) -> None:
        self._is_ending = is_ending
        enlarge(0)

    def read(self, size: int) -> bytes:
        """Raises OSError; _EndedWithUs for an end that is none, so that the job never takes it for one."""
        while True:
            try:
                piece = os.read(0, size)
                break
            except BlockingIOError:  # who shares our descriptor has made it so
                select.select([0], [], [])
        if not piece:
            time.sleep(SAME_SIGNAL)
            if self._is_ending():
                raise _EndedWithUs
        return piece


class _Output:
    """Standard output, of which no byte is kept back."""

    def __init__(self) -> None:
        enlarge(1)

    def write(self, piece: bytes) -> int:
        """All of it. Raises OSError."""
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[os.write(1, rest) :]
            except BlockingIOError:
                select.select([], [1], [])
        return len(piece)
