"""All about a job, in the layout of `virsh domjobinfo`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobvisor.states import Cause
from jobvisor_cli.expected import expected_lines
from jobvisor_cli.sizes import scaled, show_size
from jobvisor_cli.streams import printable
from jobvisor_cli.table import waits

if TYPE_CHECKING:
    from jobvisor.info import JobInfo

#: Lines of a crashed worker's log that are shown.
LOG_LINES = 20
#: virsh pads its labels to so many columns.
LABEL = 17

ADVICE = {
    Cause.ERROR: "correct what the error names, and {again}; --dry-run makes all checks without doing anything",
    Cause.BUSY: "let go of the volume, or run it again with --on-conflict wait",
    Cause.NO_SPACE: "make room, or choose a target on another filesystem, and {again}",
    Cause.IO_ERROR: "look into the kernel's log (dmesg) and at the health of the device, and {again}",
    Cause.TIME_LIMIT: "run it again with a longer --time-limit",
    Cause.QUEUE_LIMIT: "see with jobvisor mask who has the volume, or {again}",
    Cause.DEPENDENCY: "jobvisor info shows why the other one did not end as it should; retry that one, then {again}",
    Cause.STALLED: "look whether the storage still answers (dmesg), and {again}",
    Cause.OOM: "free memory, or raise the memory limit, and {again}",
    Cause.CRASHED: "report it with the log above; it is a defect",
    Cause.KILLED: "see who sent it, or whether memory ran out (dmesg), and {again}",
    Cause.OUTSIDER_SIGNAL: "see who sent the signal, and {again}",
    Cause.WORKER_LOST: "{again}",
    Cause.HOST_REBOOT: "{again}",
}


def info_page(info: JobInfo, log: str, *, kept: bool = True, full: bool = False) -> str:
    """What is known, with rows of ours below virsh's; of a failure also what to try.

    `log`: what the worker wrote, which only one with a defect does. `kept`: a daemon still knows the job, and can retry
    it.
    """
    rows = [*_virsh_rows(info), *_own_rows(info), *(_full_rows(info) if full else []), ("Error", info.errmsg or "")]
    page = "".join(f"{label + ':':<{LABEL}} {printable(text)}".rstrip() + "\n" for label, text in rows if text)
    if log and (full or info.cause is not None):
        page += "Log:\n" + "".join(f"    {printable(line)}\n" for line in log.splitlines()[-LOG_LINES:])
    if info.cause is not None:
        again = f"jobvisor retry {info.id}" if kept else "run it again"
        advice = ADVICE[Cause.CRASHED if log and info.cause is Cause.ERROR else info.cause].format(again=again)
        page += f"{'Try:':<{LABEL}} {advice}\n"
    return page


def raw_page(info: JobInfo) -> str:
    """The typed parameters, as `virsh domjobinfo --rawstats` prints them."""
    return "".join(f"{name}: {printable(_word(value))}\n" for name, _, value in info.params)


def _virsh_rows(info: JobInfo) -> Iterator[tuple[str, str]]:
    yield "Job type", info.job_type.capitalize()
    yield "Operation", info.operation
    yield "Time elapsed", f"{info.time_elapsed:<12} ms"
    if info.time_remaining is not None:
        yield "Time remaining", f"{info.time_remaining:<12} ms"
    if info.data_total or info.data_processed:
        yield "Data processed", _virsh_size(info.data_processed)
        if info.data_remaining is not None:
            yield "Data remaining", _virsh_size(info.data_remaining)
        if info.data_total is not None:
            yield "Data total", _virsh_size(info.data_total)
    if info.disk_bps:
        yield "Disk bandwidth", f"{_virsh_size(info.disk_bps)}/s"


def _own_rows(info: JobInfo) -> Iterator[tuple[str, str]]:
    yield "Id", str(info.id)
    yield "State", str(info.state)
    yield "Reason", "" if info.final else waits(info)
    yield "Phase", info.phase or ""
    yield "Cause", str(info.cause or "")
    for name, value in info.args.items():
        if value is not None:
            yield _label(name), _word(value)
    yield "Libvirt", info.connect or ""
    result = info.result or {}
    for line in expected_lines(result).splitlines():
        verb, _, rest = line.strip().partition(" ")
        yield f"It would {verb}" if verb != "space" else "Space", rest.strip()
    for name, value in result.items() if not result.get("dry_run") else ():
        if info.args.get(name) != value:
            yield f"Result {name.replace('_', ' ')}", _word(value)
    if info.partial:
        yield "Kept", _kept(info)
    for text in info.warnings:
        yield "Warning", text
    if info.holder:
        yield "Held by", str(info.holder)
    if info.ended_by:
        by = info.ended_by
        yield "Ended by", f"pid {by.pid} ({by.command})" if by.pid else by.by


def _full_rows(info: JobInfo) -> Iterator[tuple[str, str]]:
    yield "Owner", f"{info.owner} (uid {info.owner_uid})" if info.owner else f"uid {info.owner_uid}"
    yield "Pid", str(info.pid or "")
    for name in ("created", "started", "ended"):
        moment = getattr(info, name)
        if moment is not None:
            yield name.capitalize(), time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(moment))
    yield "Suspended by", info.suspended_by or ""
    yield "An abort leaves", "" if info.final else info.abort_effect or ""
    yield "Exit status", "" if info.exit_status is None else str(info.exit_status)
    yield "Signal", "" if info.signal is None else str(info.signal)
    for name, seconds in info.rusage.items():
        yield f"Used {name.replace('_', ' ')}", f"{seconds:g}"
    yield "After", ", ".join(info.after)
    yield "Priority", str(info.priority or "")
    yield "Retry of", "" if info.retry_of is None else f"job {info.retry_of}"
    yield "Delegated", "yes" if info.delegated else ""
    yield "Adopted", "yes" if info.adopted else ""
    yield "Log file", info.log


def _kept(info: JobInfo) -> str:
    assert info.partial
    total = f" of {show_size(info.data_total)}" if info.data_total else ""
    where = f" in {info.partial.path}" if info.partial.path else ""
    return f"{show_size(info.partial.done)}{total}{where}; jobvisor retry {info.id} goes on from there"


def _virsh_size(count: int) -> str:
    number, unit = scaled(count)
    return f"{number:.3f} {unit}"


def _label(field: str) -> str:
    return re.sub(r"[_-]", " ", field).capitalize()


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
