"""The pid pool: which process does which job, and the way to reach it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

import msgspec

from jobvisor import spawner
from jobvisor.crowd import Crowd
from jobvisor.orphan import Orphan
from jobvisor.pump import Pump
from jobvisor.record import Record
from jobvisor.spawner import INLINE_MAX, Zygote
from jobvisor_workers.protocol import (
    CHECKS,
    VERSION,
    Abort,
    Acknowledge,
    Continued,
    Exit,
    Exited,
    Refused,
    Report,
    Resume,
    Signal,
    Spawn,
    Started,
    Stopped,
    Suspend,
    ToZygote,
    decode_report,
    encode,
)

#: A pipe holds at most this much; nearly always it holds less than a page.
PIPE_HOLDS = 65536
PAGE = 4096


class Listener(Protocol):
    """What the pool tells; all on the pump."""

    def reported(self, job: int, report: Report) -> None:
        """The worker's newest word on where it is."""

    def stopped(self, job: int, outsider: bool) -> None:
        """Every thread of the job was seen stopped."""

    def continued(self, job: int) -> None:
        """The job goes on."""

    def exited(self, job: int, told: Exit | None) -> None:
        """No process of the job is left; `told` is None when no zygote saw the end."""

    def refused(self, job: int, message: str) -> None:
        """No worker could be forked."""

    def zygote_lost(self, jobs: list[int]) -> None:
        """The zygote of these jobs died; they may live on."""


class Process:
    """A worker, by way of its zygote or, when that is gone, as an orphan."""

    def __init__(self, job: int, zygote: Zygote | None) -> None:
        self.job, self.zygote = job, zygote
        self.orphan: Orphan | None = None
        self.pid: int | None = None
        self.pipe: int | None = None
        #: Its news may wait: what others wait for (the claim, the checks) was told.
        self.in_crowd = False


class Pool:
    """Jobs to processes. Used on the pump only, except `start_zygote`."""

    def __init__(self, pump: Pump, listener: Listener, run: str, home: str, modules: list[str], *, tied: bool) -> None:
        self.modules = modules
        self._pump, self._listener, self._run, self._home, self._tied = pump, listener, run, home, tied
        self._crowd = Crowd(pump)
        self._processes: dict[int, Process] = {}
        self._zygotes: list[Zygote] = []
        self._current: Zygote | None = None

    # --- zygotes ---------------------------------------------------------------------------------------------

    def take(self, zygote: Zygote) -> None:
        """A zygote found alive; it gets new jobs if it is of our version and has our modules."""
        self._zygotes.append(zygote)
        assert zygote.hello is not None
        if zygote.hello.version == VERSION and zygote.hello.modules == self.modules:
            self._current = zygote
        for job in zygote.hello.jobs:
            self._processes.setdefault(job, Process(job, zygote))

    def attach(self) -> None:
        """Begin to receive from what was taken."""
        for zygote in self._zygotes:
            if not zygote.attached:
                zygote.attach(self._pump, self._received, self._lost)

    def ready_zygote(self) -> Zygote:
        """The one that forks new jobs; started when there is none."""
        if self._current is None or self._current.gone:
            self._current = spawner.start(self._run, self.modules, tied=self._tied, home=self._home)
            self._zygotes.append(self._current)
            self._current.attach(self._pump, self._received, self._lost)
        return self._current

    def zygote_pids(self) -> list[int]:
        return [zygote.hello.pid for zygote in self._zygotes if zygote.hello and not zygote.gone]

    def broadcast(self, message: ToZygote) -> None:
        for zygote in self._zygotes:
            if not zygote.gone:
                zygote.say(message)

    def close(self) -> None:
        """Let go of everything; the workers go on."""
        for process in self._processes.values():
            self._close_pipe(process)
            if process.orphan:
                process.orphan.close()
        self._crowd.close()
        for zygote in self._zygotes:
            zygote.close()

    # --- jobs ------------------------------------------------------------------------------------------------

    def __contains__(self, job: int) -> bool:
        return job in self._processes

    @property
    def busy(self) -> bool:
        """True while any job has, or is about to get, a process."""
        return bool(self._processes)

    def starting(self) -> bool:
        """True while a zygote has not said hello yet."""
        return any(zygote.hello is None and not zygote.gone for zygote in self._zygotes)

    def pids(self) -> dict[int, int]:
        return {job: process.pid for job, process in self._processes.items() if process.pid is not None}

    def spawn(self, record: Record, directory: str, grace: float) -> None:
        zygote = self.ready_zygote()
        request = encode(record.request)
        spawn = Spawn(record.id, directory, time_limit=record.request.time_limit, grace=grace)
        self._processes[record.id] = Process(record.id, zygote)
        if len(request) > INLINE_MAX:
            zygote.say(spawn, request)
        else:
            spawn.request = msgspec.Raw(request)
            zygote.say(spawn)

    def adopt(self, job: int, pid: int, pidfd: int, pipe: int, directory: str, uid: int | None) -> None:
        """Watch a worker that has no zygote any more. `uid`: of another user than ours."""
        process = self._processes.setdefault(job, Process(job, None))
        process.zygote, process.pid = None, pid

        def say(what: Literal["stopped", "continued"], outsider: bool) -> None:
            if what == "stopped":
                self._listener.stopped(job, outsider)
            else:
                self._listener.continued(job)

        process.orphan = Orphan(self._pump, job, pid, pidfd, directory, uid, say, lambda: self._over(process, None))
        if process.pipe is None:
            self._open_pipe(process, pid, pipe)
        process.orphan.control.signal_leader(signal.SIGUSR1)

    def suspend(self, job: int) -> None:
        self._tell(job, Suspend(job), lambda orphan: orphan.control.suspend())

    def resume(self, job: int) -> None:
        self._tell(job, Resume(job), lambda orphan: orphan.control.resume())

    def abort(self, job: int, grace: float, *, force: bool) -> None:
        self._tell(job, Abort(job, grace, force), lambda orphan: orphan.control.abort(grace, force=force))

    def signal(self, job: int, number: int) -> None:
        """To the worker alone."""
        self._tell(job, Signal(job, number), lambda orphan: orphan.control.signal_leader(number))

    def acknowledge(self, job: int) -> None:
        """The job's end is written down."""
        process = self._processes.pop(job, None)
        if process and process.zygote and not process.zygote.gone:
            process.zygote.say(Acknowledge(job))

    def drop(self, job: int) -> None:
        """The process is no more, the job may get another."""
        process = self._processes.pop(job, None)
        if process:
            self._close_pipe(process)
            if process.zygote and not process.zygote.gone:
                process.zygote.say(Acknowledge(job))

    def _tell(self, job: int, message: ToZygote, do: Callable[[Orphan], None]) -> None:
        process = self._processes.get(job)
        if process is None:
            return
        if process.orphan:
            do(process.orphan)
            process.orphan.look_soon()
        elif process.zygote and not process.zygote.gone:
            process.zygote.say(message)

    # --- what arrives ----------------------------------------------------------------------------------------

    def _received(self, zygote: Zygote, message: object, descriptor: int | None) -> None:
        match message:
            case Started(job=job, pid=pid):
                process = self._processes.setdefault(job, Process(job, zygote))
                process.zygote, process.pid = zygote, pid
                if descriptor is not None:
                    self._watch_pipe(process, descriptor)
            case Stopped(job=job, outsider=outsider):
                self._listener.stopped(job, outsider)
            case Continued(job=job):
                self._listener.continued(job)
            case Exited(job=job, exit=told):
                self._over(self._processes.setdefault(job, Process(job, zygote)), told)
            case Refused(job=job, message=text):
                self._listener.refused(job, text)

    def _lost(self, zygote: Zygote) -> None:
        self._zygotes.remove(zygote)
        if self._current is zygote:
            self._current = None
        orphaned = [process.job for process in self._processes.values() if process.zygote is zygote]
        for job in orphaned:
            self._processes[job].zygote = None
        self._listener.zygote_lost(orphaned)

    def _over(self, process: Process, told: Exit | None) -> None:
        if process.pipe is not None:
            self._read(process)
            self._close_pipe(process)
        self._listener.exited(process.job, told)

    def _open_pipe(self, process: Process, pid: int, number: int) -> None:
        try:
            pipe = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # gone meanwhile, or of another user: progress is then unknown until the end
            return
        self._watch_pipe(process, pipe)

    def _watch_pipe(self, process: Process, pipe: int) -> None:
        self._close_pipe(process)
        process.pipe, process.in_crowd = pipe, False
        self._pump.watch(pipe, partial(self._read, process))

    def _join_crowd(self, process: Process) -> None:
        if process.pipe is not None:
            process.in_crowd = True
            self._pump.unwatch(process.pipe)
            self._crowd.watch(process.pipe, partial(self._read, process))

    def _close_pipe(self, process: Process) -> None:
        if process.pipe is not None:
            (self._crowd if process.in_crowd else self._pump).unwatch(process.pipe)
            os.close(process.pipe)
            process.pipe = None

    def _read(self, process: Process) -> None:
        pipe = process.pipe
        if pipe is None:
            return
        try:
            content = os.read(pipe, PAGE)
        except BlockingIOError:
            return
        if not content:
            self._close_pipe(process)
            return
        if len(content) == PAGE:
            try:
                content += os.read(pipe, PIPE_HOLDS)
            except BlockingIOError:
                pass
        # Only the newest counts: a report is a whole snapshot, and written whole or not at all.
        line = content[content.rfind(b"\n", 0, -1) + 1 :]
        try:
            report = decode_report(line)
        except msgspec.DecodeError:  # what a worker writes is not to be trusted
            return
        self._listener.reported(process.job, report)
        if not process.in_crowd and report.state == "running" and report.phase != CHECKS:
            self._join_crowd(process)
