"""A job in words: lines for people, the layout of `virsh domjobinfo`, and what some results are printed as."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobvisor.states import Cause, State
from jobvisor_cli.sizes import scaled, show_size, show_time
from jobvisor_cli.streams import printable

if TYPE_CHECKING:
    from jobvisor.info import JobInfo
    from jobvisor_workers.jobtype import JobType

#: Lines of a crashed worker's log that are shown.
LOG_LINES = 20
#: virsh pads its labels to so many columns.
LABEL = 17

ADVICE = {
    Cause.ERROR: "correct what the error names; --dry-run makes all checks without doing anything",
    Cause.BUSY: "let go of the volume, or run it again with --on-conflict wait",
    Cause.NO_SPACE: "make room, or choose a target on another filesystem, and run it again",
    Cause.IO_ERROR: "look into the kernel's log (dmesg) and at the health of the device before running it again",
    Cause.TIME_LIMIT: "run it again with a longer --time-limit",
    Cause.STALLED: "look whether the storage still answers (dmesg), and run it again",
    Cause.OOM: "free memory, or raise the memory limit, and run it again",
    Cause.CRASHED: "report it with the log above; it is a defect",
    Cause.KILLED: "see who sent it, or whether memory ran out (dmesg), and run it again",
    Cause.OUTSIDER_SIGNAL: "see who sent the signal, and run it again",
    Cause.WORKER_LOST: "run it again",
    Cause.HOST_REBOOT: "run it again",
}


def subject(job_type: type[JobType], typed: Mapping[str, Any]) -> str:
    """The type and its volumes, as they were typed: "clone of a.raw to b.raw"."""
    words = [job_type.name()]
    for field, resource in job_type.resources().items():
        if typed.get(field):
            words += ["to" if resource.new else "of", str(typed[field])]
    return " ".join(words)


def state_line(what: str, info: JobInfo) -> str:
    """A change of state that is not the end."""
    line = f"{what}: {info.state}"
    if info.reason and info.state in (State.QUEUED, State.WAITING):
        return f"{line} ({info.reason})"
    if info.state is State.SUSPENDED and info.suspended_by == "outsider":
        return f"{line} by somebody else"
    return line


def progress_line(what: str, info: JobInfo) -> str:
    """How far it is, for a log."""
    total = f" of {show_size(info.data_total)}" if info.data_total is not None else ""
    percent = share(info)
    parts = [
        f"{what}: {info.phase or info.state}",
        "" if percent is None else f"{percent:.1f} %",
        show_size(info.data_processed) + total,
        f"{show_size(info.disk_bps)}/s" if info.disk_bps else "",
    ]
    return ", ".join(part for part in parts if part)


def share(info: JobInfo) -> float | None:
    """Percent done, as far as it can be known."""
    if not info.data_total:
        return None
    return min(100.0, 100 * info.data_processed / info.data_total)


def ending(what: str, info: JobInfo, abort_effect: str | None) -> str:
    """The last line of a job that did not fail; `abort_effect`: what it last said an abort would leave."""
    seconds = info.time_elapsed / 1000
    if info.state is State.ABORTED:
        return f"{what} aborted after {show_time(seconds)}" + (f": {abort_effect}" if abort_effect else "")
    if info.result and info.result.get("dry_run"):
        return f"{what}: all checks passed; nothing was done (--dry-run)"
    measured = ""
    if info.data_processed:
        rate = f", {show_size(info.disk_bps)}/s" if info.disk_bps else ""
        measured = f" ({show_size(info.data_processed)}{rate})"
    return f"{what} completed in {show_time(seconds)}{measured}"


def failure(what: str, info: JobInfo) -> str:
    """Why it is not completed, for the one line of error."""
    if info.state is State.ABORTED:
        return f"{what} was aborted" + (f": {info.errmsg}" if info.errmsg else "")
    return info.errmsg or f"{what} failed ({info.cause})"


def digest_line(info: JobInfo, path: str) -> str:
    """What sha256sum would print, which `sha256sum -c` reads again; empty for jobs without a digest."""
    digest = (info.result or {}).get("digest")
    if info.type != "checksum" or not isinstance(digest, str):
        return ""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{digest}  {escaped}\n"


def info_page(info: JobInfo, log: str) -> str:
    """All that is known, in the layout of `virsh domjobinfo` with rows of ours below; `log`: shown when it crashed."""
    rows = [
        ("Job type", info.job_type.capitalize()),
        ("Operation", info.operation),
        ("Time elapsed", f"{info.time_elapsed:<12} ms"),
    ]
    if info.time_remaining is not None:
        rows.append(("Time remaining", f"{info.time_remaining:<12} ms"))
    if info.data_total or info.data_processed:
        for name, count in (
            ("Data processed", info.data_processed),
            ("Data remaining", info.data_remaining),
            ("Data total", info.data_total),
        ):
            if count is not None:
                rows.append((name, _virsh_size(count)))
    if info.disk_bps:
        rows.append(("Disk bandwidth", f"{_virsh_size(info.disk_bps)}/s"))
    rows += [("State", str(info.state)), ("Phase", info.phase or ""), ("Cause", str(info.cause or ""))]
    rows += [(_label(name), _word(value)) for name, value in info.args.items() if value is not None]
    told = {name: value for name, value in (info.result or {}).items() if info.args.get(name) != value}
    rows += [(f"Result {name.replace('_', ' ')}", _word(value)) for name, value in told.items()]
    rows += [("Warning", text) for text in info.warnings]
    if info.holder:
        rows.append(("Held by", str(info.holder)))
    if info.ended_by:
        who = f"pid {info.ended_by.pid} ({info.ended_by.command})" if info.ended_by.pid else info.ended_by.by
        rows.append(("Ended by", who))
    rows.append(("Error", info.errmsg or ""))
    page = "".join(f"{label + ':':<{LABEL}} {printable(text)}".rstrip() + "\n" for label, text in rows if text)
    if log and info.cause is not None:
        page += "Log:\n" + "".join(f"    {printable(line)}\n" for line in log.splitlines()[-LOG_LINES:])
    if info.cause is not None:
        advice = ADVICE[Cause.CRASHED if log and info.cause is Cause.ERROR else info.cause]
        page += f"{'Try:':<{LABEL}} {advice}\n"
    return page


def _virsh_size(count: int) -> str:
    number, unit = scaled(count)
    return f"{number:.3f} {unit}"


def _label(field: str) -> str:
    return re.sub(r"[_-]", " ", field).capitalize()


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
