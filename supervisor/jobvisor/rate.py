"""How fast a job is: an average in which a second counts the less the longer it is ago, however often reports come."""

from __future__ import annotations

import math

#: After so many seconds a moment counts for 1/e.
MEMORY = 2.5
#: Reports that come faster than this say nothing of a rate, seconds.
LEAST = 0.05


class Rate:
    """Bytes per second; 0.0 until two reports were heard."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0
        self._last: tuple[float, int] | None = None

    def add(self, now: float, processed: int) -> None:
        """`now`: monotonic seconds; `processed`: bytes so far, less than before when it is counted anew."""
        if self._last is None or processed < self._last[1]:
            self._last = (now, processed)
            return
        passed = now - self._last[0]
        if passed > LEAST:
            kept = math.exp(-passed / MEMORY)
            # Both begin at nothing, so that their quotient is an average from the first measurement on.
            self._sum = self._sum * kept + (processed - self._last[1]) / passed * (1 - kept)
            self._weight = self._weight * kept + (1 - kept)
            self._last = (now, processed)

    def pause(self) -> None:
        """The job was stopped: the time stands still until the next report."""
        self._last = None

    @property
    def bps(self) -> float:
        return self._sum / self._weight if self._weight else 0.0
