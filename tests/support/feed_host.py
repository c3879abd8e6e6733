"""A program that starts jobs and hands on what its feed delivers, until it is killed: feed_host.py HOME WORK SEED.

Each event goes to WORK/delivered as a line, by one write: what a client would have received. The next program goes on
behind the last of them.
"""

import os
import random
import sys
import threading
from pathlib import Path

from jobvisor import Supervisor, WrongState
from jobvisor.feed import Feed


def deliver(feed: Feed, delivered: Path, news: threading.Event) -> None:
    """Write down what came since the last line that is there."""
    news.clear()
    at = last_number(delivered)
    events, first = feed.after(at)
    if at + 1 < first:
        events = feed.older(at, first) + events
    file = os.open(delivered, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for event in events:
            os.write(file, f"{event.number} {event.job.id} {event.state} {int(event.state.final)}\n".encode())
    finally:
        os.close(file)


def last_number(delivered: Path) -> int:
    lines = delivered.read_text().splitlines() if delivered.exists() else []
    return int(lines[-1].split()[0]) if lines else 0


def main() -> None:
    home, work, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    with Supervisor(home, types=["support.kill_types"], grace=2.0) as supervisor:
        feed, news = supervisor._core.feed(), threading.Event()
        feed.on_news = news.set

        def start_some() -> None:
            for number in range(20):
                job = supervisor.start(
                    "steady",
                    source=str(work / "source"),
                    target=str(work / f"target-{seed}-{number}"),
                    marks=str(work / "marks"),
                    delay=chance.choice([0.0, 0.001]),
                )
                try:
                    if chance.random() < 0.3:
                        job.suspend(wait=False)
                        job.resume(wait=False)
                except WrongState:  # it was over already
                    pass

        threading.Thread(target=start_some, daemon=True).start()
        while True:
            deliver(feed, work / "delivered", news)
            news.wait()


if __name__ == "__main__":
    main()
