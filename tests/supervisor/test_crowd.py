"""Descriptors whose news may wait."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from jobvisor.crowd import REST_EACH, Crowd
from jobvisor.pump import Pump
from jobvisor.testing import wait_until

MANY = 250


class Pipes:
    """A crowd of pipes on a pump, and how often each was called."""

    def __init__(self) -> None:
        self.pump = Pump()
        self.pump.start()
        self.ends = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(MANY)]
        self.calls: Counter[int] = Counter()
        self.crowd = self.pump.submit(lambda: Crowd(self.pump)).result()
        self.pump.submit(self.watch_all).result()

    def watch_all(self) -> None:
        for number, (read, _) in enumerate(self.ends):
            self.crowd.watch(read, lambda number=number, read=read: self.ready(number, read))  # type: ignore[misc]

    def ready(self, number: int, read: int) -> None:
        os.read(read, 4096)
        self.calls[number] += 1

    def write_to(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            os.write(self.ends[number][1], b"x")

    def close(self) -> None:
        self.pump.submit(self.crowd.close).result()
        self.pump.stop()
        for end in self.ends:
            os.close(end[0])
            os.close(end[1])


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


def test_all_news_are_told(pipes: Pipes) -> None:
    for _ in range(3):
        pipes.calls.clear()
        pipes.write_to(range(MANY))
        wait_until(lambda: len(pipes.calls) == MANY)


def test_however_often_a_descriptor_is_written_it_is_read_now_and_then(pipes: Pipes) -> None:
    begin = time.monotonic()
    while time.monotonic() < begin + 1:
        pipes.write_to([7])
        time.sleep(0.001)
    rests = (time.monotonic() - begin) / (REST_EACH * MANY)
    assert 1 <= pipes.calls[7] <= rests + 2


def test_others_do_not_wait_for_the_rest(pipes: Pipes) -> None:
    """What the pump is asked in the rest is done in it."""
    before = 0
    for _ in range(20):
        pipes.write_to([0])
        wait_until(lambda: pipes.calls[0] > before)  # noqa: B023 - waited for here
        before = pipes.calls[0]
        pipes.write_to([0])
        for _ in range(5):
            pipes.pump.submit(lambda: None).result()
        assert pipes.calls[0] == before
        wait_until(lambda: pipes.calls[0] > before)  # noqa: B023
        before = pipes.calls[0]


def test_one_may_take_another_away_and_one_that_fails_disturbs_nobody(
    pipes: Pipes, capfd: pytest.CaptureFixture[str]
) -> None:
    def tell(number: int, read: int) -> None:
        os.read(read, 4096)
        pipes.calls[number] += 1
        if number == 2 and pipes.calls[number] == 1:
            raise ValueError("a defect")
        if number == 0:
            pipes.crowd.unwatch(pipes.ends[1][0])

    pipes.ready = tell  # type: ignore[method-assign]
    pipes.pump.submit(lambda: pipes.write_to(range(4))).result()  # so that one look finds all
    wait_until(lambda: len(pipes.calls) == 3)
    assert pipes.calls[1] == 0
    assert "a defect" in capfd.readouterr().err
    pipes.write_to(range(4))
    wait_until(lambda: pipes.calls[2] == pipes.calls[3] == 2)
    assert pipes.calls[1] == 0


def test_it_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    pipes = Pipes()
    pipes.write_to([0])
    wait_until(lambda: pipes.calls[0])
    pipes.close()
    assert os.listdir("/proc/self/fd") == before
