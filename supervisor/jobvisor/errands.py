"""The supervisor's end of `jobvisor_workers.errand`: what it needs done with another user's rights. On the pump."""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import Any

import msgspec

from jobvisor.pool import Pool
from jobvisor.pump import Pump, Timer
from jobvisor.spawner import INLINE_MAX
from jobvisor_workers.errand import TIME
from jobvisor_workers.protocol import Commit, Life, Look, Named, Requester, Seen, Settle, Temporary, encode

#: The zygote's own limit comes first; a child that not even SIGKILL ends (D) is not waited for.
GIVE_UP = TIME + 1.0
_decode_seen = msgspec.json.Decoder(dict[str, Seen]).decode


class Errands:
    """Asks the zygote, and waits for as long as is sensible."""

    def __init__(self, pump: Pump, pool: Pool) -> None:
        self._pump, self._pool = pump, pool
        self._open: dict[int, _Answer] = {}

    def look(self, requester: Requester, volumes: list[Named]) -> Future[dict[str, Seen]]:
        """What these paths are to this user; a path that is missing in the answer could not be looked at in time."""
        return self._ask(Look(requester, volumes), _decode_seen, {})

    def settle(self, requester: Requester, life: list[Life]) -> Future[bool | None]:
        """`settle.settle` as this user: True if the commit stands. None: no answer."""
        told: list[Life] = [
            Commit(line.outputs, None) if isinstance(line, Commit) else line
            for line in life
            if isinstance(line, Commit | Temporary)
        ]
        return self._ask(Settle(requester, told), msgspec.json.Decoder(bool).decode, None)

    def close(self) -> None:
        """Nobody needs the answers any more."""
        for answer in list(self._open.values()):
            self._over(answer, b"")

    def _ask(self, errand: Look | Settle, decode: Any, otherwise: Any) -> Future[Any]:
        answer = _Answer(decode, otherwise)
        if len(encode(errand)) > INLINE_MAX:
            answer.future.set_result(otherwise)
            return answer.future
        answer.pipe, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(answer.pipe, False)
        self._open[answer.pipe] = answer
        self._pump.watch(answer.pipe, lambda: self._read(answer))
        answer.timer = self._pump.later(GIVE_UP, lambda: self._over(answer, b""))
        try:
            zygote = self._pool.ready_zygote()
        except OSError:  # no zygote can be started: the job that follows will tell
            os.close(write)
        else:
            zygote.say(errand, write)
        return answer.future

    def _read(self, answer: _Answer) -> None:
        try:
            piece = os.read(answer.pipe, 65536)
        except BlockingIOError:
            return
        answer.content += piece
        if not piece:
            self._over(answer, answer.content)

    def _over(self, answer: _Answer, content: bytes) -> None:
        if self._open.pop(answer.pipe, None) is None:
            return
        assert answer.timer
        answer.timer.drop()
        self._pump.unwatch(answer.pipe)
        os.close(answer.pipe)
        try:
            answer.future.set_result(answer.decode(content))
        except msgspec.DecodeError:
            answer.future.set_result(answer.otherwise)


class _Answer:
    """One that is waited for. `otherwise`: the result without it."""

    def __init__(self, decode: Any, otherwise: Any) -> None:
        self.decode, self.otherwise = decode, otherwise
        self.future: Future[Any] = Future()
        self.pipe = -1
        self.content = b""
        self.timer: Timer | None = None
