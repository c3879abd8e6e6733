"""The fork server: the supervisor's forking arm, the parent of every worker, and its own single-threaded program.

Exec'd once in a session of its own, by way of a fork, so that the host program gets no child. It alone reads wait
statuses, stops and continues; it sends all group signals and times all grace periods, because the host may be busy. It
never starts a thread, imports sqlite3, opens a libvirt connection or blocks on a socket. It outlives the supervisor and
leaves when no supervisor is connected and no worker is left.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import time
import traceback

import msgspec

from jobvisor_workers import errand, registry, signals
from jobvisor_workers.control import Control, belongs, children_of, states
from jobvisor_workers.jobtype import JobType
from jobvisor_workers.link import Link
from jobvisor_workers.protocol import (
    VERSION,
    Abort,
    Acknowledge,
    Continued,
    Detach,
    Exit,
    Exited,
    FromZygote,
    Hello,
    Look,
    Refused,
    Request,
    Resume,
    Settle,
    Signal,
    Spawn,
    Started,
    Stopped,
    Suspend,
    decode_request,
    decode_to_zygote,
    encode,
)
from jobvisor_workers.resources import pools
from jobvisor_workers.runtime import NOT_MINE, Spawned
from jobvisor_workers.settle import claim_of, read_life, settle

#: Seconds between two tries to collect what was killed (a process in D dies when its disk answers).
COLLECT_AGAIN = 0.005
#: epoll takes no timeout of more than 24 days; a loop that wakes for nothing goes to sleep again. Seconds.
NAP_MAX = 86400.0
#: How often a tied zygote looks whether its supervisor was stopped, seconds.
FOLLOW = 0.1


class Config(msgspec.Struct):
    """The program's one argument. `tied`: the jobs share the fate of the supervisor; `home` is removed at the end."""

    listen: int
    run: str
    socket: str
    path: list[str]
    modules: list[str] = []
    tied: bool = False
    home: str = ""


class Child:
    """A worker as its parent sees it."""

    def __init__(self, spawn: Spawn, pid: int, pipe: int, control: Control) -> None:
        self.job, self.directory, self.pid, self.pipe, self.control = spawn.job, spawn.directory, pid, pipe, control
        self.grace = spawn.grace
        self.pidfd = os.pidfd_open(pid)
        self.deadline = time.monotonic() + spawn.time_limit if spawn.time_limit else None
        self.exit: Exit | None = None
        self.collect_at: float | None = None


class Zygote:
    """The loop. `serve` returns None when all is done, or in a forked worker what it is to do."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.children: dict[int, Child] = {}
        self.unacknowledged: dict[int, Exited] = {}
        #: pidfd → pid, and when it is to be ended.
        self.errands: dict[int, tuple[int, float | None]] = {}
        self.detached = False
        self._spawned: Spawned | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_stops)
        self._link = Link(
            self._selector,
            socket.socket(fileno=config.listen),
            connected=self._greet,
            received=self._obey,
            lost=self._supervisor_lost,
        )
        self._follow_at: float | None = None
        self._stopped_with_peer: set[int] | None = None

    def serve(self) -> Spawned | None:
        self._link.accept()
        while self._link.up or self.children:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
                if self._spawned:
                    return self._spawned
            self._tick()
        self._farewell()
        return None

    # --- the supervisor --------------------------------------------------------------------------------------

    def say(self, message: FromZygote, descriptor: int | None = None) -> None:
        self._link.say(encode(message), descriptor)

    def _greet(self) -> None:
        self.say(Hello(os.getpid(), VERSION, self.config.modules, list(self.children)))
        for child in self.children.values():
            if child.exit is None:
                self.say(Started(child.job, child.pid), child.pipe)
                if child.control.stopped:
                    self.say(Stopped(child.job, child.control.outsider))
        for exited in self.unacknowledged.values():
            self.say(exited)
        if self.config.tied:
            self._follow_at = time.monotonic() + FOLLOW

    def _supervisor_lost(self) -> None:
        self._follow_at = None
        if self.config.tied and not self.detached:
            for child in self.children.values():
                child.control.abort(child.grace)

    def _obey(self, packet: bytes, descriptor: int | None) -> bool:
        """False in a fresh worker, which must not read on."""
        try:
            message = decode_to_zygote(packet)
        except msgspec.DecodeError as error:  # of a supervisor whose version is not ours
            print(f"jobvisor: not understood: {error}: {packet[:200]!r}", file=sys.stderr)
            return True
        match message:
            case Spawn():
                attached = _read_all(descriptor) if descriptor is not None else bytes(message.request)
                if message.job not in self.children and message.job not in self.unacknowledged:
                    self._spawn(message, decode_request(attached))
            case Detach():
                self.detached = True
            case Acknowledge(job=job):
                self.unacknowledged.pop(job, None)
            case Look() | Settle():
                assert descriptor is not None
                self._run_errand(message, descriptor)
            case _:
                child = self.children.get(message.job)
                if child and child.exit is None:
                    self._control(child.control, message)
        return self._spawned is None

    def _control(self, control: Control, message: Suspend | Resume | Abort | Signal) -> None:
        match message:
            case Suspend():
                control.suspend()
            case Resume():
                control.resume()
            case Abort(grace=grace, force=force):
                control.abort(grace, force=force)
            case Signal(signal=number):
                control.signal_leader(number)

    # --- workers ---------------------------------------------------------------------------------------------

    def _spawn(self, message: Spawn, request: Request) -> None:
        parsed = _parsed(request)
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signals.block()
        try:
            pid = os.fork()
        except OSError as error:
            signals.unblock()
            os.close(read)
            os.close(write)
            self.say(Refused(message.job, f"cannot fork a worker: {error.strerror}"))
            return
        if pid == 0:
            self._let_go()
            self._spawned = Spawned(request, parsed, message.directory, read, write)
            return
        signals.unblock()
        os.close(write)
        job = message.job

        def say(what: str, outsider: bool) -> None:
            self.say(Stopped(job, outsider) if what == "stopped" else Continued(job, outsider))

        child = Child(message, pid, read, Control(job, pid, message.directory, say))
        self.children[job] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._ended(child))
        self.say(Started(job, pid), read)

    def _run_errand(self, message: Look | Settle, pipe: int) -> None:
        """Does not wait for it: the supervisor has the other end of the pipe."""
        try:
            pid = os.fork()
        except OSError as error:
            print(f"jobvisor: cannot fork for an errand: {error}", file=sys.stderr)
            os.close(pipe)
            return
        if pid == 0:
            self._let_go()
            errand.run(message, pipe)
        os.close(pipe)
        pidfd = os.pidfd_open(pid)
        self.errands[pidfd] = pid, time.monotonic() + errand.TIME
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._errand_over(pidfd))

    def _errand_over(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        del self.errands[pidfd]

    def _let_go(self) -> None:
        """In a fresh worker: nothing of the loop may act later on a descriptor's number, which will mean another file.

        A signal would write its number there (set_wakeup_fd), in the worst case into an image; and a socket or selector
        that the garbage collector finds closes it.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        self._link.close_in_child()

    def _drain_stops(self) -> None:
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            pass
        by_pid = {child.pid: child for child in self.children.values()}
        while True:
            try:
                event = os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
            except ChildProcessError:
                return
            if event is None:
                return
            child = by_pid.get(event.si_pid)
            if child is None:
                continue
            if event.si_code == os.CLD_CONTINUED:
                child.control.leader_continued()
            else:
                child.control.leader_stopped()

    def _ended(self, child: Child) -> None:
        """The worker is a zombie, which pins its pid and group: sweep, collect, write down, reap, tell."""
        self._selector.unregister(child.pidfd)
        status = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert status is not None
        by_signal = status.si_code != os.CLD_EXITED
        child.exit = Exit(
            pid=child.pid,
            ended=time.time(),
            status=None if by_signal else status.si_status,
            signal=status.si_status if by_signal else None,
            killed=child.control.killed,
            asked=child.control.asked,
        )
        child.collect_at = 0.0
        self._collect(child)

    def _collect(self, child: Child) -> None:
        assert child.exit is not None
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self._strays_of(child):
            child.collect_at = time.monotonic() + COLLECT_AGAIN
            return
        claim = claim_of(read_life(child.directory))
        if claim and claim.pid == child.pid:
            _write_new(child.directory, "exit", encode(child.exit))
        elif child.exit.status != NOT_MINE:
            print(f"jobvisor: worker {child.pid} of job {child.job} ended before its claim", file=sys.stderr)
        _, _, usage = os.wait4(child.pid, 0)
        child.exit.rusage = {"user": usage.ru_utime, "system": usage.ru_stime, "max_rss_kib": float(usage.ru_maxrss)}
        os.close(child.pidfd)
        os.close(child.pipe)
        del self.children[child.job]
        exited = Exited(child.job, child.exit)
        if self._link.up:
            self.unacknowledged[child.job] = exited
            self.say(exited)
        elif self.config.tied:
            settle(read_life(child.directory))

    def _strays_of(self, child: Child) -> bool:
        """Kill and reap what the worker left: all of it came to this process, the subreaper. True: more to come."""
        leaders = {other.pid for other in self.children.values()}
        while True:
            others = [pid for pid in children_of(os.getpid()) if pid not in leaders]
            strays = [pid for pid in others if belongs(pid, child.pid, child.directory)]
            if not strays:
                return False
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:
                    return True

    # --- time ------------------------------------------------------------------------------------------------

    def _timeout(self) -> float | None:
        now = time.monotonic()
        due = [self._follow_at] if self._follow_at else []
        due += [at for _, at in self.errands.values() if at is not None]
        for child in self.children.values():
            due += [at for at in (child.control.tick(now), child.deadline, child.collect_at) if at is not None]
        return min(NAP_MAX, max(0.0, min(due) - time.monotonic())) if due else None

    def _tick(self) -> None:
        now = time.monotonic()
        for child in list(self.children.values()):
            if child.collect_at is not None:
                if now >= child.collect_at:
                    self._collect(child)
            elif child.deadline is not None and now >= child.deadline:
                child.deadline = None
                child.control.abort(child.grace, why="time-limit")
        for pidfd, (pid, at) in self.errands.items():
            if at is not None and now >= at:
                os.kill(pid, signal.SIGKILL)
                self.errands[pidfd] = pid, None
        if self._follow_at is not None and now >= self._follow_at:
            self._follow_at = now + FOLLOW
            self._follow_peer()

    def _follow_peer(self) -> None:
        """A tied job stops and goes on with the command that runs it, also at a SIGSTOP that no program can catch."""
        stopped = "T" in states(self._link.peer_pid())
        if stopped and self._stopped_with_peer is None:
            self._stopped_with_peer = {job for job, child in self.children.items() if not child.control.stopped}
            for job in self._stopped_with_peer:
                self.children[job].control.suspend()
        elif not stopped and self._stopped_with_peer is not None:
            for job in self._stopped_with_peer & self.children.keys():
                self.children[job].control.resume()
            self._stopped_with_peer = None

    def _farewell(self) -> None:
        try:
            os.unlink(os.path.join(self.config.run, self.config.socket))
        except FileNotFoundError:  # the whole home was removed
            pass
        if self.config.tied and self.config.home:
            import shutil

            shutil.rmtree(self.config.home, ignore_errors=True)


def _parsed(request: Request) -> JobType | None:
    """Here rather than in each worker: what a type needs is imported and made once, and shared by the forks."""
    try:
        known = registry.is_loaded(request.type) and (not request.connect or "libvirt" in sys.modules)
        if request.connect:
            pools.load()
        job = registry.convert(request.type, request.args)
        job.resources()
        if not known:
            gc.freeze()
        return job
    except Exception:  # the worker finds it too, and says it as the job's error
        traceback.print_exc()
        return None


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _write_new(directory: str, name: str, content: bytes) -> None:
    """One small write: it is there whole, or it cannot be decoded and counts as missing."""
    try:
        fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(fd, content)
        os.close(fd)
    except OSError as error:  # the state disk is full, or the home was removed: the supervisor is still told
        print(f"jobvisor: cannot write {directory}/{name}: {error}", file=sys.stderr)
