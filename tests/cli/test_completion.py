"""Completion in the shells themselves, at a terminal; and that it neither starts a daemon nor waits for one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobvisor_cli import glimpse
from support.command import PROGRAM, Cli
from support.lock_scenes import need
from support.terminal import Terminal

#: How each shell is begun without the user's own files, and told of our words.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(jobvisor completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(jobvisor completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "jobvisor completion fish | source"),
}
KILL_LINE = "\x15"


class Typist:
    """Types the beginning of a line, asks for completion, and clears the line again."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def asks(self, line: str, *expected: str, tabs: int = 1) -> None:
        self._terminal.keys(line + "\t" * tabs)
        for pattern in expected:
            self._terminal.expect(pattern)
        self._terminal.keys(KILL_LINE)


@pytest.fixture(params=list(SHELLS))
def typist(cli: Cli, request: pytest.FixtureRequest) -> Iterator[Typist]:
    need(request.param, "setsid")
    argv, prepare = SHELLS[request.param]
    env = {
        **cli.env, "PS1": "> ", "PROMPT": "> ", "TERM": "xterm", "HISTFILE": "", "HOME": str(cli.directory),
        "XDG_CONFIG_HOME": cli.path("config"), "XDG_DATA_HOME": cli.path("data"), "fish_greeting": "",
    }  # fmt: skip
    with Terminal(argv, env=env, cwd=str(cli.directory), columns=120) as terminal:
        terminal.expect(r"[>#] ")
        terminal.keys(f"{prepare}; echo 're'ady\n")
        terminal.expect(r"\nready|\rready|ready\r")
        yield Typist(terminal)
        terminal.keys("exit\n")
        terminal.rest(20)


def test_words_are_completed_in_the_shell(cli: Cli, typist: Typist) -> None:
    number = cli.run("start", "pace", "img", "--until", cli.path("end")).stdout.strip()
    assert number == "1"
    typist.asks("jobvisor susp", "end")
    typist.asks("jobvisor run checks", "um")
    typist.asks("jobvisor run pace im", "g")
    typist.asks("jobvisor run clone --refl", "ink")
    typist.asks("jobvisor list --state susp", "ended")
    typist.asks("jobvisor list --sin", "ce")
    typist.asks("jobvisor suspend ", "1|current", tabs=2)
    Path(cli.path("end")).touch()
    assert cli.run("wait", number).returncode == 0


def complete(cli: Cli, words: str, shell: str = "zsh") -> list[str]:
    env = {
        **cli.env,
        "_JOBVISOR_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_jobs_are_offered_with_type_and_state_to_those_verbs_that_they_allow(cli: Cli) -> None:
    for _ in range(2):
        cli.run("start", "pace", "img", "--until", cli.path("end"))
    cli.run("abort", "2")
    assert complete(cli, "jobvisor suspend ") == ["plain", "1", "pace", "img", "running", "plain", "current", "_"]
    assert complete(cli, "jobvisor retry ")[:5] == ["plain", "2", "pace", "img", "aborted"]
    assert complete(cli, "jobvisor info ", "bash") == ["plain,2", "plain,1", "plain,current"]
    assert complete(cli, "jobvisor resume ") == []
    assert complete(cli, "jobvisor list --type pa")[1] == "pace"
    assert complete(cli, "jobvisor mask i")[0] == "file"
    assert complete(cli, "jobvisor --home x")[0] == "dir"
    cli.run("abort", "--all")


def test_no_daemon_is_started(cli: Cli) -> None:
    assert complete(cli, "jobvisor info ") == []
    assert complete(cli, "jobvisor start p")[1] == "pace"
    assert not cli.home.exists()
    assert not cli.everything()


def deaf(path: str) -> socket.socket:
    """Takes connections and says nothing."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def full(path: str) -> socket.socket:
    """Takes no more connections."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    for _ in range(2):
        waiting = socket.socket(socket.AF_UNIX)
        waiting.setblocking(False)
        try:
            waiting.connect(path)
        except BlockingIOError:
            pass
        KEPT.append(waiting)
    return listener


KEPT: list[socket.socket] = []


@pytest.mark.parametrize("way", [deaf, full])
def test_a_daemon_that_hangs_is_not_waited_for(
    tmp_path: Path, way: Callable[[str], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    monkeypatch.setenv("JOBVISOR_SOCKET", path)
    glimpse.job_items("abort", "")  # what is loaded on first use
    with way(path):
        began = time.monotonic()
        assert glimpse.job_items("abort", "") == []
        took = time.monotonic() - began
    while KEPT:
        KEPT.pop().close()
    assert took < 0.1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 500 Oh\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nnot JSON",
        b'HTTP/1.1 200 OK\r\n\r\n{"jobs": 7}',
        b"\xff",
    ],
)
def test_an_answer_that_makes_no_sense_is_no_answer(
    tmp_path: Path, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    monkeypatch.setenv("JOBVISOR_SOCKET", path)
    with deaf(path) as listener, monkeypatch.context() as patch:
        patch.setattr(glimpse, "DEADLINE", 5)
        child = os.fork()
        if child == 0:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(answer)
            os._exit(0)
        assert glimpse.job_items("abort", "") == []
        os.waitpid(child, 0)


def test_the_scripts_name_the_program() -> None:
    for shell in SHELLS:
        script = subprocess.run([PROGRAM, "completion", shell], capture_output=True, text=True, check=True).stdout
        assert re.search(r"\b_JOBVISOR_COMPLETE=" + shell, script)
