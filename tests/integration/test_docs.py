"""The documents say what is so: the page of states is what its generator makes, and all that is shown is run.

In README.md and docs/: a `console` block is typed at a real terminal, the keys ^Z and ^C included, and what it shows
must come, in its order, but for figures. A `python` block that begins with the name of a file becomes that file, and is
given to pytest if its name says so; any other is run. A `toml` block is what an installed package declares.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from jobvisor.testing import wait_until
from support.terminal import CTRL_C, CTRL_Z, Terminal, bash

ROOT = Path(__file__).resolve().parents[2]
#: Those that show something to run.
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("job-types", "library", "embedding", "locks", "testing"))]
MIB = 1 << 20
PROMPT = r"\n\$ $"
#: A bar that shows how far the job is: the time to press a key.
BAR = r"━[^\r\n]* \d+\.\d%"
KEYS = {"^C": CTRL_C, "^Z": CTRL_Z}


def test_the_page_of_states_is_up_to_date() -> None:
    generator = runpy.run_path(str(ROOT / "docs/generate_states.py"))
    assert (ROOT / "docs/states.md").read_text() == generator["page"](), "run docs/generate_states.py"


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_so(page: str, desk: Desk) -> None:
    blocks = list(blocks_of(ROOT / page))
    assert blocks, "the fences are not found any more"
    for block in blocks:
        desk.do(block)


class Block(NamedTuple):
    """A fenced block; `where` names the page and its line."""

    where: str
    language: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    content = page.read_text()
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", content, re.MULTILINE | re.DOTALL):
        line = content.count("\n", 0, found.start()) + 1
        yield Block(f"{page.name}:{line}", found[1], found[2])


class Desk:
    """A directory with the images that the documents speak of, and a terminal in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        python_path = [str(directory), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
            "JOBVISOR_HOME": str(directory / "home"),
            "LC_ALL": "C.UTF-8",
        }
        self._run("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "64M")
        self._run("qemu-io", "-c", "write -q -P 1 1M 20M", "base.qcow2")
        for name in ("old.img", "disk.raw"):
            with open(directory / name, "wb") as file:
                file.write(os.urandom(3 * MIB + 5))
                file.truncate((256 if name == "old.img" else 64) * MIB)

    def do(self, block: Block) -> None:
        match block.language:
            case "console":
                with bash(self.environment, str(self.directory), columns=200) as terminal:
                    play(block, terminal, str(self.directory))
            case "toml":
                self._declare(tomllib.loads(block.text))
            case "python" if name := re.match(r"# (\w+\.py)\n", block.text):
                (self.directory / name[1]).write_text(block.text)
                if name[1].startswith("test_"):
                    assert " passed" in self._run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", name[1])
            case "python":
                self._run(sys.executable, "-W", "error", "-c", block.text, where=block.where)

    def stop_daemon(self) -> None:
        """The one that the first command started."""
        if (self.directory / "home/run/api.sock").exists():
            self._run("jobvisor", "daemon", "--stop")

    def processes(self) -> list[int]:
        """Whatever was started here, by its environment."""
        mark = f"JOBVISOR_HOME={self.directory}".encode()
        found = []
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and mark in Path("/proc", name, "environ").read_bytes():
                    found.append(int(name))
            except OSError:
                pass
        return found

    def _declare(self, project: dict[str, dict[str, dict[str, dict[str, str]]]]) -> None:
        """What pip would have written for a package with these entry points."""
        metadata = self.directory / "documents-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: documents\nVersion: 1.0\n")
        lines = []
        for group, points in project["project"]["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {where}" for name, where in points.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")

    def _run(self, *argv: str, where: str = "") -> str:
        done = subprocess.run(
            argv, cwd=self.directory, env=self.environment, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{where}\n{done.stdout}"
        return done.stdout


def play(block: Block, terminal: Terminal, directory: str) -> None:
    """Type what the block types; the lines that it shows must come, in their order, maybe with others between them."""
    for session in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, *lines = session.splitlines()
        begin = len(terminal.seen)
        terminal.keys(command + "\n")
        for line in lines:
            if line in KEYS:
                terminal.expect(BAR)
                terminal.keys(KEYS[line])
        terminal.expect(PROMPT)
        shown = terminal.seen[begin:]
        rest = iter([without_figures(line) for line in re.split(r"[\r\n]+", shown.replace(directory, "/v"))])
        for line in lines:
            shows = line in KEYS or without_figures(line) in rest
            assert shows, f"{block.where}: {command}\ndoes not show, in this place: {line}\nbut: {shown}"


def without_figures(line: str) -> str:
    """What does not depend on the machine: no figures, no units, no bar nor what stands behind it."""
    line = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line)
    if line.isdigit():  # an exit code
        return line
    line = re.sub(r"[━╸╺].*", "━", line)
    line = re.sub(r"\b[0-9a-f]{64}\b", "DIGEST", line)
    line = re.sub(r"\d+(\.\d+)?", "0", line)
    return re.sub(r"\b(B|[KMGT]iB)\b", "B", line).rstrip()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Afterwards no process, no private home and no temporary file is left of what was shown."""
    desk = Desk(tmp_path)
    try:
        yield desk
        desk.stop_daemon()
        wait_until(lambda: not desk.processes(), 10, "the end of what was started")
    finally:
        for pid in desk.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    private = tmp_path / "home/private"
    assert not private.exists() or not os.listdir(private)
    assert not list(tmp_path.glob(".jobvisor-*"))
