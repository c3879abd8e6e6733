"""A small daemon with threads that embeds a Supervisor. It takes commands, one a line, on a Unix socket.

    python daemon_threads.py DIRECTORY
    nc -U DIRECTORY/socket

Its signals and children are its own affair. SIGTERM ends the daemon; the jobs run on, and its next start finds them.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import sys
import threading
import time

from jobvisor import EventStream, JobvisorError, Supervisor

HELP = "clone SOURCE TARGET [BYTES-PER-SECOND] · list · suspend|resume|abort|wait ID · children"

#: The exit statuses of the daemon's own children, whoever started them.
children: dict[int, int] = {}


def reap(*_: object) -> None:
    """SIGCHLD: take whatever has ended. No worker is a child of this process."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            children[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    except ChildProcessError:
        pass


def answer(supervisor: Supervisor, line: str) -> str:
    try:
        match shlex.split(line):
            case ["clone", source, target, *rate]:
                job = supervisor.start("clone", source=source, target=target, bandwidth=int(rate[0]) if rate else None)
                return f"job {job.id}"
            case ["list"]:
                found = [f"{info.id} {info.type} {info.state} {info.data_processed}" for info in supervisor.jobs()]
                return "; ".join(found) or "no jobs"
            case ["suspend" | "resume" | "abort" | "wait" as verb, id]:
                job = supervisor.job(int(id))
                info = getattr(job, verb)()
                return f"{info.id} {info.state}" + (f": {info.errmsg}" if info.errmsg else "")
            case ["children"]:
                own = os.posix_spawn("/bin/true", ["true"], os.environ)
                while own not in children:
                    time.sleep(0.01)
                return f"{own} ended with {children[own]}"
        return HELP
    except (JobvisorError, ValueError) as error:
        return f"error: {error}"


def serve(supervisor: Supervisor, connection: socket.socket) -> None:
    """A thread for each client; all use the one supervisor."""
    with connection, connection.makefile() as lines:
        try:
            for line in lines:
                connection.sendall(answer(supervisor, line).encode() + b"\n")
        except ConnectionError:  # the client did not wait
            pass


def report(events: EventStream) -> None:
    """A thread that tells of every change; it ends with the supervisor."""
    for event in events:
        if event.event == "state":
            print(f"job {event.job.id} is {event.state}", flush=True)


def main(directory: str) -> None:
    path = os.path.join(directory, "socket")
    over = threading.Event()
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())  # the kernel may give a signal to any thread; this one runs the handlers
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    signal.signal(signal.SIGCHLD, reap)
    listener = socket.socket(socket.AF_UNIX)
    with woken, waker, listener, Supervisor(os.path.join(directory, "jobs")) as supervisor:
        reporter = threading.Thread(target=report, args=(supervisor.events(),))
        reporter.start()
        if os.path.exists(path):  # of a daemon that was killed: the supervisor has made sure that none is alive
            os.unlink(path)
        listener.bind(path)
        listener.listen()
        while not over.is_set():
            ready, _, _ = select.select([listener, woken], [], [])
            if woken in ready:
                woken.recv(4096)
            if listener in ready:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(supervisor, connection), daemon=True).start()
        os.unlink(path)
        signal.set_wakeup_fd(-1)
    reporter.join()


if __name__ == "__main__":
    main(sys.argv[1])
