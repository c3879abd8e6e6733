"""How a supervisor leaves its jobs, which go on."""

from __future__ import annotations

import os
import select
import time

from jobvisor.engine import Engine
from jobvisor.errors import Unreachable

#: An idle zygote ends when its supervisor leaves; so long is waited for that, seconds.
ZYGOTE_LEAVES = 5.0


def idle_zygotes(engine: Engine) -> list[int]:
    """The pidfds of the zygotes that will end with this supervisor."""
    pool, ask = engine.pool, engine.pump.submit
    deadline = time.monotonic() + ZYGOTE_LEAVES
    while ask(pool.starting).result() and time.monotonic() < deadline:
        time.sleep(0.005)
    if ask(lambda: pool.busy).result():
        return []
    found = []
    for pid in ask(pool.zygote_pids).result():
        try:
            found.append(os.pidfd_open(pid))
        except ProcessLookupError:
            pass
    return found


def await_ends(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        leaving = select.poll()  # not select, whose descriptors end at 1023
        leaving.register(pidfd, select.POLLIN)
        leaving.poll(ZYGOTE_LEAVES * 1000)
        os.close(pidfd)


def let_go(engine: Engine) -> None:
    """On the pump, last of all."""
    engine.close()
    engine.hub.close_all()
    for record in engine.records.values():
        for waiter in record.waiters:
            waiter.future.set_exception(Unreachable("this supervisor was closed; the job goes on"))
        record.waiters.clear()
    engine.errands.close()
    engine.pool.close()
