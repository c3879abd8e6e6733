"""A question that may take long, asked on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Asked(Generic[T]):
    """Whoever asked is told when there is an answer, and may leave before."""

    def __init__(self, question: Callable[[], T], told: Callable[[], None]) -> None:
        self.answered = False
        self._value: T | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(question, told), daemon=True).start()

    def answer(self) -> T:
        """What the question returned. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def _run(self, question: Callable[[], T], told: Callable[[], None]) -> None:
        try:
            self._value = question()
        except BaseException as error:
            self._error = error
        self.answered = True
        told()
