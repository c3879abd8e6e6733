"""SIGKILL at random moments of jobs with --keep-partial, which are retried until they are done.

A clone is then identical to its source, of what a wipe did no byte is as it was, and nothing is left beside them.
JOBVISOR_KILL_ROUNDS scales the loops.
"""

import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobvisor import Supervisor
from jobvisor.testing import wait_until
from jobvisor.testing.leftovers import kill_processes_of
from jobvisor_workers.control import descendants
from support.images import MIB, filled
from support.keep_host import TYPES, step

ROUNDS = max(1, int(os.environ.get("JOBVISOR_KILL_ROUNDS", "50")) // 16)
HOST = str(Path(__file__).parent.parent / "support" / "keep_host.py")

pytestmark = pytest.mark.timeout(120 + 10 * ROUNDS)

Victims = Callable[[int, list[int], list[int]], list[int]]


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param(lambda host, zygotes, workers: workers, id="workers"),
        pytest.param(lambda host, zygotes, workers: [host], id="host"),
        pytest.param(lambda host, zygotes, workers: [*workers, host, *zygotes], id="everything"),
    ],
)
def test_killed_and_retried_until_done(tmp_path: Path, victims: Victims) -> None:
    seed = int(os.environ.get("JOBVISOR_KILL_SEED", random.randrange(1 << 30)))
    print(f"JOBVISOR_KILL_SEED={seed}")
    chance = random.Random(seed)
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    source = filled(work / "source", 24 * MIB + 777)
    try:
        for _ in range(ROUNDS):
            one_round(home, work, victims, chance)
        with Supervisor(home, types=TYPES, grace=2.0) as supervisor:
            wait_until(lambda: step(supervisor, work).wait(30).ok, 60)
            audit(supervisor, source, work)
    finally:
        kill_processes_of(home)


def one_round(home: Path, work: Path, victims: Victims, chance: random.Random) -> None:
    """A host program is struck at a random moment of a job, and then ends in any case."""
    accepted = work / "accepted"
    before = accepted.stat().st_size if accepted.exists() else 0
    environment = {**os.environ, "PYTHONPATH": str(Path(HOST).parent.parent)}
    host = subprocess.Popen([sys.executable, HOST, str(home), str(work)], env=environment)
    try:
        wait_until(lambda: accepted.exists() and accepted.stat().st_size > before)
        time.sleep(chance.uniform(0, 0.6))
        zygotes = [int(word) for word in (work / "zygotes").read_text().split()]
        workers = [pid for zygote in zygotes for pid in descendants(zygote)[1:]]
        for pid in victims(host.pid, zygotes, workers):
            kill(pid)
        time.sleep(chance.uniform(0, 0.1))
    finally:
        host.kill()
        host.wait()


def audit(supervisor: Supervisor, source: Path, work: Path) -> None:
    infos = supervisor.jobs()
    old = source.read_bytes()
    for info in infos:
        assert info.final
        assert info.ok or info.cause in ("killed", "worker-lost"), info.errmsg
        if info.ok and info.type == "clone":
            assert filecmp.cmp(info.args["target"], source, shallow=False), f"job {info.id}"
        elif info.ok:
            assert Path(info.args["volume"]).read_bytes() == bytes(len(old)), f"job {info.id}"
        assert info.partial is None or not any(later.ok and later.retry_of == info.id for later in infos)
        supervisor.job(info.id).forget()
    assert not list(work.glob(".jobvisor-*"))
    print([(info.id, info.type, str(info.state), info.data_continued) for info in infos])


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
