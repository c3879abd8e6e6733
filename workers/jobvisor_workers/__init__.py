"""What runs in a worker, and the kit for third-party job types.

The names are loaded when they are first asked for: a command line that only lists imports none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobvisor_workers.errors import BadArgument, Held, InputOutput, JobError, NoSpace
    from jobvisor_workers.jobtype import READ, WRITE, Access, JobType, byte_size, new_volume, volume
    from jobvisor_workers.worker import Volume, Worker

_HOMES = {
    "BadArgument": "errors",
    "Held": "errors",
    "InputOutput": "errors",
    "JobError": "errors",
    "NoSpace": "errors",
    "READ": "jobtype",
    "WRITE": "jobtype",
    "Access": "jobtype",
    "JobType": "jobtype",
    "byte_size": "jobtype",
    "new_volume": "jobtype",
    "volume": "jobtype",
    "Volume": "worker",
    "Worker": "worker",
}

__all__ = [
    "READ",
    "WRITE",
    "Access",
    "BadArgument",
    "Held",
    "InputOutput",
    "JobError",
    "JobType",
    "NoSpace",
    "Volume",
    "Worker",
    "byte_size",
    "new_volume",
    "volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
