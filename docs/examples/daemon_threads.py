"""A small daemon with threads that embeds a Supervisor. It takes commands, one a line, on a Unix socket.

    python daemon_threads.py DIRECTORY
    nc -U DIRECTORY/socket

Its signals and children are its own affair. SIGTERM ends the daemon; the jobs run on, and its next start finds them.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
from typing import BinaryIO

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
                    signal.sigtimedwait([], 0.01)
                return f"{own} ended with {children[own]}"
        return HELP
    except (JobvisorError, ValueError) as error:
        return f"error: {error}"


def serve(supervisor: Supervisor, connection: socket.socket) -> None:
    """A thread for each client; all use the one supervisor."""
    with connection, connection.makefile("rwb") as lines:
        talk(supervisor, lines)


def talk(supervisor: Supervisor, lines: BinaryIO) -> None:
    for line in lines:
        lines.write(answer(supervisor, line.decode()).encode() + b"\n")
        lines.flush()


def report(events: EventStream) -> None:
    """A thread that tells of every change; it ends with the supervisor."""
    for event in events:
        if event.event == "state":
            print(f"job {event.job.id} is {event.state}", flush=True)


def main(directory: str) -> None:
    path = os.path.join(directory, "socket")
    listener = socket.socket(socket.AF_UNIX)
    signal.signal(signal.SIGTERM, lambda *_: listener.shutdown(socket.SHUT_RDWR))
    signal.signal(signal.SIGCHLD, reap)
    with listener, Supervisor(os.path.join(directory, "jobs")) as supervisor:
        reporter = threading.Thread(target=report, args=(supervisor.events(),))
        reporter.start()
        if os.path.exists(path):  # of a daemon that was killed: the supervisor has made sure that none is alive
            os.unlink(path)
        listener.bind(path)
        listener.listen()
        try:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(supervisor, connection), daemon=True).start()
        except OSError:  # shut down by SIGTERM
            os.unlink(path)
    reporter.join()


if __name__ == "__main__":
    main(sys.argv[1])
