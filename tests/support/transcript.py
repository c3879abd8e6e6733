"""Console sessions of the documents: what they type is typed at a real terminal, and what comes must be what they show.

A session is a shell in a directory; a page or a story may have several. In a `console` block a line that begins with a
prompt (`$ `, `alice$ `, `root# `) is typed, `> ` continues it, `^C` and `^Z` alone are keys, `<Tab>` in a typed line is
one. Every other line is what is on the screen once the next prompt is there: all of it, in this order, nothing else.
A line with a bar is drawn over and over, and gone at the end; it must have been on the screen before.

Only this may be different: figures that `VARIES` names, the directory (printed as /v), how wide a gap is, a bar and
what stands behind it. In JSON `…` behind a comma or a colon stands for what is left out.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from support.terminal import CTRL_C, CTRL_Z, Terminal

#: Figures that depend on the machine and the moment, and what is compared in their place.
VARIES = [
    (r"\d+(\.\d+)? (B|[KMGT]iB)/s", "RATE"),
    (r"\d+(\.\d+)? (ms|s|min|h)\b", "TIME"),
    (r"\b\d+:\d\d(:\d\d)?\b", "CLOCK"),
    (r"(?<!\d)\d{1,3}\.\d%", "SHARE"),
    (r"\bat \d+%", "at SHARE"),
    (r"\b(pid|PID|daemon|replaced by) \d+\b", r"\1 PID"),
    (r"^jobvisor +\d+ +\S+ +\d+ +\S+ +", "jobvisor HOLDER "),
    (r"^(\[\d\]) \d+$", r"\1 PID"),
    (r'"pid":[1-9]\d*', '"pid":PID'),
    (r'"(created|started|ended|time)":\d{10}(\.\d+)?', r'"\1":MOMENT'),
    (r'"(time_elapsed|time_remaining|data_processed|data_remaining|disk_bps)":\d+', r'"\1":FIGURE'),
    (r"\b[0-9a-f]{64}\b", "DIGEST"),
    (rf"\b(root|{re.escape(pwd.getpwuid(os.getuid()).pw_name)})(?='s |: | holds| for )", "USER"),
]
#: In pages whose figures are from larger images than those of the tests.
SIZES = (r"\d+(\.\d+)? (B|[KMGT]iB)", "SIZE")
PROMPT = re.compile(r"^((?:\w+)?[$#]) (.*)$")
KEYS = {"^C": CTRL_C, "^Z": CTRL_Z}
#: What the shell says when it is ready; no program writes it.
READY = "\x1e"
#: A bar that shows how far the job is: the time to press a key.
BAR = r"━[^\r\n]* \d+\.\d%"
BAR_LINE = re.compile(r"[━╸╺].*")
CONTROL = re.compile(r"\x1b\[([\d;?]*)([a-zA-Z])|\r|\n|\x07|[^\x1b\r\n\x07]+")


class Step(NamedTuple):
    """What is typed at a prompt, and what is on the screen behind it."""

    prompt: str
    typed: str
    shown: list[str]


class Block(NamedTuple):
    """A fenced block; `where` names the page and its line."""

    where: str
    language: str
    text: str

    def steps(self) -> Iterator[Step]:
        prompt, typed = "", ""
        shown: list[str] = []
        for line in self.text.splitlines():
            begun = PROMPT.match(line)
            if begun:
                if typed:
                    yield Step(prompt, typed, shown)
                prompt, typed, shown = begun[1], begun[2], []
            elif line.startswith("> ") and not shown:
                typed += f"\n{line[2:]}"
            else:
                shown.append(line)
        yield Step(prompt, typed, shown)


def blocks_of(page: Path) -> dict[str, list[Block]]:
    """Heading of the second level → the blocks below it, in their order; those before the first one below ""."""
    content = page.read_text()
    heading = ""
    found: dict[str, list[Block]] = {heading: []}
    for match in re.finditer(r"^## ([^\n]*)$|^```(\w+)\n(.*?)^```$", content, re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
            found[heading] = []
        else:
            line = content.count("\n", 0, match.start()) + 1
            found[heading].append(Block(f"{page.name}:{line}", match[2], match[3]))
    return found


class Shell:
    """A bash at a terminal of its own."""

    def __init__(
        self,
        environment: Mapping[str, str],
        directory: str,
        *,
        columns: int = 80,
        argv: str = "",
        editing: bool = False,
    ) -> None:
        """`argv`: words before `bash`, which make it somebody else's; `editing`: it completes at a <Tab>."""
        self.varies = VARIES
        self._editing = editing
        self.terminal = Terminal(
            [*argv.split(), "bash", "--norc", "--noprofile", *([] if editing else ["--noediting"]), "-i"],
            env={
                **environment, "PS1": READY, "PS2": READY, "TERM": "xterm-256color", "HISTFILE": "",
                "BASH_SILENCE_DEPRECATION_WARNING": "1",
            },
            cwd=directory,
            columns=columns,
        )  # fmt: skip
        self._directory = directory
        self.terminal.expect(READY)

    def play(self, block: Block) -> None:
        """Type all of a console block, and compare what comes."""
        for step in block.steps():
            self.begin(step)
            for line in step.shown:
                if line in KEYS:
                    self.terminal.expect(BAR)
                    self.terminal.keys(KEYS[line])
            self.terminal.expect(READY)
            self.compare(step, block.where)

    def begin(self, step: Step) -> None:
        """Type a command, and leave it running."""
        for number, line in enumerate(step.typed.splitlines()):
            if number:
                self.terminal.expect(READY)
            self.terminal.keys(line.replace("<Tab>", "\t") + "\n")
            # What was completed is echoed as it is then.
            echo = "" if self._editing else re.escape(line)
            self._from = self.terminal.expect(echo + "\r?\n").end()

    def compare(self, step: Step, where: str) -> None:
        """What came since `begin` with what the step shows."""
        came = self.terminal.seen[self._from :].partition(READY)[0]
        drawn, left = screen(came)
        for line in step.shown:
            if BAR_LINE.search(line):
                bars = {self._plain(each) for each in drawn}
                assert self._plain(line) in bars, f"{where}: $ {step.typed}\nnever draws: {line}\nbut: {sorted(bars)}"
        expected = [line for line in step.shown if line not in KEYS and not BAR_LINE.search(line)]
        found = [self._plain(line) for line in left]
        agrees = len(found) == len(expected) and all(map(self._matches, expected, found))
        assert agrees, f"{where}: $ {step.typed}\nshows:\n{chr(10).join(expected)}\nbut came:\n{chr(10).join(left)}"

    def _matches(self, expected: str, found: str) -> bool:
        parts = [re.escape(self._plain(part)) for part in re.split(r"(?<=[,:])…", expected)]
        return re.fullmatch(".*".join(parts), found) is not None

    def _plain(self, line: str) -> str:
        line = line.replace(self._directory, "/v")
        line = BAR_LINE.sub("━", line)
        for pattern, word in self.varies:
            line = re.sub(pattern, word, line)
        return re.sub(r"\s+", " ", line).strip()

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.terminal.process.poll():
            self.terminal.keys("\x03")
            self.terminal.keys("exit\n")
        self.terminal.__exit__(None, None, None)


def screen(text: str) -> tuple[list[str], list[str]]:
    """What a terminal makes of it: all lines that ever stood there, and those that are left at the end."""
    lines, row, column = [""], 0, 0
    drawn = []
    for match in CONTROL.finditer(text):
        if match[0] == "\n":
            drawn.append(lines[row])
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif match[0] == "\r":
            column = 0
        elif match[2] == "K":  # 2: the line, else its rest; whoever draws bars clears whole lines
            drawn.append(lines[row])
            lines[row] = "" if match[1] == "2" else lines[row][:column]
        elif match[2] == "A":
            row = max(0, row - int(match[1] or 1))
        elif match[0][0] not in "\x1b\x07":
            line = lines[row].ljust(column)
            lines[row] = line[:column] + match[0] + line[column + len(match[0]) :]
            column += len(match[0])
    drawn += lines
    while lines and not lines[-1].strip():
        lines.pop()
    return drawn, lines
