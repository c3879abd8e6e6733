"""The daemon: a supervisor, its API, and a reason to stay.

Jobs do not depend on it. It leaves when told (SIGTERM, SIGINT, SIGHUP), or when it has been without job and client for
long; the next one adopts what runs.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable

import msgspec

from jobvisor.api.server import Serving
from jobvisor.autostart import COMM
from jobvisor.errors import JobvisorError
from jobvisor.inhibitor import Inhibitor
from jobvisor.supervisor import Supervisor
from jobvisor_workers.signals import forget_hosts

#: While it is busy, seconds between two looks whether it still is.
LOOK = 5.0
#: One for each job's progress and each client, and some.
DESCRIPTORS = 65536


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """`idle`: seconds without job and client after which it leaves, None: never; `ready`: a descriptor to say so on."""

    home: str | None = None
    socket: str | None = None
    group: str | None = None
    idle: float | None = None
    types: list[str] = []
    ready: int | None = None


def main() -> None:
    """The program that `autostart` executes; sys.argv[1] is an encoded Config."""
    if os.fork():
        os._exit(0)
    forget_hosts()
    config = msgspec.json.decode(sys.argv[1], type=Config)
    os.chdir("/")
    os.umask(0o077)
    assert config.ready is not None
    os.set_inheritable(config.ready, False)
    try:
        run(config, lambda _: _say(config.ready, b"ready"))
    except JobvisorError as error:
        _note(f"cannot start: {error}")
        _say(config.ready, json.dumps({"code": error.code, "message": str(error)}).encode())
        sys.exit(error.exit_code)


def run(config: Config, ready: Callable[[str], None]) -> None:
    """Serve until told to leave; `ready` is called with the socket's path when clients may come.

    For the main thread. Raises HomeInUse, HomeUnusable, JournalError, UsageError.
    """
    _take_descriptors()
    _name_process()
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    in_terminal = _in_terminal()
    supervisor = Supervisor(config.home, types=config.types)
    inhibitor = Inhibitor(supervisor._core, _note)
    try:
        serving = Serving(supervisor._core, config.socket, group=config.group, idle=config.idle)
        serving.start()
        try:
            _note(f"serves {serving.path}")
            ready(str(serving.path))
            inhibitor.start()
            why = _stay(supervisor, serving, wake_read, config.idle, in_terminal)
        finally:
            serving.stop()
        _note(f"leaves: {why}")
    finally:
        inhibitor.stop()
        supervisor.close()
        signal.set_wakeup_fd(-1)
        os.close(wake_read)
        os.close(wake_write)


def _stay(supervisor: Supervisor, serving: Serving, wake: int, idle: float | None, in_terminal: bool) -> str:
    """Wait for a reason to leave. SIGHUP is one in a terminal, which is gone then; else the configuration is read."""
    while True:
        why = _until_told(supervisor, serving, wake, idle)
        if why != "SIGHUP" or in_terminal:
            return why
        try:
            supervisor.reload()
            _note("read its configuration again")
        except JobvisorError as error:
            _note(f"keeps its configuration: {error}")


def _until_told(supervisor: Supervisor, serving: Serving, wake: int, idle: float | None) -> str:
    waiting = select.poll()
    waiting.register(wake, select.POLLIN)
    wait = idle
    while not waiting.poll(None if wait is None else wait * 1000):
        assert idle is not None
        since = supervisor._core.idle_since().result()
        if since is None or serving.clients.count:
            wait = min(LOOK, idle)
            continue
        left = max(since, serving.clients.last_left) + idle - time.monotonic()
        if left <= 0 and serving.close_if_idle():
            return f"no job and no client for {idle:g} s"
        wait = max(left, 0.01)
    number = os.read(wake, 1)[0]
    return signal.Signals(number).name


def _take_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _in_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _name_process() -> None:
    """So that ps shows what it is."""
    with open("/proc/self/comm", "w") as file:
        file.write(COMM)


def _note(text: str) -> None:
    """A line for the log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} jobvisor[{os.getpid()}] {text}\n")
    sys.stderr.flush()


def _say(descriptor: int | None, content: bytes) -> None:
    if descriptor is not None:
        try:
            os.write(descriptor, content)
        except BrokenPipeError:  # who started it has left
            pass
        os.close(descriptor)
