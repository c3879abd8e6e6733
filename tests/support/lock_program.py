"""Takes locks in a process of its own.

    lock_program.py [--job ID] [--on-conflict P] [--child] ACCESS:PATH…   take, say "held", release at the end of stdin
    lock_program.py --contend PROCESSES ROUNDS PATH                     prove that there is one winner at a time

Says "waiting KIND PID JOB" whenever it is told whom it waits for, and how it failed. TERM raises SystemExit, after
which it says how many descriptors of the files are left open.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from types import FrameType

from jobvisor_workers.errors import JobError
from jobvisor_workers.jobtype import WRITE, Access
from jobvisor_workers.locks import acquire
from jobvisor_workers.protocol import Holder


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def waiting(path: str, holder: Holder | None) -> None:
    say(f"waiting {holder.kind} {holder.pid} {holder.job}" if holder else "waiting unknown")


def terminate(_signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def left_open(paths: list[str]) -> int:
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass
    return sum(link in paths for link in links)


def hold(options: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, terminate)
    if options.job:
        with open("/proc/self/comm", "w") as file:
            file.write(f"job:{options.job}")
    pairs = [resource.split(":", 1) for resource in options.resources]
    wanted = [(path, Access(access)) for access, path in pairs]
    try:
        locks = acquire(wanted, on_conflict=options.on_conflict, waiting=waiting, doing="wipe")
    except JobError as error:
        say(f"{error.cause}: {error}")
        return
    except SystemExit:
        say(f"left {left_open([path for path, _ in wanted])}")
        raise
    if options.child:
        descriptors = [fd for lock in locks for fd in lock.descriptors]
        with subprocess.Popen(["sleep", "600"], pass_fds=descriptors) as child:
            say(f"held {child.pid}")
    else:
        say("held")
        sys.stdin.read()
    for lock in locks:
        lock.close()


def contend(processes: int, rounds: int, path: str) -> int:
    """Each process counts up in the file without any other protection than the lock."""
    children = []
    for _ in range(processes):
        pid = os.fork()
        if not pid:
            for _ in range(rounds):
                (lock,) = acquire([(path, WRITE)], on_conflict="queue", waiting=lambda *_: None)
                os.close(os.open(path + ".winner", os.O_CREAT | os.O_EXCL))
                count = int(os.pread(lock.fd, 20, 0) or b"0")
                os.sched_yield()
                os.pwrite(lock.fd, b"%d" % (count + 1), 0)
                os.unlink(path + ".winner")
                lock.close()
            os._exit(0)
        children.append(pid)
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in children)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=int)
    parser.add_argument("--on-conflict", default="queue")
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--contend", nargs=2, type=int)
    parser.add_argument("resources", nargs="+")
    options = parser.parse_args()
    if options.contend:
        processes, rounds = options.contend
        return contend(processes, rounds, options.resources[0])
    hold(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
