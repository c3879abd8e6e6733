"""Descriptors whose news may wait: of many pipes each is read a few times a second, however often it is written."""

from __future__ import annotations

import select
from collections.abc import Callable

from jobvisor.pump import Pump, guarded

#: After a look all are left alone for so long, per descriptor and at most, seconds: 2500 reads/s cost 2 % of a core.
REST_EACH = 0.0004
REST_MAX = 0.5
#: A shorter rest saves nothing.
REST_MIN = 0.005
#: The pump does other things after so many calls.
AT_ONCE = 128


class Crowd:
    """An epoll of its own inside the pump's: to rest is to take one descriptor from the pump. On the pump."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        self._watched = False
        self._wake()

    def watch(self, fd: int, function: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._calls[fd] = function

    def unwatch(self, fd: int) -> None:
        del self._calls[fd]
        self._epoll.unregister(fd)

    def close(self) -> None:
        if self._watched:
            self._pump.unwatch(self._epoll.fileno())
        self._epoll.close()

    def _wake(self) -> None:
        if not self._epoll.closed:
            self._watched = True
            self._pump.watch(self._epoll.fileno(), self._look)

    def _look(self) -> None:
        ready = self._epoll.poll(0, AT_ONCE)
        for fd, _ in ready:
            call = self._calls.get(fd)
            if call:  # else one before it took this one away
                guarded(call)
        rest = min(REST_MAX, REST_EACH * len(self._calls))
        if len(ready) < AT_ONCE and rest >= REST_MIN:
            self._watched = False
            self._pump.unwatch(self._epoll.fileno())
            self._pump.later(rest, self._wake)
