"""SIGKILL at random moments of worker, child, supervisor, zygote, and mixes of them.

Afterwards every accepted job has exactly one final state and at most one start (exactly one if it completed), no
process, lock or temporary file is left, and each target is identical to its source if its job completed, and absent if
it did not.
JOBVISOR_KILL_ROUNDS scales the loops.
"""

import filecmp
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobvisor import Job, State, Supervisor, WrongState
from jobvisor_workers.control import descendants

ROUNDS = int(os.environ.get("JOBVISOR_KILL_ROUNDS", "50"))
TYPES = ["support.kill_types"]
#: A user besides root.
THEM = 65533
HOST = str(Path(__file__).parent.parent / "support" / "kill_host.py")

pytestmark = pytest.mark.timeout(120 + 6 * ROUNDS)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A directory with a source of an odd size."""
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "source").write_bytes(os.urandom(300_001))
    return directory


@pytest.fixture
def their_work() -> Iterator[Path]:
    """The same where another user can work; pytest's directories are closed to others."""
    if os.geteuid():
        pytest.skip("only root can act for somebody else")
    directory = Path(tempfile.mkdtemp(prefix="jobvisor-kill-"))
    (directory / "source").write_bytes(os.urandom(300_001))
    for path in (directory, directory / "source"):
        os.chown(path, THEM, THEM)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def seed(record_property: Callable[[str, object], None]) -> int:
    chosen = int(os.environ.get("JOBVISOR_KILL_SEED", random.randrange(1 << 30)))
    record_property("seed", chosen)
    print(f"JOBVISOR_KILL_SEED={chosen}")
    return chosen


def test_kill_workers(tmp_path: Path, work: Path, seed: int) -> None:
    in_one_supervisor(tmp_path / "home", work, seed, lambda supervisor, job: kill(supervisor.pids().get(job.id)))


def test_kill_children(tmp_path: Path, work: Path, seed: int) -> None:
    def kill_child(supervisor: Supervisor, job: Job) -> None:
        worker = supervisor.pids().get(job.id)
        below = descendants(worker)[1:] if worker else []
        kill(random.choice(below) if below else None)

    in_one_supervisor(tmp_path / "home", work, seed, kill_child, child=True)


def test_kill_zygotes(tmp_path: Path, work: Path, seed: int) -> None:
    def kill_zygote(supervisor: Supervisor, job: Job) -> None:
        for pid in supervisor._core.zygotes().result():
            kill(pid)

    in_one_supervisor(tmp_path / "home", work, seed, kill_zygote)


def test_kill_zygotes_and_workers(tmp_path: Path, work: Path, seed: int) -> None:
    def kill_both(supervisor: Supervisor, job: Job) -> None:
        victims = [supervisor.pids().get(job.id), *supervisor._core.zygotes().result()]
        random.shuffle(victims)
        for pid in victims:
            kill(pid)

    in_one_supervisor(tmp_path / "home", work, seed, kill_both, child=True)


def test_kill_supervisors(tmp_path: Path, work: Path, seed: int) -> None:
    def victims(host: int, zygotes: list[int], chance: random.Random) -> list[int]:
        return [host]

    in_many_supervisors(tmp_path / "home", work, seed, victims)


def everything(host: int, zygotes: list[int], chance: random.Random) -> list[int]:
    workers = [pid for zygote in zygotes for pid in descendants(zygote)[1:]]
    some = [*zygotes, *chance.sample(workers, chance.randint(0, len(workers)))]
    chance.shuffle(some)
    some.insert(chance.randint(0, len(some)), host)
    return some


def test_kill_everything(tmp_path: Path, work: Path, seed: int) -> None:
    in_many_supervisors(tmp_path / "home", work, seed, everything)


def test_kill_everything_of_another_user(tmp_path: Path, their_work: Path, seed: int) -> None:
    in_many_supervisors(tmp_path / "home", their_work, seed, everything, uid=THEM)


def in_one_supervisor(
    home: Path, work: Path, seed: int, strike: Callable[[Supervisor, Job], None], *, child: bool = False
) -> None:
    """Each round starts a job, strikes at a random moment of it, and waits for the end."""
    chance = random.Random(seed)
    random.seed(seed)
    with Supervisor(home, types=TYPES, grace=2.0) as supervisor:
        for number in range(ROUNDS):
            job = supervisor.start(
                "steady",
                source=str(work / "source"),
                target=str(work / f"target-{number}"),
                marks=str(work / "marks"),
                delay=chance.choice([0.0, 0.001]),
                child=child,
            )
            time.sleep(chance.uniform(0, 0.05))
            strike(supervisor, job)
            job.wait(30)
    with Supervisor(home, types=TYPES) as supervisor:
        audit(supervisor, home, work)


def in_many_supervisors(
    home: Path,
    work: Path,
    seed: int,
    victims: Callable[[int, list[int], random.Random], list[int]],
    *,
    uid: int | None = None,
) -> None:
    """Each round runs a host program that recovers the home, starts jobs, and is struck at a random moment."""
    chance = random.Random(seed)
    environment = {**os.environ, "PYTHONPATH": str(Path(HOST).parent.parent)}
    accepted = work / "accepted"
    for number in range(ROUNDS):
        before = len(lines(accepted))
        argv = [sys.executable, HOST, str(home), str(work), str(seed + number), *([str(uid)] if uid else [])]
        host = subprocess.Popen(argv, env=environment)
        enough = before + chance.randint(1, 6)
        wait_until(lambda: len(lines(accepted)) >= enough or host.poll() is not None)  # noqa: B023 - waited for here
        assert host.poll() is None, "the host program ended by itself"
        time.sleep(chance.uniform(0, 0.05))
        zygotes = [int(line) for line in lines(work / "zygote")]
        for pid in victims(host.pid, zygotes, chance):
            kill(pid)
            time.sleep(chance.choice([0, 0, 0.003]))
        kill(host.pid)
        host.wait()
    with Supervisor(home, types=TYPES, grace=2.0) as supervisor:
        for info in supervisor.jobs(all_users=uid is not None):
            if not info.final:
                finish(supervisor.job(info.id))
        promised = {int(line.split()[0]) for line in lines(accepted)}
        assert promised <= {info.id for info in supervisor.jobs(all_users=uid is not None)}
        audit(supervisor, home, work, uid)


def finish(job: Job) -> None:
    """A job that was suspended when everything died is still suspended."""

    def over() -> bool:
        if job.info().state is State.SUSPENDED or job.info().reason == "held":
            try:
                job.resume()
            except WrongState:
                pass
        return job.info().final

    wait_until(over, timeout=60)


def audit(supervisor: Supervisor, home: Path, work: Path, uid: int | None = None) -> None:
    starts = Counter(int(line) for line in lines(work / "marks"))
    infos = supervisor.jobs(all_users=uid is not None)
    assert infos
    assert {info.owner_uid for info in infos} == {os.getuid() if uid is None else uid}
    for info in infos:
        assert info.final
        target = Path(info.args["target"])
        assert starts[info.id] <= 1, f"job {info.id} was started {starts[info.id]} times"
        if info.ok:
            assert starts[info.id] == 1
            assert filecmp.cmp(target, work / "source", shallow=False)
            assert target.stat().st_uid == info.owner_uid
        else:
            assert not target.exists(), f"job {info.id} is {info.state} ({info.cause}), its target is there"
            assert info.cause != "error" or info.args["child"], info.errmsg
    supervisor.close()
    with sqlite3.connect(home / "journal.sqlite") as journal:
        finals = Counter(job for (job,) in journal.execute("SELECT job FROM events WHERE final"))
        untold = journal.execute("SELECT count(*) FROM jobs WHERE NOT told").fetchone()[0]
    journal.close()
    assert max(finals.values()) == 1, "a job was said to be final twice"
    assert untold == 0, "a job was not said to be final"
    assert not [name for name in os.listdir(work) if name.startswith(".jobvisor")]
    wait_until(lambda: not users_of(home, work), timeout=10)
    print(Counter((str(info.state), str(info.cause)) for info in infos))


def users_of(*directories: Path) -> dict[int, list[str]]:
    """Other processes that have a file below one of the directories open."""
    found: dict[int, list[str]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                links = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
            except OSError:
                continue
            ours = [link for link in links if any(link.startswith(str(each)) for each in directories)]
            if ours:
                found[int(name)] = ours
    return found


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def kill(pid: int | None) -> None:
    if pid is not None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def wait_until(condition: Callable[[], object], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)
