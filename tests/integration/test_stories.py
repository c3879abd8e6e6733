"""docs/stories.md, each story typed at a shell of its own: what it prints must come."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest

import jobvisor
import jobvisor_cli
import jobvisor_workers
from jobvisor.testing import wait_until
from support.desk import Desk, at_desk
from support.lock_scenes import need, started
from support.transcript import BAR, Block, Shell, blocks_of

ROOT = Path(__file__).resolve().parents[2]
STORIES = {heading: blocks for heading, blocks in blocks_of(ROOT / "docs/stories.md").items() if heading}
#: Where distributions put their own Python, which has the bindings of D-Bus.
PYTHON = "/usr/bin/python3"


@contextmanager
def qemu(desk: Desk) -> Iterator[None]:
    need("qemu-system-x86_64")
    yield


@contextmanager
def jq(desk: Desk) -> Iterator[None]:
    need("jq")
    yield


@contextmanager
def killed_at_night(desk: Desk) -> Iterator[None]:
    """One job completed, the worker of the next was killed as the kernel does for want of memory."""
    desk.run("jobvisor", "run", "clone", "-q", "disk.raw", "saved.raw")
    desk.run("jobvisor", "start", "wipe", "--bandwidth", "20MiB", "disk.raw")
    desk.run("jobvisor", "wait", "2", "--for", "running")
    os.kill(json.loads(desk.run("jobvisor", "info", "2", "--json"))["pid"], signal.SIGKILL)
    wait_until(lambda: desk.run("jobvisor", "list", "--failed", "-q") == "2\n", 10, "its end")
    yield


@contextmanager
def small_disk(desk: Desk) -> Iterator[None]:
    """A filesystem of 16 MiB."""
    small = desk.directory / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M", "small", small], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no small disk: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


@contextmanager
def logind(desk: Desk) -> Iterator[None]:
    """A system bus of its own, with a mock of logind."""
    need("systemd-inhibit", "busctl", "dbus-daemon", PYTHON)
    if subprocess.run([PYTHON, "-c", "import dbusmock"], capture_output=True).returncode:
        pytest.skip("python3-dbusmock is not installed")
    address = f"unix:path={desk.directory}/bus"
    desk.environment["DBUS_SYSTEM_BUS_ADDRESS"] = address
    ask = ["busctl", "--system", "call", "org.freedesktop.login1", "/org/freedesktop/login1"]
    ask += ["org.freedesktop.login1.Manager", "ListInhibitors"]
    mock = [PYTHON, "-m", "dbusmock", "--system", "--template", str(ROOT / "tests/support/true_logind.py")]
    with ExitStack() as stack:
        stack.enter_context(started("dbus-daemon", "--session", "--nofork", f"--address={address}"))
        wait_until((desk.directory / "bus").exists, 10, "the bus")
        stack.enter_context(started(*mock, env=desk.environment))
        wait_until(lambda: not subprocess.run(ask, env=desk.environment, capture_output=True).returncode, 10, "logind")
        yield
        desk.stop_daemon()


@contextmanager
def older_version(desk: Desk) -> Iterator[None]:
    """In the directory `older`: what is here, called 0.0.9."""
    for package in (jobvisor, jobvisor_cli, jobvisor_workers):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, desk.directory / "older" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    module = desk.directory / "older/jobvisor/__init__.py"
    mine = f'__version__ = "{jobvisor.__version__}"'
    text = module.read_text()
    assert mine in text
    module.write_text(text.replace(mine, '__version__ = "0.0.9"'))
    yield


#: Heading → what is there while the story is told.
AROUND: dict[str, Callable[[Desk], AbstractContextManager[object]]] = {
    "A wipe of a disk in use": qemu,
    "A job that failed at night": killed_at_night,
    "The disk is full": small_disk,
    "The laptop is closed": logind,
    "An upgrade": older_version,
    "jq": jq,
}


def at_one_terminal(desk: Desk, blocks: list[Block], columns: int = 80) -> None:
    with desk.shell(columns=columns) as shell:
        for block in blocks:
            desk.do(block, shell)


def at_a_wide_terminal(desk: Desk, blocks: list[Block]) -> None:
    at_one_terminal(desk, blocks, 120)


def with_completion(desk: Desk, blocks: list[Block]) -> None:
    with Shell(desk.environment, str(desk.directory), columns=120, editing=True) as shell:
        for block in blocks:
            desk.do(block, shell)


def at_two_terminals(desk: Desk, blocks: list[Block]) -> None:
    with desk.shell() as one, desk.shell(columns=120) as other:
        desk.do(blocks[0], one)
        desk.do(blocks[1], other)


def at_a_terminal_that_is_closed_and_another(desk: Desk, blocks: list[Block]) -> None:
    with desk.shell() as closed:
        closed.begin(next(blocks[0].steps()))
        closed.terminal.expect(BAR)
        closed.terminal.hang_up()
        closed.terminal.process.wait(20)
    at_a_wide_terminal(desk, blocks[1:])


#: Heading → who types it where, if not all of it at one terminal of 80 columns.
TOLD: dict[str, Callable[[Desk, list[Block]], None]] = {
    "Completion": with_completion,
    "Two admins": at_two_terminals,
    "A mistyped id": at_a_wide_terminal,
    "Closing the terminal": at_a_terminal_that_is_closed_and_another,
}


@pytest.mark.parametrize("heading", STORIES)
def test_a_story_is_so(heading: str, tmp_path: Path) -> None:
    assert STORIES[heading], "no session"
    with at_desk(tmp_path) as desk, AROUND.get(heading, _nothing)(desk):
        TOLD.get(heading, at_one_terminal)(desk, STORIES[heading])


def test_no_story_is_left_out() -> None:
    assert len(STORIES) == 16
    assert AROUND.keys() | TOLD.keys() <= STORIES.keys()


def _nothing(desk: Desk) -> AbstractContextManager[object]:
    return nullcontext()
