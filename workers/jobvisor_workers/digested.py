"""The digest of what a job moves, and the one that it should have."""

from __future__ import annotations

import re

from jobvisor_workers.data import digest
from jobvisor_workers.data.digest import Algorithm
from jobvisor_workers.errors import BadArgument, JobError


class Digested:
    """`state` is to be fed; None when nobody asked for a digest."""

    def __init__(self, algorithm: Algorithm | None, value: str | None, doing: str) -> None:
        """`value`: in hexadecimal; without an algorithm it is a sha256. Raises BadArgument."""
        self.algorithm = algorithm or ("sha256" if value is not None else None)
        self.state = digest.new(self.algorithm) if self.algorithm else None
        self._value, self._doing = value.lower() if value is not None else None, doing
        if self.state and self._value is not None:
            digits = 2 * self.state.digest_size
            if not re.fullmatch(f"[0-9a-f]{{{digits}}}", self._value):
                raise BadArgument(f"cannot {doing}: a {self.algorithm} has {digits} hexadecimal digits, not {value!r}")

    def check(self) -> None:
        """Raises JobError when it is another one."""
        if self.state and self._value not in (None, self.state.hexdigest()):
            raise JobError(
                f"cannot {self._doing}: its {self.algorithm} is {self.state.hexdigest()}, not {self._value}",
                result=self.result(),
            )

    def result(self) -> dict[str, str]:
        """For a job's `result`; empty without a digest."""
        if not self.state or not self.algorithm:
            return {}
        return {"algorithm": self.algorithm, "digest": self.state.hexdigest()}
