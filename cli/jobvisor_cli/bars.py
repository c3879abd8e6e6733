"""The bar on a terminal. Imported only when one is drawn: rich costs as much as the rest of the command line."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobvisor.info import JobInfo
from jobvisor.states import State
from jobvisor_cli.display import Lines, Many
from jobvisor_cli.sizes import show_clock, show_size
from jobvisor_cli.streams import printable
from jobvisor_cli.table import label, share

#: Seconds between two drawings: fast enough to look alive, slow enough for a serial line.
PERIOD = 0.1
#: Columns from which on there is room for the rate, and for the time left.
ROOM_FOR_RATE, ROOM_FOR_LEFT = 60, 36
BAR_LEAST = 8


class ModestConsole(Console):
    """Leaves the cursor alone: a killed command could not give it back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Screen:
    """Lines at the bottom of the terminal that are drawn over and over, while the command is in the foreground."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def draw(self, content: RenderableType) -> None:
        if not in_foreground():  # the line is the shell's now; a new one is begun after fg
            self._live = None
            return
        try:
            if self._live is None:
                self._live = Live(
                    content,
                    console=ModestConsole(file=sys.stderr, highlight=False, markup=False),
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            self._live.update(content, refresh=True)
        except OSError:  # the terminal is gone; a SIGHUP says what follows from that
            self._live = None

    def clear(self) -> None:
        """Leave the lines to others; the next `draw` begins anew."""
        if self._live and in_foreground():
            try:
                self._live.stop()
            except OSError:
                pass
        self._live = None


class Bar(Lines):
    """The bar of one job; warnings stay above it."""

    period: float | None = 0.5

    def __init__(self, what: str, label: str) -> None:
        super().__init__(what, progress=False)
        self._label = label
        self._screen = Screen()
        self._info: JobInfo | None = None
        self._drawn = 0.0

    def draw(self, info: JobInfo) -> None:
        changed = self._info is None or (self._info.state, self._info.phase) != (info.state, info.phase)
        self._info = info
        if changed or time.monotonic() - self._drawn >= PERIOD:
            self.tick()

    def tick(self) -> None:
        if self._info is not None and not self._info.final:
            self._drawn = time.monotonic()
            self._screen.draw(Line(self._label, self._info))

    def say(self, text: str) -> None:
        self.hide()
        super().say(text)

    def stopping(self) -> None:
        self.say("suspended; fg or bg lets it go on")

    def hide(self) -> None:
        self._screen.clear()


class Bars(Many):
    """The bars of several jobs, in the order of their ids; what is said of them stays above."""

    period: float | None = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._screen = Screen()
        self._infos: dict[int, JobInfo] = {}
        self._drawn = 0.0

    def show(self, info: JobInfo) -> None:
        before = self._infos.get(info.id)
        self._infos[info.id] = info
        self.warn(info)
        if before is None or before.state is not info.state or time.monotonic() - self._drawn >= PERIOD:
            self.tick()

    def tick(self) -> None:
        live = sorted((info for info in self._infos.values() if not info.final), key=lambda info: info.id)
        if live:
            self._drawn = time.monotonic()
            room = max(1, os.get_terminal_size(2).lines - 1)
            shown = live if len(live) <= room else live[: room - 1]
            more = [Text(f"and {len(live) - len(shown)} more")] if len(shown) < len(live) else []
            self._screen.draw(Group(*(Line(f"{info.id} {label(info)}", info) for info in shown), *more))

    def say(self, text: str) -> None:
        self.hide()
        super().say(text)

    def hide(self) -> None:
        self._screen.clear()


class Line:
    """The job in the columns that there are: label, bar, and as many figures as fit."""

    def __init__(self, label: str, info: JobInfo) -> None:
        self.label, self.info = label, info

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - 1  # a character in the last column makes some terminals wrap
        info = self.info
        if info.state not in (State.STARTING, State.RUNNING, State.QUEUED):
            yield from self._words(width)
            return
        figures = self._figures(width)
        room = width - len(figures) - 2
        label = Text(self._titled(room), no_wrap=True, overflow="ellipsis")
        label_width = min(label.cell_len, max(room - BAR_LEAST - 1, room // 2))
        bar_width = room - label_width - 1
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=label_width, no_wrap=True, overflow="ellipsis")
        cells: list[Text | ProgressBar] = [label]
        if bar_width >= BAR_LEAST:
            grid.add_column(width=bar_width)
            cells.append(self._bar(bar_width))
        grid.add_column(width=len(figures), no_wrap=True)
        grid.add_row(*cells, Text(figures))
        yield grid

    def _bar(self, width: int) -> ProgressBar:
        total = self.info.data_total
        known = total is not None and total > 0
        return ProgressBar(
            total=float(total or 1) if known else None,
            completed=min(self.info.data_processed, total or 0) if known else 0,
            width=width,
            pulse=not known,
        )

    def _figures(self, width: int) -> str:
        info, percent = self.info, share(self.info)
        figures = f"{show_size(info.data_processed):>8}" if percent is None else f"{_floored(percent):5.1f}%"
        if width >= ROOM_FOR_RATE:
            figures += f" {show_size(info.disk_bps) + '/s' if info.disk_bps else '':>10}"
        if width >= ROOM_FOR_LEFT and percent is not None:
            left = "" if info.time_remaining is None else show_clock(info.time_remaining / 1000)
            figures += f" {left:>6}" + (" left" if width >= ROOM_FOR_RATE else "")
        return figures

    def _titled(self, room: int) -> str:
        phase = f" ({self.info.phase})" if self.info.phase else ""
        title = printable(self.label + phase)
        return title if len(title) + BAR_LEAST < room else printable(self.label)

    def _words(self, width: int) -> RenderResult:
        info = self.info
        words = {State.ABORTING: "aborting…", State.SUSPENDED: "suspended"}.get(info.state, str(info.state))
        if info.state is State.SUSPENDED and info.suspended_by == "outsider":
            words += " by somebody else"
        if info.state is State.WAITING and info.reason:
            words = f"waiting: {info.reason}"
        text = Text(printable(f"{self.label}: {words}"), no_wrap=True, overflow="ellipsis")
        text.truncate(width, overflow="ellipsis")
        yield text


def in_foreground() -> bool:
    """False after `bg`: the terminal's line is the shell's then."""
    try:
        return os.tcgetpgrp(2) == os.getpgrp()
    except OSError:  # no job control on this terminal
        return True


def _floored(percent: float) -> float:
    """100.0 is for what is done."""
    return int(percent * 10) / 10
