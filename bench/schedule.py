"""Ten thousand queued jobs: how long a start is decided, and a page of the list takes; and their order after a kill -9.

.venv/bin/python bench/schedule.py [JOBS]
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobvisor import Client, Supervisor
from jobvisor.schedule import Schedule
from jobvisor_workers import READ, WRITE

#: To hold: seconds for one decision, and for a page of 50 jobs.
DECIDED, PAGE = 0.005, 0.050


def decisions(jobs: int) -> list[float]:
    """All wait for one of 100 volumes, a third of them to read, in 100 priorities; each end starts the next."""
    schedule = Schedule()
    schedule.limit({"jobs": 50})
    for job in range(1, jobs + 1):
        schedule.enter(job, {f"file:{job % 100}": READ if job % 3 else WRITE}, job % 7, ["jobs"])
        schedule.release(job)
    took: list[float] = []
    running: list[int] = []
    while True:
        began = time.perf_counter()
        first = schedule.next()
        if first is not None:
            schedule.begin(first)
            running.append(first)
            took.append(time.perf_counter() - began)
        elif running:
            schedule.leave(running.pop(0))
        else:
            return took


def timed(call: Callable[[], object], times: int = 20) -> list[float]:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def tell(what: str, took: list[float], hold: float) -> None:
    took = sorted(took)
    worst = took[int(len(took) * 0.99)] if len(took) > 100 else took[-1]
    print(
        f"{what:<44} p50 {statistics.median(took) * 1e3:8.3f} ms   p99 {worst * 1e3:8.3f} ms   hold {hold * 1e3:g} ms"
    )


def main(jobs: int) -> None:
    tell(f"decide one of {jobs}", decisions(jobs), DECIDED)
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory, "home")
        volume = Path(directory, "volume")
        volume.write_bytes(b"x")
        child = os.fork()
        if not child:
            supervisor = Supervisor(home)
            supervisor.hold("bench")
            with ThreadPoolExecutor(64) as pool:
                list(pool.map(lambda n: supervisor.start("checksum", volume=volume, priority=n % 7), range(jobs)))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        began = time.perf_counter()
        with Supervisor(home) as supervisor, supervisor.serve() as socket, Client(socket) as client:
            print(f"a supervisor after kill -9, with {jobs} queued: {time.perf_counter() - began:.2f} s")
            tell("a page of 50, Supervisor", timed(lambda: supervisor.jobs(limit=50)), PAGE)
            tell("a page of 50, Client", timed(lambda: client.jobs(limit=50)), PAGE)
            tell("start one more", timed(lambda: supervisor.start("checksum", volume=volume)), DECIDED)
            queued = supervisor._core._engine.schedule.queued()
            ranks = [(-client.job(job).info().priority, job) for job in queued[:: max(1, jobs // 200)]]
            print("order kept" if ranks == sorted(ranks) and len(queued) == jobs + 20 else "ORDER LOST")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
