"""Workers for a host program that is stopped."""

import signal
import time

from jobvisor_workers import JobType, Worker
from jobvisor_workers.signals import INTERRUPT


def be_deaf() -> None:
    """Hear no request to end, as in a system call that does not return: a loop of `except` has gaps."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {INTERRUPT})


class DeafWorker(JobType, tag="test-deaf-worker"):
    """Ignore every request to end."""

    def run(self, worker: Worker) -> None:
        be_deaf()
        worker.phase("deaf")
        time.sleep(3600)


class Chatty(JobType, tag="test-chatty"):
    """Report without end."""

    def run(self, worker: Worker) -> None:
        worker.phase("chat")
        while True:
            worker.advance(1)
            time.sleep(0.01)
