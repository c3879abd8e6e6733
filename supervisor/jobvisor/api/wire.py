"""What requests to the API carry, as types: they check what comes in, and the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from jobvisor.asking import AFTER_MAX, PRIORITY_MAX, REASON_MAX
from jobvisor.config import Setting
from jobvisor.hold import Hold
from jobvisor.info import JobInfo
from jobvisor.states import State
from jobvisor_workers.protocol import OnConflict
from jobvisor_workers.resources import uri

#: SQLite's integers, and what a JSON reader with 64 bits can hold.
INT_MAX = 2**63 - 1

#: For the document alone: the supervisor says it better when a word is no state.
STATES = "|".join(State)

#: What a resource may look like: nothing is relative to where the daemon happens to be.
PATH_OR_VOLUME = rf"^(/[^\x00]*|{uri.VOLUME_PATTERN})$"
ANY_RESOURCE = rf"^(/[^\x00]*|{uri.VOLUME_PATTERN}|{uri.POOL_PATTERN})$"
Id = Annotated[int, Meta(ge=1, le=INT_MAX, description="a job's id")]
ResourceName = Annotated[
    str, Meta(pattern=ANY_RESOURCE, max_length=4096, description="an absolute path, vol://POOL/VOLUME or pool://POOL")
]
Uri = Annotated[
    str,
    Meta(
        pattern=r"^[^\x00]+$",
        max_length=4096,
        description="libvirt's connection URI for the names vol:// and pool://; qemu:///system of root's, "
        "qemu:///session of others by default",
    ),
]
#: The end of the year 9999, behind which Python knows no time.
LAST_MOMENT = 253402300799.0
Moment = Annotated[float, Meta(ge=0, le=LAST_MOMENT, description="seconds since the epoch")]
TypeName = Annotated[str, Meta(min_length=1, max_length=100)]


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A request says nothing that would be silently ignored."""


class Start(Strict):
    """A job to be started: its type with its arguments, and what can be said of a job of any type."""

    job: Annotated[dict[str, Any], Meta(description="`type`, and the arguments of that job type")]
    on_conflict: OnConflict = "queue"
    bandwidth: Annotated[int, Meta(ge=1, le=INT_MAX, description="at most so many bytes per second")] | None = None
    time_limit: Annotated[float, Meta(gt=0, lt=1e9, description="seconds from the worker's start")] | None = None
    dry_run: bool = False
    nice: Annotated[int, Meta(ge=-20, le=19)] | None = None
    ionice: Annotated[str, Meta(pattern="^(idle|best-effort)$")] | None = None
    connect: Uri | None = None
    after: (
        Annotated[
            list[Annotated[str, Meta(pattern=r"^((ok|any|failed):)?[1-9][0-9]{0,17}$")]],
            Meta(max_length=AFTER_MAX, description="jobs that are to complete, to end, or not to complete before"),
        ]
        | None
    ) = None
    priority: Annotated[
        int, Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX, description="the higher one goes first; above 0 for root")
    ] = 0
    queue_limit: Annotated[float, Meta(gt=0, lt=1e9, description="seconds in the queue")] | None = None
    umask: Annotated[
        int, Meta(ge=0, le=0o777, description="of the new files; by default only their owner may use them")
    ] = 0o077


class SetCurrent(Strict):
    id: Id


class ListQuery(Strict):
    """Which jobs to list; all conditions hold together."""

    state: (
        Annotated[
            str,
            Meta(
                max_length=200,
                description="one or more, separated by commas",
                extra_json_schema={"pattern": f"^({STATES})(,({STATES}))*$"},
            ),
        ]
        | None
    ) = None
    type: TypeName | None = None
    resource: ResourceName | None = None
    since: Moment | None = None
    limit: Annotated[int, Meta(ge=0, le=INT_MAX, description="the newest so many")] | None = None
    all_users: Annotated[bool, Meta(description="not only one's own; for root")] = False


class ForgetQuery(Strict):
    before: Moment | None = None


class VerbQuery(Strict):
    wait: Annotated[bool, Meta(description="answer when it is true, not when it is requested")] = True


class AbortQuery(VerbQuery):
    force: Annotated[bool, Meta(description="SIGKILL now")] = False


class WaitQuery(Strict):
    until: (
        Annotated[
            str,
            Meta(
                max_length=20, description="by default the end", extra_json_schema={"pattern": f"^({STATES}|checked)$"}
            ),
        ]
        | None
    ) = msgspec.field(name="for", default=None)
    timeout: Annotated[float, Meta(ge=0, le=60, description="answer after so many seconds in any case")] = 50.0


class LogQuery(Strict):
    offset: Annotated[int, Meta(ge=0, le=INT_MAX, description="bytes to leave out")] = 0
    follow: Annotated[bool, Meta(description="go on until the job has ended")] = False


class EventsQuery(Strict):
    since: Annotated[int, Meta(ge=0, le=INT_MAX, description="deliver first what came after this number")] | None = None
    jobs: (
        Annotated[str, Meta(pattern=r"^\d{1,19}(,\d{1,19}){0,999}$", description="ids, separated by commas")] | None
    ) = None
    progress: Annotated[float, Meta(ge=0, le=10, description="reports of progress per second, 0 for none")] = 2.0
    all_users: Annotated[bool, Meta(description="not only one's own; for root")] = False


class MaskQuery(Strict):
    resource: ResourceName
    connect: Uri | None = None


class MakeHold(Strict):
    """Nothing new starts of one's own jobs, of a type, or of everybody's."""

    reason: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=REASON_MAX,
            description="one line, told to who waits",
            extra_json_schema={"pattern": r"^[!-~]([ -~]*[!-~])?$"},
        ),
    ]
    type: TypeName | None = None
    all_users: Annotated[bool, Meta(description="not only one's own jobs; for root")] = False


class ReleaseQuery(Strict):
    """The words of the hold."""

    type: TypeName | None = None
    all_users: bool = False


class Empty(Strict):
    """No query."""


# --- answers ---------------------------------------------------------------------------------------------------


class Jobs(Struct):
    jobs: list[JobInfo]


class Holds(Struct):
    holds: list[Hold]


class Settings(Struct):
    settings: list[Setting]


class Types(Struct):
    types: list[dict[str, Any]]


class Current(Struct):
    id: int | None


class Forgotten(Struct):
    forgotten: int


class Pids(Struct):
    pids: dict[str, int]


class Problem(Struct, kw_only=True, omit_defaults=True):
    """RFC 9457. `code` is stable, and so are the fields that a code brings with it."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    code: str
    id: int | str | None = None
    state: str | None = None
    verb: str | None = None
    allowed: list[str] | None = None
    resource: str | None = None
    holder: dict[str, Any] | None = None
    hold: dict[str, Any] | None = None
    timeout: float | None = None
    path: str | None = None
    line: int | None = None
    key: str | None = None
