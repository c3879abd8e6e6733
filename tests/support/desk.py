"""A directory with the images that the documents speak of, where what they show is done."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobvisor import autostart
from jobvisor.places import socket_of
from jobvisor.testing import wait_until
from support.transcript import Block, Shell

MIB = 1 << 20


class Desk:
    """`base.qcow2` (64 MiB, 20 of them written), `disk.raw` (64 MiB) and `old.img` (256 MiB), both nearly empty."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        python_path = [str(directory), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("COLUMNS", "LINES"))},
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
            "JOBVISOR_HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
        }
        self.run("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "64M")
        self.run("qemu-io", "-c", "write -q -P 1 1M 20M", "base.qcow2")
        for name in ("old.img", "disk.raw"):
            with open(directory / name, "wb") as file:
                file.write(os.urandom(3 * MIB + 5))
                file.truncate((256 if name == "old.img" else 64) * MIB)

    def shell(self, *, columns: int = 80) -> Shell:
        return Shell(self.environment, str(self.directory), columns=columns)

    def do(self, block: Block, shell: Shell) -> None:
        """A `console` block is typed at the shell. A `python` or `sh` block that begins with the name of a file becomes

        that file, and is given to pytest if its name says so; any other is run. A `toml` project is what an installed
        package declares.
        """
        name = re.match(r"# ([\w.]+)\n", block.text)
        match block.language:
            case "console":
                shell.play(block)
            case "toml" if "[project" in block.text:
                self._declare(tomllib.loads(block.text))
            case "python" | "sh" if name:
                (self.directory / name[1]).write_text(block.text)
                if name[1].startswith("test_"):
                    assert " passed" in self.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", name[1])
            case "python":
                self.run(sys.executable, "-W", "error", "-c", block.text, where=block.where)

    def run(self, *argv: str, where: str = "") -> str:
        """Its output; it must go well."""
        done = subprocess.run(
            argv, cwd=self.directory, env=self.environment, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{where}\n{done.stdout}"
        return done.stdout

    def stop_daemon(self) -> None:
        """The one that the first command started."""
        autostart.stop(socket_of(str(self.home)))

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


@contextmanager
def at_desk(directory: Path) -> Iterator[Desk]:
    """Afterwards no process, no private home and no temporary file is left of what was shown."""
    desk = Desk(directory)
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
    private = desk.home / "private"
    assert not private.exists() or not os.listdir(private)
    assert not list(directory.glob(".jobvisor-*"))
