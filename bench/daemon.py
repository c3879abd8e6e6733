"""The daemon under load, beside itself without load, in one run.

python bench/daemon.py [--jobs 1000] [--streams 200] [--short 10000]

1000 jobs need 2 GB. CPU is that of the daemon's process, its API and supervisor together, as a share of a core; the
clients and the zygote are other processes. Verbs go through jobvisor's own client, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobvisor import Client, Job

DAEMON = """
import sys
from jobvisor.daemon import Config, run
run(Config(home=sys.argv[1], types=["launch_jobs"]), lambda path: print(path, flush=True))
"""
#: Seconds that CPU is measured.
WHILE = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="jobs at the same time")
    parser.add_argument("--streams", type=int, default=200, help="event streams")
    parser.add_argument("--short", type=int, default=10_000, help="short jobs, one after the other, for the memory")
    parser.add_argument("--read", metavar="SOCKET", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read_streams(arguments.read, arguments.streams)
        return
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="jobvisor-bench-"))
        pid, path = stack.enter_context(daemon(Path(work)))
        client = stack.enter_context(Client(path))
        client.jobs()
        print(f"{'idle daemon':44} {rss(pid):8.1f} MiB")
        under_load(client, pid, path, arguments.jobs, arguments.streams)
        short_jobs(client, pid, arguments.short)


def under_load(client: Client, pid: int, path: str, count: int, streams: int) -> None:
    print(f"\n{'daemon CPU':44} {'of a core':>9} {'x idle jobs':>12}")
    idle = started(client, "idle", count)
    base = share(pid)
    print_share(f"{count} idle jobs", base, base)
    ended(idle)
    jobs = started(client, "reporting", count)
    quiet = share(pid)
    print_share(f"{count} jobs at 10 reports/s", quiet, base)
    verbs = {"no streams": verb_times(client, jobs)}
    with reader(path, streams):
        print_share(f"the same, {streams} streams, progress 2/s", share(pid), base)
        verbs[f"{streams} streams"] = verb_times(client, jobs)
    print(f"\n{f'verbs, {count} jobs at 10 reports/s':44} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    for name, measured in verbs.items():
        for verb, times in measured.items():
            row = f"{statistics.median(times) * 1000:8.2f} {quantile(times, 0.99) * 1000:8.2f} {max(times) * 1000:8.2f}"
            print(f"{f'{verb}, {name}':44} {row}")
    ended(jobs)


def short_jobs(client: Client, pid: int, count: int) -> None:
    print(f"\n{'memory after so many short jobs':44} {'MiB':>8} {'jobs/s':>8}")
    step = max(1, count // 5)
    with ThreadPoolExecutor(8) as threads:
        for done in range(step, count + 1, step):
            begin = time.perf_counter()
            for job in list(threads.map(lambda _: client.start("nothing"), range(step))):
                job.wait(check=True)
            print(f"{done:<44} {rss(pid):8.1f} {step / (time.perf_counter() - begin):8.0f}", flush=True)


def started(client: Client, type: str, count: int) -> list[Job]:
    with ThreadPoolExecutor(8) as threads:
        jobs = list(threads.map(lambda _: client.start(type), range(count)))
    for job in jobs:
        job.wait(until="running")
    return jobs


def ended(jobs: list[Job]) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda job: job.abort(), jobs))


def verb_times(client: Client, jobs: list[Job]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"info": [], "suspend": [], "resume": [], "start": [], "abort": []}
    for job in jobs[:300]:
        times["info"].append(timed(job.info))
        times["suspend"].append(timed(job.suspend))
        times["resume"].append(timed(job.resume))
        more: list[Job] = []
        times["start"].append(timed(lambda more=more: more.append(client.start("idle"))))  # type: ignore[misc]
        times["abort"].append(timed(more[0].abort))
    return times


@contextlib.contextmanager
def daemon(work: Path) -> Iterator[tuple[int, str]]:
    """Its pid and its socket."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(work / "home")], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def reader(path: str, streams: int) -> Iterator[None]:
    """Streams that are read by another process, as fast as they come."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--read", path, "--streams", str(streams)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "all are open\n"
    begin, before = time.perf_counter(), cpu(process.pid)
    try:
        yield
    finally:
        used = (cpu(process.pid) - before) / (time.perf_counter() - begin)
        process.terminate()
        process.wait()
        process.stdout.close()
        print(f"(their reader took {used:.0%} of a core)")


def read_streams(path: str, count: int) -> None:
    waiting = selectors.DefaultSelector()
    for _ in range(count):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        connection.sendall(b"GET /v1/events?progress=2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(65536)
        waiting.register(connection, selectors.EVENT_READ)
    print("all are open", flush=True)
    buffer = bytearray(1 << 20)
    while True:
        for key, _ in waiting.select():
            assert isinstance(key.fileobj, socket.socket)
            if not key.fileobj.recv_into(buffer):
                raise ConnectionError("a stream ended")


def share(pid: int) -> float:
    time.sleep(1)
    begin, before = time.perf_counter(), cpu(pid)
    time.sleep(WHILE)
    return (cpu(pid) - before) / (time.perf_counter() - begin)


def print_share(name: str, used: float, base: float) -> None:
    print(f"{name:44} {used:9.1%} {used / max(base, 0.001):12.0f}", flush=True)


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has had."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def quantile(times: list[float], part: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * part))]


if __name__ == "__main__":
    main()
