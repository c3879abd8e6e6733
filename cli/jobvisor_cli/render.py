"""A job in words, and what some results are printed as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobvisor.states import State
from jobvisor_cli.sizes import show_size, show_time
from jobvisor_cli.table import share
from jobvisor_workers.jobtype import WRITE

if TYPE_CHECKING:
    from jobvisor.info import JobInfo
    from jobvisor_workers.jobtype import JobType, Resource

#: Of which argument a job's digest is.
DIGEST_OF = {"checksum": "volume", "download": "target", "upload": "source"}


def subject(job_type: type[JobType], typed: Mapping[str, Any]) -> str:
    """The type and its volumes, as they were typed: "clone of a.raw to b.raw", "compare of a.raw and b.raw"."""
    resources = job_type.resources()
    moves = any(resource.piped for resource in resources.values())
    named = [
        (_named(resource, str(typed[field])), resource.new or (moves and resource.access is WRITE))
        for field, resource in resources.items()
        if typed.get(field)
    ]
    there = [name for name, written in named if not written]
    made = [name for name, written in named if written]
    if not named:
        return job_type.name()
    whole = f"{job_type.name()} of {' and '.join(there or made)}"
    return f"{whole} to {' and '.join(made)}" if there and made else whole


def _named(resource: Resource, name: str) -> str:
    if not resource.is_pipe(name):
        return name
    return "standard output" if resource.new else "standard input"


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


def ending(what: str, info: JobInfo, abort_effect: str | None) -> str:
    """The last line of a job that did not fail; `abort_effect`: what it last said an abort would leave.

    Job types that were interrupted in their work say it in a warning, which is not repeated.
    """
    seconds = info.time_elapsed / 1000
    if info.state is State.ABORTED:
        left = abort_effect and not any(text.endswith(abort_effect) for text in info.warnings)
        return f"{what} aborted after {show_time(seconds)}" + (f": {abort_effect}" if left else "")
    if info.result and info.result.get("dry_run"):
        return f"{what}: all checks passed; nothing was done (--dry-run)"
    measured = ""
    if info.data_processed:
        rate = f", {show_size(info.disk_bps)}/s" if info.disk_bps else ""
        measured = f" ({show_size(info.data_processed)}{rate})"
    return f"{what} completed in {show_time(seconds)}{measured}"


def digest_line(info: JobInfo, typed: Mapping[str, Any]) -> str:
    """What sha256sum would print, which `sha256sum -c` reads again; empty for jobs without a digest.

    `typed`: the arguments as the user wrote them.
    """
    digest, field = (info.result or {}).get("digest"), DIGEST_OF.get(info.type)
    if field is None or not isinstance(digest, str):
        return ""
    path = str(typed.get(field, ""))
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{digest}  {escaped}\n"
