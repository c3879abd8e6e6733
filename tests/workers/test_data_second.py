"""The second thread: order, errors, and that it is gone whatever happens."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from jobvisor_workers.data.second import SecondThread
from support.lock_scenes import wait_until


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_results_come_in_the_order_given() -> None:
    with SecondThread[int, int](lambda n: n * n) as second:
        for number in range(50):
            second.give(number)
        assert [second.take() for _ in range(50)] == [number * number for number in range(50)]


def test_no_thread_without_work() -> None:
    before = threading.active_count()
    with SecondThread[int, int](lambda n: n):
        assert threading.active_count() == before


def test_what_the_work_raises_is_raised_by_take() -> None:
    with SecondThread[int, float](lambda n: 1 / n) as second:
        second.give(0)
        second.give(2)
        with pytest.raises(ZeroDivisionError):
            second.take()
        assert second.take() == 0.5


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), OSError(5, "x")])
def test_leaving_waits_for_the_item_in_work_and_drops_the_others(error: BaseException) -> None:
    begun, done = threading.Event(), []

    def work(number: int) -> None:
        begun.set()
        time.sleep(0.05)
        done.append(number)

    def leave() -> None:
        with SecondThread[int, None](work) as second:
            for number in range(5):
                second.give(number)
            begun.wait()
            raise error

    with pytest.raises(type(error)):
        leave()
    assert done == [0]


@contextmanager
def exits_by_timer(period: float) -> Iterator[None]:
    """As an abort does: SystemExit in the main thread, again and again."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGALRM, leave)
    try:
        signal.setitimer(signal.ITIMER_REAL, period, period)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_exits_that_repeat_do_not_leave_the_thread_behind() -> None:
    working = []
    exits = []

    def work(number: int) -> None:
        working.append(True)
        time.sleep(0.1)
        working.pop()

    def run() -> None:
        with SecondThread[int, None](work) as second:
            second.give(1)
            second.give(2)
            second.take()

    for _ in range(5):
        try:
            with exits_by_timer(0.013):
                try:
                    run()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    exits.append(not working)
        except SystemExit:
            pass
        wait_until(lambda: not any(thread.name == "data" for thread in threading.enumerate()), "it has ended")
    assert exits == [True] * 5
