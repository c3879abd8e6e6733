"""What bench/launch.py runs, in jobvisor's workers and in those of its peers."""

import os
import time
from multiprocessing.connection import Connection

from jobvisor_workers import JobType, Worker


class Nothing(JobType, tag="nothing"):
    """Do nothing."""

    def run(self, worker: Worker) -> None:
        pass


class Idle(JobType, tag="idle"):
    """Wait for the end."""

    def run(self, worker: Worker) -> None:
        while True:
            time.sleep(60)


class Busy(JobType, tag="busy"):
    """Compute and report until the end."""

    def run(self, worker: Worker) -> None:
        while True:
            worker.advance(1)


class Reporting(JobType, tag="reporting"):
    """Ten reports a second."""

    def run(self, worker: Worker) -> None:
        while True:
            time.sleep(0.1)
            worker.advance(1)


def nothing() -> None:
    pass


def say(connection: Connection) -> None:
    connection.send(True)


def stamp(path: str) -> None:
    with open(path + ".new", "w") as file:
        file.write(str(time.time()))
    os.rename(path + ".new", path)
