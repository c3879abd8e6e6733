"""jobvisor for asyncio: the names of `jobvisor`, with coroutines in place of methods that block.

    async with aio.Supervisor(home) as supervisor:
        job = await supervisor.start(Clone("a.raw", "b.raw"))
        info = await job.wait(check=True)

Nothing runs on the loop but the await itself; several loops in several threads may use one supervisor. A coroutine that
is cancelled stops waiting and leaves the job as it is, except `start`, which may have been heard already.
"""

from jobvisor.aio.client import Client
from jobvisor.aio.job import Job
from jobvisor.aio.stream import EventStream
from jobvisor.aio.supervisor import Supervisor
from jobvisor.config import Setting
from jobvisor.errors import (
    Busy,
    ConfigError,
    HomeInUse,
    HomeUnusable,
    JobAborted,
    JobFailed,
    JobvisorError,
    JournalError,
    KeyReused,
    NoSuchJob,
    NotPermitted,
    Unreachable,
    UsageError,
    WaitTimeout,
    WrongHold,
    WrongState,
)
from jobvisor.hold import Hold
from jobvisor.info import DaemonInfo, EndedBy, JobInfo, Parameter
from jobvisor.schedule import Mask
from jobvisor.states import Cause, State, Verb
from jobvisor.stream import Event

__all__ = [
    "Busy",
    "Cause",
    "Client",
    "ConfigError",
    "DaemonInfo",
    "EndedBy",
    "Event",
    "EventStream",
    "Hold",
    "HomeInUse",
    "HomeUnusable",
    "Job",
    "JobAborted",
    "JobFailed",
    "JobInfo",
    "JobvisorError",
    "JournalError",
    "KeyReused",
    "Mask",
    "NoSuchJob",
    "NotPermitted",
    "Parameter",
    "Setting",
    "State",
    "Supervisor",
    "Unreachable",
    "UsageError",
    "Verb",
    "WaitTimeout",
    "WrongHold",
    "WrongState",
]
