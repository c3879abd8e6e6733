"""`jobvisor watch` and `list` before a user, on a real pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import Cli
from support.lock_scenes import need, wait_until
from support.terminal import CTRL_C, CTRL_Z, Terminal, bash

PROMPT = r"\$ "
PERCENT = r"\d+\.\d%"


@pytest.fixture
def jobs(cli: Cli) -> Iterator[Cli]:
    """Two that run, `1 pace img` and `2 pace other`, until they are told to end by `end-1` and `end-2`."""
    (cli.directory / "other").write_bytes(b"x" * 4096)
    for number, name in ((1, "img"), (2, "other")):
        start(cli, number, name)
    yield cli
    assert cli.run("abort", "--all", "--force").returncode == 0


def start(cli: Cli, number: int, name: str, *more: str) -> None:
    done = cli.run("start", "pace", name, "--until", cli.path(f"end-{number}"), "--total", "1T", *more)
    assert done.stdout == f"{number}\n"


def end(cli: Cli, number: int) -> None:
    Path(cli.path(f"end-{number}")).touch()


def direct(cli: Cli, *argv: str, columns: int = 80, lines: int = 24) -> Terminal:
    """Without a shell."""
    return Terminal(
        cli.argv(*argv),
        env={**cli.env, "TERM": "xterm-256color"},
        cwd=str(cli.directory),
        columns=columns,
        lines=lines,
    )


def drawn(text: str) -> list[str]:
    """The lines that were drawn, without colours and movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_a_bar_for_each_job_and_a_line_for_each_end(jobs: Cli) -> None:
    with direct(jobs, "watch", "1", "2") as terminal:
        for _ in range(2):
            terminal.expect(rf"1 pace img \(pace\).*━.*{PERCENT}.*\n.*2 pace other \(pace\).*━.*{PERCENT}")
        end(jobs, 1)
        terminal.expect(r"job 1 \(pace img\) completed in ")
        terminal.expect(rf"2 pace other \(pace\).*{PERCENT}")
        jobs.run("suspend", "2")
        terminal.expect(r"2 pace other: suspended")
        jobs.run("abort", "2")
        terminal.expect(r"error: job 2 \(pace other\) was aborted\r\n")
        text = terminal.rest()
    assert terminal.process.returncode == 3
    assert "\x1b[?25l" not in text, "the cursor is never hidden, so that nothing need give it back"
    assert max(map(len, drawn(text))) < 80
    assert drawn(text)[-1] == "error: job 2 (pace other) was aborted"
    tail = text[text.index("job 1 (pace img) completed") :]
    assert "1 pace img" not in re.sub(r".*completed", "", tail), "who has ended has no bar"


def test_a_job_that_is_started_meanwhile_gets_a_bar(jobs: Cli) -> None:
    with direct(jobs, "watch", "--all") as terminal:
        terminal.expect(rf"2 pace other .*{PERCENT}")
        start(jobs, 3, "img")
        terminal.expect(rf"3 pace img .*{PERCENT}")
        for number in (1, 2, 3):
            end(jobs, number)
        terminal.rest()
    assert terminal.process.returncode == 0


def test_more_jobs_than_lines(jobs: Cli) -> None:
    for number in range(3, 9):
        start(jobs, number, "img")
    with direct(jobs, "watch", "--all", lines=5) as terminal:
        terminal.expect(r"and 5 more")
        for number in range(1, 9):
            end(jobs, number)
        text = terminal.rest()
    assert "8 pace img" not in text[: text.index("completed")]
    assert text.count(" completed in ") == 8


def test_another_width_is_taken_at_once(jobs: Cli) -> None:
    with direct(jobs, "watch", "1", columns=120) as terminal:
        terminal.expect(rf"1 pace img.*{PERCENT}")
        for columns in (50, 100):
            terminal.resize(columns)
            begin = len(terminal.seen)
            for _ in range(8):
                terminal.expect(rf"1 pace img.*{PERCENT}[^\r]*")
            last = [line for line in drawn(terminal.seen[begin:]) if "%" in line][-2]
            assert columns - 15 < len(last) < columns, last
        terminal.keys(CTRL_C)
        terminal.rest()
    assert terminal.process.returncode != 0


def test_an_interrupt_ends_the_watching_alone(jobs: Cli) -> None:
    need("bash", "setsid")
    with bash(jobs.env, str(jobs.directory)) as shell:
        shell.keys("stty -g; jobvisor watch --all\n")
        modes = shell.expect(r"[0-9a-f]+(:[0-9a-f]+){20,}").group()
        shell.expect(rf"2 pace other.*{PERCENT}")
        shell.keys(CTRL_C)
        shell.expect(PROMPT)
        shell.keys("echo code $?; stty -g\n")
        shell.expect(r"\ncode 130")
        assert shell.expect(r"[0-9a-f]+(:[0-9a-f]+){20,}").group() == modes
        assert jobs.run("list", "-q", "--state", "running").stdout == "2\n1\n"
        shell.keys("exit\n")
        shell.rest()


def test_a_stop_stops_the_watching_alone(jobs: Cli) -> None:
    need("bash", "setsid")
    with bash(jobs.env, str(jobs.directory)) as shell:
        shell.keys("jobvisor watch 1\n")
        shell.expect(rf"1 pace img.*{PERCENT}")
        shell.keys(CTRL_Z)
        shell.expect(r"Stopped")
        shell.expect(PROMPT)
        assert jobs.run("list", "-q", "--state", "running").stdout == "2\n1\n"
        shell.keys("fg\n")
        shell.expect(rf"1 pace img.*{PERCENT}")
        end(jobs, 1)
        shell.expect(r"job 1 \(pace img\) completed in ")
        shell.expect(PROMPT)
        shell.keys("exit\n")
        shell.rest()


def test_closing_the_terminal_ends_the_watching_alone(jobs: Cli) -> None:
    with direct(jobs, "watch", "1") as terminal:
        terminal.expect(PERCENT)
        terminal.hang_up()
        terminal.process.wait(30)
    wait_until(lambda: "jobvisor" not in jobs.processes().values(), "the command is gone")
    assert jobs.run("list", "-q", "--state", "running").stdout == "2\n1\n"


def test_the_watching_goes_on_when_the_daemon_is_killed(jobs: Cli) -> None:
    with direct(jobs, "watch", "1", "2") as terminal:
        terminal.expect(PERCENT)
        os.kill(jobs.daemon_pid(), signal.SIGKILL)
        for number in (1, 2):
            end(jobs, number)
        text = terminal.rest()
    assert terminal.process.returncode == 0
    assert text.count(" completed in ") == 2


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_list_fits_the_terminal(jobs: Cli, columns: int) -> None:
    long = "a volume whose name is rather long, with ümläuts and 全角, so that it does not fit.qcow2"
    (jobs.directory / long).write_bytes(b"x")
    start(jobs, 3, long)
    with direct(jobs, "list", columns=columns) as terminal:
        lines = drawn(terminal.rest())
    assert [line.split()[0] for line in lines] == ["ID", "3", "2", "1"]
    widths = [sum(2 if ord(char) > 0x2E80 else 1 for char in line) for line in lines]
    assert max(widths) <= columns
    assert lines[1].endswith("…") or columns > 150
    assert str(jobs.directory) not in "".join(lines)


def test_an_empty_list_says_so_on_a_terminal(cli: Cli) -> None:
    with direct(cli, "list") as terminal:
        assert drawn(terminal.rest()) == ["no jobs now; --all also lists those that have ended"]
    with direct(cli, "list", "--all") as terminal:
        assert drawn(terminal.rest()) == ["no jobs yet"]
    with direct(cli, "list", "--failed") as terminal:
        assert drawn(terminal.rest()) == ["no such jobs"]
