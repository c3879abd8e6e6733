"""All that is known of a job, in one frozen value."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from jobvisor.states import Cause, State
from jobvisor_workers.protocol import Holder


class Parameter(NamedTuple):
    """A typed parameter: libvirt's name, libvirt's word for the type, the value."""

    name: str
    type: str
    value: int | float | str | bool


class EndedBy(Struct, frozen=True, omit_defaults=True):
    """Who ended a job, as far as it can be known; a pid is advice, since pids are reused."""

    by: str
    pid: int | None = None
    uid: int | None = None
    command: str = ""


class Partial(Struct, frozen=True):
    """What a job that did not complete has kept for `retry`: `done` bytes, in the file `path` or in place (None)."""

    path: str | None
    done: int


#: Names, types and order of the typed parameters; libvirt's own wherever it has one.
PARAMETERS = {
    "operation": "string",
    "job_type": "string",
    "time_elapsed": "ullong",
    "time_remaining": "ullong",
    "data_total": "ullong",
    "data_processed": "ullong",
    "data_remaining": "ullong",
    "disk_bps": "ullong",
    "success": "boolean",
    "errmsg": "string",
}


class Progress(Struct, frozen=True, omit_defaults=True):
    """What changes while a job works, of JobInfo's fields; all else changes with an event of state."""

    id: int
    phase: str | None = None
    data_total: int | None = None
    data_processed: int = 0
    data_remaining: int | None = None
    disk_bps: int | None = None
    time_elapsed: int = 0
    time_remaining: int | None = None
    abort_effect: str | None = None


class JobInfo(Struct, frozen=True, kw_only=True):
    """A job at one moment. Sizes in bytes, time_* in ms, created, started and ended in seconds since the epoch.

    `place`: of a queued job, its number in the line for what `reason` names; it is told when it is asked for.
    """

    id: int
    type: str
    state: State
    cause: Cause | None = None
    reason: str | None = None
    place: int | None = None
    holder: Holder | None = None
    phase: str | None = None
    args: dict[str, Any] = {}
    resources: list[str] = []
    connect: str | None = None
    owner: str = ""
    owner_uid: int = 0
    pid: int | None = None
    created: float
    started: float | None = None
    ended: float | None = None
    time_elapsed: int = 0
    time_remaining: int | None = None
    data_total: int | None = None
    data_processed: int = 0
    data_remaining: int | None = None
    #: Of data_processed, by the jobs that this one goes on from.
    data_continued: int = 0
    disk_bps: int | None = None
    errmsg: str | None = None
    result: dict[str, Any] | None = None
    warnings: list[str] = []
    suspended_by: str | None = None
    ended_by: EndedBy | None = None
    rusage: dict[str, float] = {}
    exit_status: int | None = None
    signal: int | None = None
    abort_effect: str | None = None
    retry_of: int | None = None
    partial: Partial | None = None
    after: list[str] = []
    priority: int = 0
    delegated: bool = False
    adopted: bool = False
    log: str = ""

    @property
    def final(self) -> bool:
        """True when the job has ended."""
        return self.state.final

    @property
    def ok(self) -> bool:
        """True when the job completed."""
        return self.state is State.COMPLETED

    @property
    def operation(self) -> str:
        return self.type

    @property
    def job_type(self) -> str:
        """Libvirt's word: bounded when the total is known, else unbounded; completed, failed, cancelled at the end."""
        match self.state:
            case State.COMPLETED:
                return "completed"
            case State.FAILED:
                return "failed"
            case State.ABORTED:
                return "cancelled"
        return "unbounded" if self.data_total is None else "bounded"

    @property
    def success(self) -> bool | None:
        """Libvirt gives it to ended jobs only."""
        return self.ok if self.final else None

    @property
    def params(self) -> list[Parameter]:
        """The typed parameters that are known now; readers ignore names they do not know."""
        found = []
        for name, word in PARAMETERS.items():
            value = getattr(self, name)
            if value is not None:
                found.append(Parameter(name, word, value))
        return found

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints: all fields, and the parameters that are not fields."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        for name in ("operation", "job_type", "success"):
            content[name] = getattr(self, name)
        return content


class DaemonInfo(Struct, frozen=True):
    """The daemon that answers. `idle_after`: it leaves after so many seconds without a job and a client."""

    version: str
    pid: int
    home: str
    socket: str
    uid: int
    started: float
    #: Live ones.
    jobs: int
    idle_after: float | None = None


encode_info = msgspec.json.Encoder().encode
decode_info = msgspec.json.Decoder(JobInfo).decode
