"""How fast jobs start, beside today's tools, in one run: ratios count, absolute times wander with the machine.

python bench/launch.py [--rounds N] [--many]

Latency: from the call to the moment the job's process said its first word. Throughput: no-op jobs, from the first call
to the end of the last. Peers that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobvisor import Supervisor
from jobvisor_workers.progress import Reporter

sys.path.insert(0, os.path.dirname(__file__))
import launch_jobs

Latency = Callable[[], float]
Throughput = Callable[[int], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="starts measured of each kind")
    parser.add_argument("--many", action="store_true", help="also 1000 jobs at 10 reports a second (2 GB)")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobvisor-bench-")))
        supervisor = stack.enter_context(Supervisor(work / "home", types=["launch_jobs"]))
        supervisor.start("nothing").wait(check=True)
        latencies: dict[str, Latency] = {
            "bare os.fork": bare_fork,
            "jobvisor": lambda: first_report(supervisor),
            "multiprocessing fork": lambda: first_word("fork"),
            "multiprocessing forkserver": lambda: first_word("forkserver"),
        }
        throughputs: dict[str, Throughput] = {
            "jobvisor (durable)": lambda count: many_jobs(supervisor, count),
            "multiprocessing fork": many_processes,
        }
        for name, peer in (("task-spooler", task_spooler), ("RQ", rq)):
            try:
                latencies[name], throughputs[name] = stack.enter_context(peer(work))
            except FileNotFoundError as error:
                print(f"{name}: left out, {error.filename} is not installed")
        print_latencies(latencies, arguments.rounds)
        print_throughputs(throughputs)
        print_control(supervisor, arguments.rounds)
        print_memory(supervisor)
        print_advance()
        if arguments.many:
            print_many(supervisor)


def print_latencies(latencies: dict[str, Latency], rounds: int) -> None:
    """Interleaved, so that all meet the same machine."""
    measured: dict[str, list[float]] = {name: [] for name in latencies}
    for number in range(rounds):
        for name, once in latencies.items():
            if name in ("bare os.fork", "jobvisor") or number % 10 == 0:
                measured[name].append(once() * 1000)
    base = statistics.median(measured["bare os.fork"])
    print(f"\n{'start to first report':28} {'p50 ms':>8} {'p99 ms':>8} {'x os.fork':>10}")
    for name, times in measured.items():
        median = statistics.median(times)
        print(f"{name:28} {median:8.2f} {quantile(times, 0.99):8.2f} {median / base:10.2f}")


def print_throughputs(throughputs: dict[str, Throughput]) -> None:
    measured: dict[str, list[float]] = {name: [] for name in throughputs}
    for _ in range(3):
        for name, run in throughputs.items():
            count = 60 if name == "RQ" else 300
            measured[name].append(count / run(count))
    ours = statistics.median(measured["jobvisor (durable)"])
    print(f"\n{'no-op jobs':28} {'jobs/s':>8} {'min':>7} {'max':>7} {'ours / it':>10}")
    for name, rates in measured.items():
        rate = statistics.median(rates)
        print(f"{name:28} {rate:8.0f} {min(rates):7.0f} {max(rates):7.0f} {ours / rate:10.2f}")


def print_control(supervisor: Supervisor, rounds: int) -> None:
    suspended, resumed, aborted = [], [], []
    for _ in range(rounds // 4):
        job = supervisor.start("busy")
        job.wait(until="running")
        suspended.append(timed(job.suspend))
        resumed.append(timed(job.resume))
        aborted.append(timed(job.abort))
    print(f"\n{'verb is true after':28} {'p50 ms':>8} {'p99 ms':>8}")
    for name, times in (("suspend", suspended), ("resume", resumed), ("abort (with durable end)", aborted)):
        print(f"{name:28} {statistics.median(times) * 1000:8.2f} {quantile(times, 0.99) * 1000:8.2f}")


def print_memory(supervisor: Supervisor) -> None:
    jobs = [supervisor.start("idle") for _ in range(40)]
    for job in jobs:
        job.wait(until="running")
    shares = [pss(pid) for pid in supervisor.pids().values()]
    print(f"\nPSS of an idle worker, 40 alive: {statistics.mean(shares) / 1024:.2f} MB")
    for job in jobs:
        job.abort()


def print_advance() -> None:
    read, write = os.pipe2(os.O_NONBLOCK)
    advance = Reporter(write).advance
    count = 1_000_000
    begin = time.perf_counter()
    for _ in range(count):
        advance(1)
    print(f"advance(): {(time.perf_counter() - begin) / count * 1e9:.0f} ns a call, its loop included")
    os.close(read)
    os.close(write)


def print_many(supervisor: Supervisor) -> None:
    count = 1000
    jobs = [supervisor.start("reporting") for _ in range(count)]
    for job in jobs:
        job.wait(until="running")
    begin, cpu = time.perf_counter(), time.process_time()
    time.sleep(10)
    share = (time.process_time() - cpu) / (time.perf_counter() - begin)
    print(f"supervisor's CPU with {count} jobs at 10 reports/s: {share:.1%} of a core")
    for job in jobs:
        job.abort(wait=False)
    for job in jobs:
        job.wait()


def bare_fork() -> float:
    read, write = os.pipe()
    begin = time.perf_counter()
    pid = os.fork()
    if not pid:
        os.write(write, b"x")
        os._exit(0)
    os.read(read, 1)
    latency = time.perf_counter() - begin
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    return latency


def first_report(supervisor: Supervisor) -> float:
    begin = time.perf_counter()
    job = supervisor.start("nothing")
    job.wait(until="running")
    latency = time.perf_counter() - begin
    job.wait()
    return latency


def first_word(method: str) -> float:
    context: Any = multiprocessing.get_context(method)
    read, write = context.Pipe(duplex=False)
    begin = time.perf_counter()
    process = context.Process(target=launch_jobs.say, args=(write,))
    process.start()
    read.recv()
    latency = time.perf_counter() - begin
    process.join()
    read.close()
    write.close()
    return latency


def many_jobs(supervisor: Supervisor, count: int) -> float:
    begin = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        for job in list(threads.map(lambda _: supervisor.start("nothing"), range(count))):
            job.wait(check=True)
    return time.perf_counter() - begin


def many_processes(count: int) -> float:
    """Two at a time, as many as there are cores here; nothing is written down."""
    context = multiprocessing.get_context("fork")
    begin = time.perf_counter()
    alive: list[Any] = []
    for _ in range(count):
        if len(alive) == 2:
            alive.pop(0).join()
        process = context.Process(target=launch_jobs.nothing)
        process.start()
        alive.append(process)
    for process in alive:
        process.join()
    return time.perf_counter() - begin


@contextlib.contextmanager
def task_spooler(work: Path) -> Iterator[tuple[Latency, Throughput]]:
    program = next((name for name in ("tsp", "ts") if shutil.which(name)), "tsp")
    environment = {**os.environ, "TS_SOCKET": str(work / "ts.sock"), "TMPDIR": str(work)}

    def call(*arguments: str) -> str:
        return subprocess.run([program, *arguments], env=environment, check=True, capture_output=True, text=True).stdout

    stamp = work / "ts.stamp"

    def latency() -> float:
        begin = time.time()
        call("-n", "sh", "-c", f"date +%s.%N > {stamp}.new; mv {stamp}.new {stamp}")
        wait_for(stamp.exists)
        said = float(stamp.read_text())
        stamp.unlink()
        return said - begin

    def throughput(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            call("-n", "true")
        wait_for(lambda: not [line for line in call().splitlines() if " queued " in line or " running " in line])
        call("-C")
        return time.perf_counter() - begin

    call("-S", "2")
    try:
        yield latency, throughput
    finally:
        call("-K")


@contextlib.contextmanager
def rq(work: Path) -> Iterator[tuple[Latency, Throughput]]:
    socket = work / "redis.sock"
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(work)],
        stdout=subprocess.DEVNULL,
    )
    wait_for(socket.exists)
    program = str(Path(sys.executable).with_name("rq"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    try:
        workers = [
            subprocess.Popen([program, "worker", "-u", f"unix://{socket}", "--quiet"], env=environment)
            for _ in range(2)
        ]
    except FileNotFoundError:
        server.terminate()
        server.wait()
        raise
    from redis import Redis
    from rq import Queue, Worker

    connection = Redis(unix_socket_path=str(socket))
    queue = Queue(connection=connection)
    wait_for(lambda: len(Worker.all(connection=connection)) == len(workers))
    stamp = work / "rq.stamp"

    def latency() -> float:
        begin = time.time()
        queue.enqueue(launch_jobs.stamp, str(stamp))
        wait_for(stamp.exists)
        said = float(stamp.read_text())
        stamp.unlink()
        return said - begin

    def throughput(count: int) -> float:
        begin = time.perf_counter()
        jobs = [queue.enqueue(launch_jobs.nothing) for _ in range(count)]
        wait_for(lambda: all(job.get_status() == "finished" for job in jobs[-2:]))
        return time.perf_counter() - begin

    try:
        yield latency, throughput
    finally:
        for process in (*workers, server):
            process.terminate()
            process.wait()
        connection.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a peer did not answer within 60 s")
        time.sleep(0.0005)


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


def pss(pid: int) -> int:
    """Proportional set size, KiB."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
