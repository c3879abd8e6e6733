"""A program that embeds a Supervisor keeps all that is its own, and its jobs get nothing of it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobvisor import HomeInUse, Supervisor, Unreachable, aio
from jobvisor.testing import nothing_left, processes_of, wait_until
from support.embedding_types import PYTHON_IGNORES, Linger, bit

SUPPORT = Path(__file__).parent.parent / "support"
TYPES = ["support.embedding_types"]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with nothing_left(tmp_path / "home", tmp_path):
        yield tmp_path / "home"


def program(name_or_code: str, *words: str | Path) -> subprocess.Popen[str]:
    """A host program, in a process of its own."""
    start = [str(SUPPORT / name_or_code)] if name_or_code.endswith(".py") else ["-c", name_or_code]
    return subprocess.Popen(
        [sys.executable, "-W", "error", *start, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(SUPPORT.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(host: subprocess.Popen[str]) -> dict[str, Any]:
    with host:
        try:
            stdout, stderr = host.communicate(timeout=60)
        finally:
            host.kill()
    assert (host.returncode, stderr) == (0, "")
    found: dict[str, Any] = json.loads(stdout)
    return found


def test_twenty_threads_a_sigchld_handler_a_gigabyte_and_two_supervisors(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "one", tmp_path), nothing_left(tmp_path / "two", tmp_path):
        seen = told(program("embedding_host.py", tmp_path))
    assert seen["ids"] == [list(range(1, 21)), list(range(1, 21))]
    assert seen["ends"] == [["suspended", "running", "aborted"]] * 2
    # The host's own affairs: its handler got each of its children, and nothing of its process is changed.
    assert seen["own_statuses"] == list(range(20))
    assert seen["captured"] == "of my own\n"
    for fact in seen["before"]:
        assert seen["after"][fact] == seen["before"][fact], fact
    assert seen["before"]["threads"].count("MainThread") == 1
    assert len(seen["before"]["threads"]) == 21
    # A zygote costs the host one short-lived child; it is not forked by Python, and no process stays a child.
    assert seen["others"] <= seen["zygotes"] == 2
    assert (seen["forks"], seen["children"]) == (0, ["ps"])
    # Nothing of the host is in a worker: none of its descriptors, and none of its memory.
    of_the_host = {each for each in seen["before"]["descriptors"] if each != "/dev/null"}
    assert sum("host-file" in each for each in of_the_host) == 5
    for result in seen["results"]:
        assert not of_the_host & set(result["descriptors"])
        homes = {each for each in result["descriptors"] if each.startswith(str(tmp_path))}
        assert {re.sub(r"/(one|two)/jobs/\d+", "", each.removeprefix(str(tmp_path))) for each in homes} == {
            "/life",
            "/log",
            "/result",
        }
        assert result["rss_kib"] < 100 << 10
    assert not any(each in seen["results"][0]["child"] for each in of_the_host)


SIGWAITING = """
import json, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
from jobvisor import Supervisor
with Supervisor(sys.argv[1], types=["support.embedding_types"], grace=60) as supervisor:
    seen = {"look": supervisor.start("look", child=True).wait(60, check=True).result, "ends": []}
    for child in (False, True):
        job = supervisor.start("linger", child=child)
        job.wait(60, until="running")
        seen["ends"].append([job.suspend().state, job.resume().state])
        os.kill(job.info().pid, signal.SIGSTOP)
        seen["ends"][-1] += [job.wait(60, until="suspended").suspended_by, job.abort().state, job.info().signal]
print(json.dumps(seen))
"""


#: The C library keeps 32 and 33 for itself: below make both are ignored, and no program can change that.
NPTL = 3 << 31


def test_what_the_host_blocks_and_ignores_is_not_inherited(home: Path) -> None:
    """As with nohup, or in a daemon that takes its signals with sigwait: TERM still ends jobs, and stops are seen."""
    seen = told(program(SIGWAITING, home))
    assert seen["look"]["ignored"] & ~NPTL == PYTHON_IGNORES
    assert not seen["look"]["blocked"] & (bit(signal.SIGCHLD) | bit(signal.SIGRTMIN) | bit(signal.SIGTSTP))
    masks = re.findall(r"Sig\w+:\t(\w+)", seen["look"]["child"])
    assert [int(mask, 16) & ~NPTL for mask in masks] == [0, 0]
    assert seen["ends"] == [["suspended", "running", "outsider", "aborted", None]] * 2


def test_a_supervisor_in_a_thread_beside_the_hosts_own_loop(home: Path, tmp_path: Path) -> None:
    """The loop keeps its signal handlers, its child watcher and its exception handler."""
    gate, complaints, signals = tmp_path / "gate", list[dict[str, Any]](), list[int]()
    outcome: list[str] = []

    def supervise(is_running: Callable[[], object]) -> None:
        with Supervisor(home, types=TYPES) as supervisor:
            job = supervisor.start(Linger(str(gate)))
            job.wait(60, until="running")
            is_running()
            outcome.append(job.wait(60).state)

    async def host() -> None:
        loop, running = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
        loop.add_signal_handler(signal.SIGUSR1, lambda: signals.append(signal.SIGUSR1))
        thread = threading.Thread(target=supervise, args=(partial(loop.call_soon_threadsafe, running.set),))
        thread.start()
        await running.wait()
        for number in range(5):
            child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}")
            assert await child.wait() == number
        os.kill(os.getpid(), signal.SIGUSR1)
        while not signals:
            await asyncio.sleep(0.001)
        gate.touch()
        await asyncio.to_thread(thread.join)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        loop.remove_signal_handler(signal.SIGUSR1)

    asyncio.run(host())
    assert (outcome, complaints, signals) == (["completed"], [], [signal.SIGUSR1])


def test_ids_go_on_after_a_restart_and_what_runs_is_adopted(home: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Supervisor(home, types=TYPES) as supervisor:
        supervisor.start("look").wait(60, check=True)
        running = supervisor.start(Linger(str(gate)))
        pid = running.wait(60, until="running").pid
        supervisor.job(1).forget()
    with Supervisor(home, types=TYPES) as supervisor:
        info = supervisor.job(running.id).info()
        assert (info.id, info.state, info.pid, info.adopted) == (2, "running", pid, True)
        assert supervisor.start("look").wait(60, check=True).id == 3
        gate.touch()
        assert supervisor.job(running.id).wait(60).ok
        assert supervisor.forget() == 2
    with Supervisor(home) as supervisor:
        assert supervisor.jobs() == []
        assert supervisor.start("checksum", volume=str(tmp_path)).id == 4


HOLDING = """
import sys
from jobvisor import Supervisor
with Supervisor(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_home_in_use_names_who_has_it(home: Path) -> None:
    with program(HOLDING, home) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        with pytest.raises(HomeInUse) as caught:
            Supervisor(home)
        assert (caught.value.home, caught.value.pid) == (str(home), host.pid)
        assert "-c import sys from jobvisor import Supervisor with" in caught.value.command
        assert re.fullmatch(
            rf"{home} is in use by pid {host.pid} \(.*\); use that one, or another --home", str(caught.value)
        )
        host.communicate(timeout=60)
    with Supervisor(home), pytest.raises(HomeInUse) as caught:
        Supervisor(home)
    assert caught.value.pid == os.getpid()


def test_a_fork_of_the_host_holds_nothing_up_and_cannot_use_the_copy(home: Path, tmp_path: Path) -> None:
    """It has copies of the home's lock and of the zygote's socket."""
    supervisor = Supervisor(home, types=TYPES)
    job = supervisor.start("look")
    job.wait(60, check=True)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 3.12 warns of forks in programs with threads; hosts do it all the same
        child = os.fork()
    if child == 0:
        try:
            job.info()
        except Unreachable as error:
            os.write(write, str(error).encode())
            supervisor.close()
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert f"pid {os.getpid()}" in os.read(read, 1000).decode()
        assert job.info().ok
        supervisor.close()
        assert processes_of(home) == []
        Supervisor(home).close()
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_close_while_other_threads_are_busy_leaves_nobody_waiting(home: Path, tmp_path: Path) -> None:
    """Each call either had its answer or raises Unreachable, and what was accepted is run by the next supervisor."""
    gate = tmp_path / "gate"
    supervisor = Supervisor(home, types=TYPES)
    accepted: list[int] = []
    unexpected: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while True:
                job = supervisor.start(Linger(str(gate)))
                accepted.append(job.id)
                if number % 2:
                    job.wait()
                else:
                    supervisor.jobs(limit=3)
        except Unreachable:
            pass
        except BaseException as error:
            unexpected.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(accepted) > 20)
    closers = [threading.Thread(target=supervisor.close) for _ in range(3)]
    for thread in closers:
        thread.start()
    for thread in [*closers, *threads]:
        thread.join(30)
        assert not thread.is_alive()
    assert unexpected == []
    gate.touch()
    with Supervisor(home, types=TYPES) as after:
        assert {info.id for info in after.jobs()} >= set(accepted)
        for job in map(after.job, accepted):
            assert job.wait(60).ok


def test_threads_and_loops_share_a_process(home: Path, tmp_path: Path) -> None:
    """One supervisor for threads and another for a loop, side by side."""

    async def main() -> None:
        async with aio.Supervisor(tmp_path / "second", types=TYPES) as second:
            job = await second.start("look")
            one, two = await asyncio.gather(asyncio.to_thread(first.start("look").wait, 60), job.wait(60))
            assert one.ok
            assert two.ok

    with nothing_left(tmp_path / "second", tmp_path), Supervisor(home, types=TYPES) as first:
        asyncio.run(main())
