"""What the processes of jobvisor say to each other: JSON, one message per line or packet.

Pipe, worker → supervisor: `Report`. It is a whole snapshot each time, so that any of them may be dropped when the
pipe is full: the latest one tells everything. At most PIPE_BUF (4096) bytes: a line is written whole or not at all.

Socket, supervisor ↔ zygote (SOCK_SEQPACKET): `ToZygote` and `FromZygote` below.

Files in jobs/<id>/: request holds a `Request`, life lines of `Claim`, `Temporary` and `Commit`, result a `Result`,
exit an `Exit`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

#: Spoken by both ends of the zygote's socket; a supervisor starts its own zygote when it meets another one.
VERSION = "0.1.0"

OnConflict = Literal["queue", "wait", "fail"]
#: The phase of a worker that has its locks and runs its type's plan().
CHECKS = "checks"


class Holder(Struct, frozen=True, omit_defaults=True):
    """Who has a resource that somebody else wants."""

    kind: Literal["job", "flock", "qemu", "mount", "swap", "loop", "kernel", "process"]
    pid: int | None = None
    command: str = ""
    vm: str | None = None
    job: int | None = None
    path: str | None = None
    #: Of a job, where its supervisor tells: its type, and whose it is.
    type: str | None = None
    user: str | None = None
    suspended: bool = False

    def __str__(self) -> str:
        match self.kind:
            case "job":
                known = (self.type, self.user and f"of {self.user}", f"pid {self.pid}" if self.pid else None)
                about = ", ".join(word for word in known if word)
                return f"job {self.job}" + (f" ({about})" if about else "") + (", suspended" if self.suspended else "")
            case "qemu":
                return f"QEMU pid {self.pid}" + (f" (VM {self.vm})" if self.vm else f" ({self.command})")
            case "mount":
                return f"a mounted filesystem ({self.path})"
            case "swap":
                return "the kernel as swap space"
            case "loop":
                return f"loop device {self.path}"
            case "kernel":
                return f"the kernel ({self.command or 'mounted, swap, LVM, md or another exclusive opener'})"
        return f"pid {self.pid} ({self.command})" if self.pid else (self.command or "another process")


class Requester(Struct, frozen=True):
    """The user whom a job is for; the worker becomes that user. `user`, `home`: for its environment."""

    uid: int
    gid: int
    groups: list[int]
    user: str
    home: str


class Request(Struct, frozen=True, omit_defaults=True):
    """An accepted start: all that a worker is told. Paths are absolute."""

    id: int
    type: str
    args: dict[str, Any]
    created: float
    on_conflict: OnConflict = "queue"
    bandwidth: int | None = None
    time_limit: float | None = None
    dry_run: bool = False
    nice: int | None = None
    ionice: Literal["idle", "best-effort"] | None = None
    umask: int = 0o077
    #: Where the names vol:// and pool:// are looked up; None when there are none.
    connect: str | None = None
    #: What each declared resource was when it was accepted: path → key; the worker compares what it opened.
    resolved: dict[str, str] = {}
    retry_of: int | None = None
    #: For the supervisor alone: WHEN:ID of the jobs it comes after, its place in the queue, and how long it may wait.
    after: list[str] | None = None
    priority: int = 0
    queue_limit: float | None = None
    #: None: the user that the zygote runs as.
    requester: Requester | None = None


class Report(Struct, omit_defaults=True):
    """A worker's own word on where it is; bytes, and seconds since the epoch."""

    state: Literal["starting", "waiting", "running", "ready"] = "starting"
    phase: str | None = None
    processed: int = 0
    total: int | None = None
    holder: Holder | None = None
    reason: str | None = None
    abort_effect: str | None = None
    #: Another program does the work now, which knows neither a stop nor an end.
    delegated: bool = False
    warnings: list[str] = []
    #: Those of the processed bytes that an earlier job did.
    continued: int = 0


class Claim(Struct, tag="claim", tag_field="is"):
    """First line of life: this process is the job's worker.

    `pipe`: its descriptor of the progress pipe's read end. `at`: when it was, seconds of CLOCK_MONOTONIC of that boot.
    """

    pid: int
    pipe: int
    at: float


class Temporary(Struct, tag="temporary", tag_field="is"):
    """A name that the worker is about to make and that must not outlive it. `kept`: may do so if the job fails."""

    directory: str
    name: str
    kept: bool = False


class Made(Struct, tag="made", tag_field="is"):
    """A volume of libvirt's that is about to be made under its name, and that only the worker itself deletes again."""

    volume: str
    uri: str


class Linked(Struct, frozen=True):
    """An output about to get its name: device and inode of the file, and where it will stand."""

    directory: str
    name: str
    device: int
    inode: int
    temporary: str | None = None
    #: It takes the place of another file: once done that cannot be undone, since the other is gone.
    replaces: bool = False

    @property
    def names(self) -> list[str]:
        """The name that it is to have, and the one that it may have on the way."""
        return [self.name, self.temporary] if self.temporary else [self.name]


class Commit(Struct, tag="commit", tag_field="is"):
    """The work is done and durable. When everybody dies now: if all outputs stand the job completed, else none may."""

    outputs: list[Linked]
    result: dict[str, Any] | None


class Delegated(Struct, tag="delegated", tag_field="is"):
    """From here on another program does the work, which nobody can stop, or not any more."""

    on: bool


Life = Claim | Temporary | Made | Delegated | Commit

#: Content of a life file whose job ended before any worker claimed it: a late worker that finds it exits.
VOID = b"void\n"


class Failure(Struct, omit_defaults=True):
    """Why a job did not complete, in the worker's words."""

    cause: str
    message: str
    resource: str | None = None
    holder: Holder | None = None


class Sender(Struct, frozen=True, omit_defaults=True):
    """Who sent a signal, as the kernel told the worker; advice, not proof (pids are reused)."""

    signal: int
    pid: int
    uid: int
    command: str = ""


class Result(Struct, omit_defaults=True):
    """A worker's last word, written by the last of its atexit handlers."""

    outcome: Literal["completed", "failed", "aborted"]
    report: Report
    result: dict[str, Any] | None = None
    failure: Failure | None = None
    sender: Sender | None = None


class Exit(Struct, omit_defaults=True):
    """The kernel's word on how a worker ended, written by the zygote before it reaps."""

    pid: int
    ended: float
    status: int | None = None
    signal: int | None = None
    rusage: dict[str, float] = {}
    #: SIGKILL was sent by the zygote itself, because the grace period or the time limit was over.
    killed: bool = False
    #: What the zygote was told, or decided, before the worker ended.
    asked: Literal["abort", "time-limit"] | None = None


# --- supervisor → zygote ---------------------------------------------------------------------------------------


class Spawn(Struct, tag="spawn", tag_field="is"):
    """Fork a worker. The packet carries a memfd with the encoded request when `request` is null (EMSGSIZE)."""

    job: int
    directory: str
    request: msgspec.Raw = msgspec.Raw(b"null")
    time_limit: float | None = None
    grace: float = 10.0


class Suspend(Struct, tag="suspend", tag_field="is"):
    job: int


class Resume(Struct, tag="resume", tag_field="is"):
    job: int


class Abort(Struct, tag="abort", tag_field="is"):
    """TERM (and CONT) to the group now, KILL after `grace` seconds; force: KILL at once."""

    job: int
    grace: float
    force: bool = False


class Signal(Struct, tag="signal", tag_field="is"):
    """A signal to the worker alone (SIGUSR1: report again; SIGUSR2: complete a two-phase job)."""

    job: int
    signal: int


class Acknowledge(Struct, tag="acknowledge", tag_field="is"):
    """The end of this job was written down; the zygote may forget it."""

    job: int


class Detach(Struct, tag="detach", tag_field="is"):
    """A tied zygote goes on alone when this supervisor leaves, and removes the home at the end."""


class Named(Struct, frozen=True):
    """A path that a user named. `access`: how it is to be used; any: if only it may be opened at all."""

    path: str
    access: Literal["read", "write", "any"]
    new: bool = False


class Look(Struct, tag="look", tag_field="is"):
    """What are these to this user? The packet carries the pipe for the answer, path → Seen."""

    requester: Requester
    volumes: list[Named]


class Seen(Struct, omit_defaults=True):
    """The key of what a path stands for, or why there is none; `denied`: because the user may not use it so."""

    key: str | None = None
    error: str = ""
    denied: bool = False


class Settle(Struct, tag="settle", tag_field="is"):
    """Settle what a dead worker of this user left. The packet carries the pipe for the answer, true or false."""

    requester: Requester
    life: list[Life]


ToZygote = Spawn | Suspend | Resume | Abort | Signal | Acknowledge | Detach | Look | Settle

# --- zygote → supervisor ---------------------------------------------------------------------------------------


class Hello(Struct, tag="hello", tag_field="is"):
    """First packet. `modules`: what was imported besides entry points; another list needs another zygote."""

    pid: int
    version: str
    modules: list[str]
    jobs: list[int]


class Started(Struct, tag="started", tag_field="is"):
    """A worker was forked, or was there when the supervisor connected. Carries the pipe's read end."""

    job: int
    pid: int


class Stopped(Struct, tag="stopped", tag_field="is"):
    """Every thread of every process of the job was seen stopped."""

    job: int
    outsider: bool


class Continued(Struct, tag="continued", tag_field="is"):
    job: int
    outsider: bool


class Exited(Struct, tag="exited", tag_field="is"):
    """The whole tree is gone and jobs/<id>/exit is written."""

    job: int
    exit: Exit


class Refused(Struct, tag="refused", tag_field="is"):
    """A fork failed (EAGAIN, ENOMEM)."""

    job: int
    message: str


FromZygote = Hello | Started | Stopped | Continued | Exited | Refused

encoder = msgspec.json.Encoder()
encode = encoder.encode
decode_to_zygote = msgspec.json.Decoder(ToZygote).decode
decode_from_zygote = msgspec.json.Decoder(FromZygote).decode
decode_report = msgspec.json.Decoder(Report).decode
decode_request = msgspec.json.Decoder(Request).decode
decode_result = msgspec.json.Decoder(Result).decode
decode_exit = msgspec.json.Decoder(Exit).decode
decode_life = msgspec.json.Decoder(Life).decode
