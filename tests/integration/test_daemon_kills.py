"""kill -9 of the daemon, again and again, while several clients start, suspend, resume and abort jobs.

Afterwards every id that a client was given has exactly one final state, no job was begun twice, targets are there if
and only if their jobs completed, and a stream of events that went on over all deaths has what the journal has: no gap,
no duplicate. JOBVISOR_KILL_ROUNDS scales the loop.
"""

import filecmp
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor import Client, Event, JobInfo, WrongState, autostart
from jobvisor.places import socket_of
from jobvisor.testing import nothing_left, wait_until
from support.daemons import is_gone, pid_of
from support.kill_types import declare

ROUNDS = int(os.environ.get("JOBVISOR_KILL_ROUNDS", "15"))
CLIENTS = 4

pytestmark = pytest.mark.timeout(120 + 5 * ROUNDS)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(declare(tmp_path / "types"))
    home = tmp_path / "home"
    with nothing_left(home, tmp_path):
        yield home
        autostart.stop(socket_of(str(home)))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "source").write_bytes(os.urandom(300_001))
    return directory


class Load:
    """What one client does until it is told to stop; it keeps what it was told."""

    def __init__(self, home: Path, work: Path, seed: int) -> None:
        self.home, self.work, self.chance, self.name = home, work, random.Random(seed), f"{seed}"
        self.over = threading.Event()
        self.given: dict[int, JobInfo | None] = {}
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with Client(home=self.home) as client:
                while not self.over.is_set():
                    self._one_job(client, len(self.given))
                for id_ in self.given:
                    self.given[id_] = self._end(client, id_)
        except BaseException as error:
            self.errors.append(error)

    def _one_job(self, client: Client, number: int) -> None:
        job = client.start(
            "steady",
            source=str(self.work / "source"),
            target=str(self.work / f"target-{self.name}-{number}"),
            marks=str(self.work / "marks"),
            delay=self.chance.choice([0.0, 0.002, 0.01]),
            child=self.chance.random() < 0.2,
        )
        assert job.id not in self.given, "one id for two starts"
        self.given[job.id] = None
        try:
            match self.chance.randrange(5):
                case 0:
                    assert job.suspend().state in (
                        "suspended",
                        "queued",
                        "running",
                    )  # an outsider's resume is another client
                    job.resume()
                case 1:
                    job.suspend(wait=False)
                case 2:
                    assert job.abort().final
                case 3:
                    job.abort(wait=False, force=True)
                case 4:
                    job.wait(60)
        except WrongState:  # it was over before
            pass

    def _end(self, client: Client, id_: int) -> JobInfo:
        """One that is suspended is resumed; all end."""
        job = client.job(id_)
        while not (info := job.info()).final:
            if info.state == "suspended" or info.reason == "held":
                try:
                    job.resume()
                except WrongState:
                    pass
            time.sleep(0.01)
        return info


def test_the_daemon_is_killed_and_nobody_is_told_anything_wrong(home: Path, work: Path) -> None:
    seed = int(os.environ.get("JOBVISOR_KILL_SEED", random.randrange(1 << 30)))
    print(f"JOBVISOR_KILL_SEED={seed}")
    chance = random.Random(seed)
    loads = [Load(home, work, seed + number) for number in range(CLIENTS)]
    heard: list[Event] = []
    with Client(home=home) as client, client.events(since=0) as events:
        listening = threading.Thread(target=lambda: heard.extend(each for each in events if each.event == "state"))
        listening.start()
        for load in loads:
            load.thread.start()
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0.02, 0.5))
            pid = wait_until(lambda: pid_of(home), timeout=60)
            assert pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: is_gone(pid))  # noqa: B023 - waited for here
        for load in loads:
            load.over.set()
        for load in loads:
            load.thread.join()
        assert not [error for load in loads for error in load.errors]
        given = {id_: info for load in loads for id_, info in load.given.items()}
        assert len(given) == sum(len(load.given) for load in loads), "two clients have the same job"
        infos = {info.id: info for info in client.jobs()}
        wait_until(lambda: {event.job.id for event in heard if event.job.final} == infos.keys())
        events.close()
        listening.join()
        assert infos.keys() == given.keys(), "a start was lost, or was done twice"
        for id_, info in given.items():
            assert info is not None
            assert (infos[id_].state, infos[id_].cause) == (info.state, info.cause), "two ends"
    autostart.stop(socket_of(str(home)))
    audit(infos, heard, home, work)


def audit(infos: dict[int, JobInfo], heard: list[Event], home: Path, work: Path) -> None:
    starts = Counter(int(line) for line in (work / "marks").read_text().splitlines())
    for info in infos.values():
        target = Path(info.args["target"])
        assert starts[info.id] <= 1, f"job {info.id} was begun {starts[info.id]} times"
        if info.ok:
            assert starts[info.id] == 1
            assert filecmp.cmp(target, work / "source", shallow=False)
        else:
            assert (info.state, info.cause) == ("aborted", None), f"job {info.id}: {info.cause}, {info.errmsg}"
            assert not target.exists()
    numbers = [event.number or 0 for event in heard]
    assert numbers == sorted(set(numbers)), "an event was told twice, or late"
    with sqlite3.connect(home / "journal.sqlite") as journal:
        kept = journal.execute("SELECT number, job, final FROM events ORDER BY number").fetchall()
    journal.close()
    assert numbers == [number for number, _, _ in kept], "an event was not told"
    finals = Counter(job for _, job, final in kept if final)
    assert set(finals.values()) == {1}
    print(len(infos), Counter(str(info.state) for info in infos.values()), len(heard), "events")
