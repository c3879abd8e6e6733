"""What event streams are made of: committed events without gap or duplicate, and progress that is asked for."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobvisor import Job, State, Supervisor
from jobvisor.feed import Feed
from jobvisor.testing import job_type, nothing_left, wait_until
from jobvisor_workers import JobType, Worker
from support import feed_host

ROUNDS = int(os.environ.get("JOBVISOR_KILL_ROUNDS", "50"))


@job_type
class Steps(JobType, tag="test-steps"):
    """Enter a phase for each file that appears, and report in between until there is `end`."""

    directory: str
    padding: str = ""

    def run(self, worker: Worker) -> None:
        seen = 0
        while not os.path.exists(f"{self.directory}/end"):
            if os.path.exists(f"{self.directory}/{seen}"):
                worker.phase(f"phase {seen}")
                seen += 1
            if os.path.exists(f"{self.directory}/report"):
                worker.advance(1)
            time.sleep(0.002)


@pytest.fixture
def feed(supervisor: Supervisor) -> Iterator[Feed]:
    feed = supervisor._core.feed()
    yield feed
    feed.close()


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps"
    path.mkdir()
    return path


def states(feed: Feed, after: int = 0) -> list[tuple[str, str | None]]:
    return [(event.state, event.job.phase) for event in feed.after(after)[0]]


def running(supervisor: Supervisor, steps: Path, padding: str = "") -> Job:
    job = supervisor.start("test-steps", directory=str(steps), padding=padding)
    (steps / "0").touch()
    wait_until(lambda: job.info().phase == "phase 0")
    return job


@contextmanager
def held(supervisor: Supervisor) -> Iterator[None]:
    """The journal is busy, as with a slow disk."""
    go_on = threading.Event()
    supervisor._core._engine.journal.post(lambda db: go_on.wait())
    try:
        yield
    finally:
        go_on.set()


@contextmanager
def full_disk(supervisor: Supervisor) -> Iterator[None]:
    """The journal cannot grow."""
    post = supervisor._core._engine.journal.post
    pages = post(lambda db: db.execute("PRAGMA page_count").fetchone()[0]).result()
    post(lambda db: db.execute(f"PRAGMA max_page_count={pages}").fetchone()).result()
    try:
        yield
    finally:
        post(lambda db: db.execute(f"PRAGMA max_page_count={1 << 30}").fetchone()).result()


def test_an_event_is_delivered_once_it_is_committed(supervisor: Supervisor, feed: Feed, steps: Path) -> None:
    job = running(supervisor, steps)
    wait_until(lambda: ("running", "phase 0") in states(feed))
    news = threading.Event()
    with supervisor.events() as events, held(supervisor):
        before, feed.on_news = feed.last, news.set
        (steps / "1").touch()
        at_once = next(event for event in events if event.job.phase == "phase 1")
        assert at_once.number == before + 1
        assert (feed.last, feed.after(before)[0], news.is_set()) == (before, [], False)
    assert news.wait(10)
    assert feed.last == before + 1
    assert feed.after(before)[0] == [at_once]
    (steps / "end").touch()
    job.wait(10, check=True)
    wait_until(lambda: feed.after(0)[0][-1].state.final)
    assert [event.number for event in feed.after(before)[0]] == [before + 1, before + 2]
    assert feed.after(feed.last)[0] == feed.after(feed.last + 1000)[0] == []


def test_a_closed_feed_hears_nothing(supervisor: Supervisor, feed: Feed, steps: Path) -> None:
    news = threading.Event()
    feed.on_news = news.set
    feed.close()
    with supervisor.events(since=0) as events:
        running(supervisor, steps)
        assert next(event for event in events if event.state == "running")
    wait_until(lambda: feed.last == supervisor._core._engine.hub.last)
    assert not news.is_set()


def test_progress_is_what_reported_since_the_last_look(supervisor: Supervisor, feed: Feed, steps: Path) -> None:
    job = running(supervisor, steps)
    other = steps.parent / "other"
    other.mkdir()
    silent = running(supervisor, other)
    (steps / "report").touch()
    wait_until(lambda: job.info().data_processed)
    assert feed.take_progress().result() == []  # nobody wanted it

    feed.progress_wanted = True
    moved = wait_until(lambda: feed.take_progress().result())

    assert [(owner, progress.id) for owner, progress in moved] == [(os.getuid(), job.id)]
    assert moved[0][1].data_processed > 0
    wait_until(lambda: feed.take_progress().result())
    (other / "report").touch()
    wait_until(lambda: silent.id in [progress.id for _, progress in feed.take_progress().result()])


def test_a_full_disk_delays_events_and_loses_none(supervisor: Supervisor, feed: Feed, steps: Path) -> None:
    """And none that came later goes before: a reader would take the rest for old."""
    job = running(supervisor, steps, padding="x" * 40_000)
    wait_until(lambda: feed.last == supervisor._core._engine.hub.last)
    before = feed.last
    with full_disk(supervisor):
        (steps / "1").touch()
        wait_until(lambda: job.info().phase == "phase 1")
        (steps / "2").touch()
        wait_until(lambda: job.info().phase == "phase 2")
        wait_until(lambda: not supervisor._core._engine._backlog._under_way)
        assert (feed.last, feed.after(before)[0]) == (before, [])
    (steps / "end").touch()

    assert job.wait(10).ok
    wait_until(lambda: len(states(feed, before)) == 3)
    assert [phase for _, phase in states(feed, before)] == ["phase 1", "phase 2", "phase 2"]
    assert [event.number for event in feed.older(before, 1 << 62)] == [before + 1, before + 2, before + 3]


def test_numbers_are_not_given_again_after_everything_was_forgotten(tmp_path: Path, steps: Path) -> None:
    home = tmp_path / "home"
    with nothing_left(home, tmp_path):
        with Supervisor(home, types=[__name__]) as supervisor:
            supervisor._core._engine.hub.begin(1_000_000)
            (steps / "end").touch()
            supervisor.start("test-steps", directory=str(steps)).wait(10, check=True)
            feed = supervisor._core.feed()
            wait_until(lambda: feed.after(0)[0][-1].state.final)
            last = feed.last
            supervisor.forget()
        with Supervisor(home, types=[__name__]) as supervisor:
            assert supervisor._core.feed().last > last > 1_000_000


@pytest.mark.timeout(120 + 3 * ROUNDS)
def test_kill_supervisors_under_a_feed(tmp_path: Path) -> None:
    """What all feeds delivered one after the other is what the journal has, and has one end of each job."""
    seed = int(os.environ.get("JOBVISOR_KILL_SEED", random.randrange(1 << 30)))
    print(f"JOBVISOR_KILL_SEED={seed}")
    chance = random.Random(seed)
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    (work / "source").write_bytes(os.urandom(30_001))
    delivered = work / "delivered"
    environment = {**os.environ, "PYTHONPATH": str(Path(feed_host.__file__).parent.parent)}
    with nothing_left(home, tmp_path):
        for number in range(ROUNDS):
            host = subprocess.Popen(
                [sys.executable, feed_host.__file__, str(home), str(work), str(seed + number)], env=environment
            )
            before = feed_host.last_number(delivered)
            wait_until(lambda: feed_host.last_number(delivered) > before or host.poll() is not None)  # noqa: B023
            assert host.poll() is None, "the host program ended by itself"
            time.sleep(chance.uniform(0, 0.3))
            host.send_signal(signal.SIGKILL)
            host.wait()
        with Supervisor(home, types=["support.kill_types"], grace=2.0) as supervisor:
            feed, news = supervisor._core.feed(), threading.Event()
            for info in supervisor.jobs():
                if info.state is State.SUSPENDED:
                    supervisor.job(info.id).resume()
                supervisor.job(info.id).wait(30)
            wait_until(lambda: feed.last == supervisor._core._engine.hub.last)
            feed_host.deliver(feed, delivered, news)
            feed.close()
            jobs = {info.id for info in supervisor.jobs()}
    lines = [line.split() for line in delivered.read_text().splitlines()]
    with sqlite3.connect(home / "journal.sqlite") as db:
        written = [row[0] for row in db.execute("SELECT number FROM events ORDER BY number")]
    assert [int(line[0]) for line in lines] == written
    ends = Counter(int(line[1]) for line in lines if line[3] == "1")
    assert set(ends) == jobs
    assert set(ends.values()) == {1}
