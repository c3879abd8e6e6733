"""Jobs as a table: 80 columns are enough, what there are more goes to the names; off a terminal names are whole."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobvisor.states import State
from jobvisor_cli.sizes import show_age, show_clock, show_size
from jobvisor_cli.streams import printable

if TYPE_CHECKING:
    from jobvisor.info import JobInfo

#: (title, width where there is room, to the right, space before it)
COLUMNS = [
    ("ID", 4, True, 0),
    ("STATE", 10, False, 1),
    ("TYPE", 8, False, 1),
    ("DONE", 5, True, 1),
    ("RATE", 10, True, 2),
    ("LEFT", 5, True, 2),
    ("AGE", 5, True, 2),
]
USER = ("USER", 8, False, 2)
#: The last column is never narrower, however narrow the terminal.
NAME_LEAST = 12
#: These work now: only they have a rate and a time left.
WORKING = (State.RUNNING, State.READY)


def table(jobs: Iterable[JobInfo], now: float, width: int | None, *, users: bool = False) -> str:
    """Lines with a heading; `width`: of the terminal, None for whole names; `users`: show whose they are."""
    columns = [*COLUMNS, *([USER] if users else [])]
    listed = list(jobs)
    rows = [[title for title, *_ in columns], *(_cells(job, now, users) for job in listed)]
    needed = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
    widths = [max(least, size) for (_, least, *_), size in zip(columns, needed, strict=True)]
    names = ["RESOURCE", *(_name(job, whole=width is None) for job in listed)]
    if width is not None:
        spaces = sum(space for *_, space in columns) + 2
        if sum(widths) + spaces + max(map(columns_of, names)) > width:
            widths = needed
        names = [cut(name, max(NAME_LEAST, width - sum(widths) - spaces)) for name in names]
    lines = []
    for cells, name in zip(rows, names, strict=True):
        line = ""
        for text, size, (_, _, right, space) in zip(cells, widths, columns, strict=True):
            gap = " " * (size - columns_of(text))
            line += " " * space + (gap + text if right else text + gap)
        lines.append(f"{line}  {name}".rstrip())
    return "\n".join(lines) + "\n"


def share(info: JobInfo) -> float | None:
    """Percent done, as far as it can be known."""
    if not info.data_total:
        return None
    return min(100.0, 100 * info.data_processed / info.data_total)


def percent(info: JobInfo) -> str:
    """100 is for what is done: 99.9% until then."""
    done = share(info)
    if done is None:
        return ""
    return "100%" if done == 100 else f"{int(done * 10) / 10:.1f}%"


def label(info: JobInfo) -> str:
    """What fits beside a bar: "clone vm1.qcow2"."""
    return " ".join([info.type, *(os.path.basename(name) or name for name in info.resources[-1:])])


def named(info: JobInfo) -> str:
    """For a sentence: "job 12 (clone vm1.qcow2)"."""
    return f"job {info.id} ({label(info)})"


def remark(info: JobInfo) -> str:
    """What stands in brackets behind the name: who is in the way, or why it ended."""
    if info.state in (State.WAITING, State.QUEUED) and info.holder:
        holder = info.holder
        who = f"VM {holder.vm}" if holder.vm else f"job {holder.job}" if holder.kind == "job" else str(holder)
        return f"held by {who}"
    if info.state in (State.WAITING, State.QUEUED) and info.reason:
        return waits(info)
    if info.state is State.SUSPENDED and info.suspended_by == "outsider":
        return "by somebody else"
    return str(info.cause or "")


def waits(info: JobInfo) -> str:
    """What it waits for, and where it stands: only behind others that is worth a word."""
    place = info.place or 1
    return f"{info.reason}; {ordinal(place)} in line" if place > 1 else info.reason or ""


def ordinal(number: int) -> str:
    """2nd, 3rd, 11th."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def columns_of(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return len(text) if text.isascii() else sum(_columns(char) for char in text)


def cut(text: str, room: int) -> str:
    """With … where it was too long."""
    if columns_of(text) <= room:
        return text
    while columns_of(text) > room - 1:
        text = text[:-1]
    return f"{text}…"


def _cells(info: JobInfo, now: float, users: bool) -> list[str]:
    working = info.state in WORKING
    cells = [
        str(info.id),
        str(info.state),
        info.type,
        percent(info) or "-",
        f"{show_size(info.disk_bps)}/s" if working and info.disk_bps else "-",
        show_clock(info.time_remaining / 1000) if working and info.time_remaining is not None else "-",
        show_age(now - info.created),
    ]
    return [*cells, info.owner or str(info.owner_uid)] if users else cells


def _name(info: JobInfo, *, whole: bool) -> str:
    path = info.resources[-1] if info.resources else "-"
    name = printable(path if whole else os.path.basename(path) or path)
    more = printable(remark(info))
    return name + (f" ({more})" if more else "")


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
