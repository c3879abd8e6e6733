"""Job control for storage. `jobvisor.aio` has the same names with coroutines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobvisor.client import Client
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
    from jobvisor.job import Job
    from jobvisor.schedule import Mask
    from jobvisor.states import Cause, State, Verb
    from jobvisor.stream import Event, EventStream
    from jobvisor.supervisor import Supervisor

__version__ = "0.1.0"

_MODULES = {
    "client": "Client",
    "errors": (
        "Busy ConfigError HomeInUse HomeUnusable JobAborted JobFailed JobvisorError JournalError KeyReused NoSuchJob "
        "NotPermitted Unreachable UsageError WaitTimeout WrongHold WrongState"
    ),
    "stream": "Event EventStream",
    "config": "Setting",
    "hold": "Hold",
    "info": "DaemonInfo EndedBy JobInfo Parameter",
    "job": "Job",
    "schedule": "Mask",
    "states": "Cause State Verb",
    "supervisor": "Supervisor",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

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


def __getattr__(name: str) -> Any:
    """Names are loaded when first asked for: what only lists jobs loads no supervisor."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
