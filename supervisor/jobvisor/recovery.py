"""What became of a job, read from its directory: life (does a worker live?), result (its word), exit (the kernel's).

Runs on the journal's thread, or before the supervisor's threads exist: it reads and writes files.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from jobvisor import partial
from jobvisor.info import EndedBy, JobInfo
from jobvisor.states import Cause, State
from jobvisor_workers import registry
from jobvisor_workers.jobtype import READ
from jobvisor_workers.protocol import (
    VOID,
    Claim,
    Commit,
    Exit,
    Life,
    Made,
    Report,
    Request,
    Result,
    Temporary,
    decode_exit,
    decode_result,
)
from jobvisor_workers.settle import claim_of, read_life, remains, settle
from jobvisor_workers.unchanged import TICK

#: Ways to be killed that are the program's own doing.
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP}
#: How much of the end of a log is kept, bytes.
LOG_KEPT = 1 << 20
POLITE = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

#: As `settle`: removes what must not stay, and returns the commit that stands.
Settling = Callable[[list[Life]], Commit | None]


class Alive(msgspec.Struct, frozen=True):
    """A worker holds the life lock; its claim may be missing for the microsecond between lock and write."""

    claim: Claim | None


class Unclaimed(msgspec.Struct, frozen=True):
    """No worker ever claimed this job."""


class Ended(msgspec.Struct, frozen=True):
    """A worker claimed the job and lives no more, or the job was declared void."""


def look(directory: str) -> Alive | Unclaimed | Ended:
    """Does a worker have this job? The kernel answers by the lock, without trust in pids."""
    try:
        life = os.open(os.path.join(directory, "life"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Unclaimed()
    try:
        fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Ended() if os.fstat(life).st_size else Unclaimed()
    except BlockingIOError:
        return Alive(claim_of(read_life(directory)))
    finally:
        os.close(life)


def void(directory: str) -> bool:
    """Make sure that no worker can claim this job any more; False when one has.

    Without it a worker that was forked before everybody died could claim and run a job that was called aborted.
    """
    life = os.open(os.path.join(directory, "life"), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(life).st_size:
            return False
        os.write(life, VOID)
        os.fdatasync(life)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(life)


def left_by(directory: str) -> list[Life]:
    """The lines of a dead worker's life that say what it may have left in the file system; none if it completed."""
    result = _read(directory, "result", decode_result)
    if result and result.outcome == "completed":
        return []
    return [line for line in remains(directory) if isinstance(line, Temporary | Commit)]


def names_in(life: Iterable[Life]) -> list[str]:
    """The paths that such lines speak of."""
    found: dict[str, None] = {}
    for line in life:
        if isinstance(line, Temporary):
            found[os.path.join(line.directory, line.name)] = None
        elif isinstance(line, Commit):
            for output in line.outputs:
                found |= dict.fromkeys(os.path.join(output.directory, name) for name in output.names)
    return list(found)


def lost_by_reboot(request: Request, keys: Mapping[str, tuple[str, str]]) -> str:
    """What is true of the volumes that a job wrote when the host died, as long as no commit of it stands."""
    text = "the host was started anew while the job ran"
    try:
        resources = {} if request.dry_run else registry.get(request.type).resources()
    except registry.UnknownType:
        resources = {}
    for field, resource in resources.items():
        path = request.args.get(field)
        if not path or resource.access_with(request.args) is READ:
            continue
        key, _ = keys.get(path, ("", ""))
        if not resource.new or key.startswith("block:"):
            text += f"; {path} may be partly changed"
        else:
            text += f"; {path} was not {'replaced' if key.startswith('file:') else 'created'}"
    return text


def conclude(
    directory: str,
    base: JobInfo,
    told: Exit | None,
    *,
    asked: bool,
    late: bool = False,
    lost: str | None = None,
    settle: Settling = settle,
) -> JobInfo:
    """The final info of a job whose processes are gone.

    `told`: the zygote's notice; `asked`: an abort was requested; `late`: the time limit was over; `lost`: what to say
    if the host died under it; `settle`: with whose rights its outputs are put in order.
    """
    _shorten_log(directory)
    result = _read(directory, "result", decode_result)
    exit_ = told or _read(directory, "exit", decode_exit)
    life = remains(directory)
    commit = settle(life) if result is None or result.outcome != "completed" else None
    changes: dict[str, Any] = {"ended": exit_.ended if exit_ else _newest(directory), "pid": None, "reason": None}
    changes |= {"holder": None, "abort_effect": None, "time_remaining": None, "suspended_by": None}
    changes["place"] = None
    claim = claim_of(life)
    if exit_ and claim and exit_.pid == claim.pid:
        changes |= {"exit_status": exit_.status, "signal": exit_.signal, "rusage": exit_.rusage}
    if result:
        changes |= _progress(result)
    else:
        left = [f"its worker was killed, and left: {base.abort_effect}"] if base.abort_effect and not lost else []
        changes |= {"warnings": [*base.warnings, *left, *_perhaps_left(life)]}
    late = late or bool(exit_ and exit_.asked == "time-limit")
    changes |= _verdict(result, exit_, commit, asked=asked, late=late, lost=lost)
    if changes["state"] is State.COMPLETED:
        partial.end(directory)
    else:
        changes["partial"] = partial.told(directory)
        if changes["partial"] and exit_:
            _let_clock_tick(exit_.ended)
    if changes["state"] is State.COMPLETED and base.data_total is not None and not result:
        changes |= {"data_processed": base.data_total, "data_remaining": 0}
    started = base.started or base.created
    changes["time_elapsed"] = max(0, int((changes["ended"] - started) * 1000))
    final = msgspec.structs.replace(base, started=started, **changes)
    elapsed = final.time_elapsed / 1000
    moved = final.data_processed - final.data_continued
    bps = int(moved / elapsed) if elapsed > 0 and moved > 0 else None
    return msgspec.structs.replace(final, disk_bps=bps)


def _perhaps_left(life: Iterable[Life]) -> list[str]:
    """What a worker that was killed would have deleted itself."""
    return [
        f"{line.volume} may be left, with nothing of use in it; then: jobvisor run delete -c {line.uri} {line.volume}"
        for line in life
        if isinstance(line, Made)
    ]


def _let_clock_tick(ended: float) -> None:
    """Files are stamped by a clock that lags: a write to the partial because the job is over must be seen as later."""
    wait = ended + TICK - time.time()
    if 0 < wait <= TICK:
        time.sleep(wait)


def _progress(result: Result) -> dict[str, Any]:
    report = result.report
    return {
        "phase": report.phase,
        "data_total": report.total,
        "data_processed": report.processed,
        "data_remaining": None if report.total is None else max(0, report.total - report.processed),
        "data_continued": report.continued,
        "warnings": report.warnings,
    }


def _left(report: Report) -> str:
    """What the work in place left, as the worker last said it."""
    effect = report.abort_effect
    if effect is None:
        return ""
    # With the name of the volume, where the job type was interrupted and said so.
    return "; " + next((text for text in report.warnings if text.endswith(effect)), effect)


def _verdict(
    result: Result | None,
    exit_: Exit | None,
    commit: Commit | None,
    *,
    asked: bool,
    late: bool,
    lost: str | None,
) -> dict[str, Any]:
    asked = asked or bool(exit_ and exit_.asked == "abort")
    if result and result.outcome == "completed":
        return {"state": State.COMPLETED, "result": result.result}
    if commit and not result:
        return {"state": State.COMPLETED, "result": commit.result}
    if late:
        return _failed(Cause.TIME_LIMIT, "the time limit ended it" + (_left(result.report) if result else ""))
    if result and result.outcome == "aborted":
        sender = result.sender
        if asked or sender is None:
            return {"state": State.ABORTED}
        who = EndedBy("outsider", sender.pid, sender.uid, sender.command)
        name = signal.Signals(sender.signal).name
        text = f"{name} from pid {sender.pid} ({sender.command or 'gone'}), uid {sender.uid}"
        return {"state": State.ABORTED, "cause": Cause.OUTSIDER_SIGNAL, "ended_by": who, "errmsg": text}
    if result and result.failure:
        failure = result.failure
        if asked:  # the group's TERM may have reached a child first, whose failure the worker then told
            return {"state": State.ABORTED, "errmsg": failure.message}
        cause = Cause(failure.cause) if failure.cause in set(Cause) else Cause.ERROR  # a third party's own word
        return _failed(cause, failure.message) | {"holder": failure.holder, "result": result.result}
    if asked:
        return {"state": State.ABORTED}
    if lost:
        return _failed(Cause.HOST_REBOOT, lost)
    if exit_ is None:
        return _failed(Cause.WORKER_LOST, "the worker died while nobody watched; how is not known")
    if exit_.signal is None:
        return _failed(Cause.CRASHED, f"the worker left with status {exit_.status} and no word; see its log")
    name = signal.Signals(exit_.signal).name
    if exit_.signal in CRASHES:
        return _failed(Cause.CRASHED, f"the worker crashed ({name}); see its log")
    who = EndedBy("outsider")
    if exit_.signal in POLITE:
        return {
            "state": State.ABORTED,
            "cause": Cause.OUTSIDER_SIGNAL,
            "errmsg": f"{name} from outside",
            "ended_by": who,
        }
    if exit_.signal == signal.SIGKILL:
        return _failed(Cause.KILLED, "the worker was killed (SIGKILL) by somebody else, or for want of memory") | {
            "ended_by": who
        }
    return _failed(Cause.OUTSIDER_SIGNAL, f"the worker was ended by {name} from outside") | {"ended_by": who}


def _failed(cause: Cause, message: str) -> dict[str, Any]:
    return {"state": State.FAILED, "cause": cause, "errmsg": message}


def _read(directory: str, name: str, decode: Any) -> Any:
    """None when the file is missing or was cut off in the writing."""
    try:
        with open(os.path.join(directory, name), "rb") as file:
            return decode(file.read())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _shorten_log(directory: str) -> None:
    path = os.path.join(directory, "log")
    try:
        if os.path.getsize(path) <= LOG_KEPT:
            return
        with open(path, "r+b") as file:
            file.seek(-LOG_KEPT, os.SEEK_END)
            tail = file.read()
            file.seek(0)
            file.write(tail)
            file.truncate()
    except FileNotFoundError:
        pass


def _newest(directory: str) -> float:
    """When the directory last changed: the nearest that can be known when nobody saw the end."""
    return max((entry.stat().st_mtime for entry in os.scandir(directory)), default=os.stat(directory).st_mtime)
