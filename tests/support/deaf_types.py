"""Workers for a host program that is stopped."""

import time

from jobvisor_workers import JobType, Worker


class DeafWorker(JobType, tag="test-deaf-worker"):
    """Ignore every request to end."""

    def run(self, worker: Worker) -> None:
        worker.phase("deaf")
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass


class Chatty(JobType, tag="test-chatty"):
    """Report without end."""

    def run(self, worker: Worker) -> None:
        worker.phase("chat")
        while True:
            worker.advance(1)
            time.sleep(0.01)
