"""Work that libvirtd does at our request, in one call that returns when it is done.

Nobody can stop it: libvirtd goes on when its client is gone (observed with 9.0). So while it lasts the job cannot be
suspended, and one that is to be aborted stays `aborting` until libvirtd has done what it was asked for; that is then
said. Only abort --force ends the job before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from jobvisor_workers.worker import Worker

T = TypeVar("T")

#: Seconds between two looks whether the job is to end.
TICK = 0.1


def call(worker: Worker, question: Callable[[], T], what: str, tick: Callable[[], None] = lambda: None) -> T:
    """What a blocking call of libvirt's returns or raises. `what`: such as "pool default is started".

    `tick` is called from time to time meanwhile, and may tell of progress.
    """
    answers: list[T] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            answers.append(question())
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    before = worker.abort_effect
    with worker.held_back() as is_to_end:
        if not is_to_end():
            worker.abort_effect = f"nothing is stopped: libvirtd goes on until {what}"
            worker.delegate(True)
            threading.Thread(target=ask, name="delegated", daemon=True).start()
            while not done.wait(TICK):
                tick()
                worker.skip(0)
            worker.abort_effect = before
            worker.delegate(False)
            if is_to_end():
                ended = f", and failed by itself: {failures[0]}" if failures else f": {what} all the same"
                worker.warn(f"libvirtd could not be stopped{ended}")
    if failures:
        raise failures[0]
    return answers[0]
