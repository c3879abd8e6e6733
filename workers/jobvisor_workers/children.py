"""The one place where a worker starts programs.

By a real fork (preexec_fn keeps subprocess from vfork): a group STOP between vfork and exec leaves the worker in D and
the child in T for as long as it lasts. In the worker's group, so that group signals reach them. With the descriptors of
every locked resource, so that a lock lives as long as the last process that could write.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobvisor_workers.errors import JobError
from jobvisor_workers.signals import fresh_child, group_stop

#: A group TERM may reach the child before the worker hears of it: so long does a failed child wait for that, seconds.
ABORT_MAY_FOLLOW = 0.2
#: Seconds between two looks whether somebody stopped the child alone, and calls of on_tick.
TICK = 0.1
#: What is kept of each stream, bytes.
KEPT = 64 << 10


class ChildKilled(JobError):
    """A child was ended by somebody else's signal."""

    cause = "outsider-signal"


@dataclass(frozen=True)
class Finished:
    """A child that ended by itself; stdout and stderr hold their last 64 KiB."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    def last_line(self) -> str:
        """What it said last, for an error message."""
        lines = (self.stderr or self.stdout).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self.status}"


def run(
    argv: Sequence[str],
    *,
    descriptors: Sequence[int] = (),
    on_stdout: Callable[[bytes], None] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> Finished:
    """Run a program to its end.

    on_stdout gets each piece of output as it comes; on_tick is called about ten times a second.
    Raises JobError when the program is missing, ChildKilled when it died of a signal.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(descriptors),
            env=environment,
            preexec_fn=fresh_child,
        )
    except FileNotFoundError:
        raise JobError(f"cannot run {argv[0]}: it is not installed; Debian's package qemu-utils has the qemu programs")
    try:
        stdout, stderr = _relay(process, on_stdout, on_tick)
        status = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
    if status:
        time.sleep(ABORT_MAY_FOLLOW)
    if status < 0:
        raise ChildKilled(f"{argv[0]} was ended by {signal.Signals(-status).name}, which this job did not send")
    return Finished(tuple(argv), status, stdout, stderr)


def _relay(
    process: subprocess.Popen[bytes],
    on_stdout: Callable[[bytes], None] | None,
    on_tick: Callable[[], None] | None,
) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    kept = {process.stdout: b"", process.stderr: b""}
    next_tick = time.monotonic() + TICK
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(TICK):
                stream = process.stdout if key.fileobj is process.stdout else process.stderr
                piece = os.read(stream.fileno(), 65536)
                if not piece:
                    selector.unregister(stream)
                    continue
                kept[stream] = (kept[stream] + piece)[-KEPT:]
                if stream is process.stdout and on_stdout:
                    on_stdout(piece)
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK
                _follow_a_stop(process.pid)
                if on_tick:
                    on_tick()
    return kept[process.stdout], kept[process.stderr]


def _follow_a_stop(pid: int) -> None:
    """An outsider stopped the child alone: stop the whole group, which the zygote sees."""
    try:
        if os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is None:
            return
    except ChildProcessError:  # a zombie is no child to who asks for stops only
        return
    time.sleep(0.01)  # a group CONT wakes this worker a moment before the child
    if _state(pid) == "T":
        group_stop()


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""
