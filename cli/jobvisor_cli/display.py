"""What is shown on stderr while a job runs: nothing, changes of state, or (in `bars`) a bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobvisor.states import State
from jobvisor_cli import render, streams
from jobvisor_cli.table import named, share

if TYPE_CHECKING:
    from jobvisor.info import JobInfo

#: Lines of progress (--progress always, off a terminal): not more often than this, in seconds and in percent.
LINE_SECONDS, LINE_PERCENT = 2.0, 1.0
#: Where the total is not known.
LINE_SECONDS_UNBOUNDED = 10.0
#: Gone before anybody could read of them.
UNSAID = {State.STARTING}


class Display:
    """Shows nothing, for --quiet and --json, and is what the others build on."""

    #: How often `tick` wants to be called, seconds; None: never.
    period: float | None = None

    def show(self, info: JobInfo) -> None:
        """There is news of the job."""

    def tick(self) -> None:
        """Time went by."""

    def say(self, text: str) -> None:
        """A line that is no error."""

    def stopping(self) -> None:
        """The command is about to stop, as its job has."""

    def hide(self) -> None:
        """Leave the line to the shell: the command stops or ends. The next `show` shows again."""


class Lines(Display):
    """One line per change of state."""

    def __init__(self, what: str, *, progress: bool, say: Callable[[str], None] = streams.note) -> None:
        """`what`: the subject of each line; `progress`: also say from time to time how far it is."""
        self._note = say
        self._what, self._progress = what, progress
        self._said: tuple[State, str | None] | None = None
        self._warned: set[str] = set()
        self._line_at, self._line_percent = time.monotonic(), 0.0

    def show(self, info: JobInfo) -> None:
        if not info.final:
            self.draw(info)
        self.show_warnings(info)

    def show_warnings(self, info: JobInfo) -> None:
        """Each once."""
        for text in info.warnings:
            if text not in self._warned:
                self._warned.add(text)
                self.say(f"warning: {text}")

    def draw(self, info: JobInfo) -> None:
        """Say the state, or how far it is."""
        state = info.state, info.reason
        if state != self._said and info.state not in UNSAID and not (info.state is State.QUEUED and not info.reason):
            self._said = state
            self.say(render.state_line(self._what, info))
        elif self._progress and info.state is State.RUNNING:
            self._say_progress(info)

    def say(self, text: str) -> None:
        self._note(text)

    def _say_progress(self, info: JobInfo) -> None:
        passed, percent = time.monotonic() - self._line_at, share(info)
        if percent is None:
            due = passed >= LINE_SECONDS_UNBOUNDED
        else:
            due = passed >= LINE_SECONDS and abs(percent - self._line_percent) >= LINE_PERCENT
        if due:
            self._line_at, self._line_percent = time.monotonic(), percent or 0.0
            self.say(render.progress_line(self._what, info))


class Many:
    """Several jobs: one line per change of state, or nothing at all."""

    #: How often `tick` wants to be called, seconds; None: never.
    period: float | None = None

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._lines: dict[int, Lines] = {}

    def show(self, info: JobInfo) -> None:
        """There is news of a job."""
        if not self._quiet:
            self._of(info).show(info)

    def warn(self, info: JobInfo) -> None:
        """Its warnings, each once."""
        self._of(info).show_warnings(info)

    def say(self, text: str) -> None:
        """A line above what is drawn."""
        streams.note(text)

    def tick(self) -> None:
        """Time went by."""

    def hide(self) -> None:
        """Leave the terminal to others; the next `show` shows again."""

    def _of(self, info: JobInfo) -> Lines:
        if info.id not in self._lines:
            self._lines[info.id] = Lines(named(info), progress=False, say=self.say)
        return self._lines[info.id]


def choose_many(*, quiet: bool) -> Many:
    """Bars on a terminal, else lines."""
    if is_terminal() and not quiet:
        from jobvisor_cli.bars import Bars

        return Bars()
    return Many(quiet=quiet)


def choose(what: str, *, label: str, progress: str, quiet: bool, json: bool) -> Display:
    """`progress`: auto, always or never; `label`: the subject where there is little room."""
    if quiet or (json and progress != "always"):
        return Display()
    if progress != "never" and is_terminal():
        from jobvisor_cli.bars import Bar

        return Bar(what, label)
    return Lines(what, progress=progress == "always")


def is_terminal() -> bool:
    """True when a bar can be drawn on stderr."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
