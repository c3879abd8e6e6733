"""`jobvisor run` before a user: bash with job control on a real pseudo-terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import Cli, both_ways
from support.lock_scenes import need, wait_until
from support.terminal import CTRL_C, CTRL_Z, Terminal, bash

PROMPT = r"\$ "
PERCENT = r"\d+\.\d%"


@pytest.fixture
def shell(cli: Cli) -> Iterator[Terminal]:
    need("bash", "setsid")
    with bash(cli.env, str(cli.directory)) as terminal:
        yield terminal
        if terminal.process.poll() is None:
            terminal.keys("\nexit\nexit\n")  # the second for a shell that warns of stopped jobs
            terminal.rest(20)


def job(cli: Cli, *more: str) -> str:
    return (
        " ".join([f"jobvisor run pace{cli.flag} img --until end --ticks ticks", *more])
        .replace(" end", " $PWD/end")
        .replace(" ticks", " $PWD/ticks")
    )


def direct(cli: Cli, *argv: str, columns: int = 80, term: str = "xterm-256color") -> Terminal:
    """Without a shell."""
    return Terminal(cli.argv(*argv), env={**cli.env, "TERM": term}, cwd=str(cli.directory), columns=columns)


def end(cli: Cli) -> None:
    Path(cli.path("end")).touch()


def still(cli: Cli) -> bool:
    """The job does nothing while the shell does something."""
    return cli.state(cli.worker()) == "T"


def drawn(text: str) -> list[str]:
    """The lines that were drawn, without colours and movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@both_ways
def test_interrupt_ends_a_loop_of_the_shell(cli: Cli, shell: Terminal) -> None:
    shell.keys(f"for i in 1 2 3; do {job(cli)}; echo next-$i; done; echo out-$?\n")
    shell.expect(PERCENT)
    shell.keys(CTRL_C)
    shell.expect(r"pace of img aborted after")
    shell.expect(PROMPT)
    shell.keys("echo code $?\n")
    shell.expect(r"\ncode 130")
    assert "next-1" not in shell.seen.partition("aborted after")[2]
    cli.nothing_left()


@both_ways
def test_stop_and_foreground(cli: Cli, shell: Terminal) -> None:
    shell.keys("stty -g; " + job(cli) + "\n")
    modes = shell.expect(r"[0-9a-f]+(:[0-9a-f]+){20,}").group()
    shell.expect(PERCENT)
    shell.keys(CTRL_Z)
    shell.expect(r"suspended; fg or bg lets it go on")
    shell.expect(r"Stopped")
    shell.expect(PROMPT)
    assert still(cli), "suspended before the prompt is back"
    shell.keys("stty -g\n")
    assert shell.expect(r"[0-9a-f]+(:[0-9a-f]+){20,}").group() == modes
    ticks = cli.ticks()
    shell.keys("fg\n")
    shell.expect(PERCENT)
    wait_until(lambda: cli.ticks() > ticks, "the job goes on")
    end(cli)
    shell.expect(r"pace of img completed in")
    shell.expect(PROMPT)
    cli.nothing_left()


@both_ways
def test_background_draws_nothing_and_foreground_draws_again(cli: Cli, shell: Terminal) -> None:
    shell.keys(job(cli) + "\n")
    shell.expect(PERCENT)
    shell.keys(CTRL_Z)
    shell.expect(r"Stopped")
    shell.expect(PROMPT)
    ticks = cli.ticks()
    shell.keys("bg\n")
    shell.expect(r"\[1\]\+ jobvisor")
    shell.expect(PROMPT)
    start = len(shell.seen)
    wait_until(lambda: cli.ticks() > ticks + 200, "the job goes on for longer than a bar waits")
    shell.keys("echo undisturbed\n")
    shell.expect(r"\nundisturbed")
    assert not re.search(PERCENT, shell.seen[start:])
    shell.keys("fg\n")
    shell.expect(PERCENT)
    shell.keys(CTRL_C)
    shell.expect(r"aborted after")
    shell.expect(PROMPT)
    cli.nothing_left()


@both_ways
def test_a_job_begun_in_the_background_is_silent_until_its_end(cli: Cli, shell: Terminal) -> None:
    shell.keys(job(cli) + " &\n")
    shell.expect(PROMPT)
    cli.working()
    start = len(shell.seen)
    ticks = cli.ticks()
    wait_until(lambda: cli.ticks() > ticks + 150, "the job goes on")
    end(cli)
    shell.expect(r"pace of img completed in")
    assert not re.search(PERCENT, shell.seen[start:])
    cli.nothing_left()


@both_ways
def test_killing_a_stopped_job_from_the_shell(cli: Cli, shell: Terminal) -> None:
    shell.keys(job(cli, "--progress", "never") + "\n")
    shell.expect(r"pace of img: running")
    cli.working()
    shell.keys(CTRL_Z)
    shell.expect(r"pace of img: suspended")
    shell.expect(r"Stopped")
    shell.expect(PROMPT)
    shell.keys("kill %1\n")
    shell.expect(r"aborted after")
    cli.nothing_left()

    def told() -> bool:
        """Bash tells of it before the first prompt after it noticed."""
        shell.keys("\n")
        shell.expect(PROMPT)
        return "Terminated" in shell.seen

    wait_until(told, "bash has seen what it died of")


@both_ways
def test_closing_the_terminal_lets_the_job_go_on(cli: Cli) -> None:
    with bash(cli.env, str(cli.directory)) as terminal:
        terminal.keys(job(cli, "--target", "new") + "\n")
        terminal.expect(PERCENT)
        terminal.hang_up()
        wait_until(lambda: not any(name == "jobvisor" for name in cli.processes().values()), "the command has left")
        cli.working()
        end(cli)
        cli.nothing_left()
    assert os.path.exists(cli.path("new"))


@both_ways
def test_two_interrupts_leave_at_once(cli: Cli, shell: Terminal) -> None:
    shell.keys(job(cli, "--linger", "$PWD/gate") + "\n")
    shell.expect(PERCENT)
    shell.keys(CTRL_C)
    shell.expect("aborting…")
    shell.keys(CTRL_C)
    pid = int(shell.expect(r"detached: job 1 \(pid (\d+)\) is still being aborted").group(1))
    shell.expect(PROMPT)
    assert pid in cli.processes()
    Path(cli.path("gate")).touch()
    cli.nothing_left()


@both_ways
@pytest.mark.parametrize("columns", [24, 40, 60, 80, 200])
def test_the_bar_fits_the_terminal(cli: Cli, columns: int) -> None:
    name = "a volume whose name is rather long, with ümläuts and 全角.qcow2"
    os.rename(cli.path("img"), cli.path(name))
    argv = ["run", "pace", name, "--until", cli.path("end"), "--warns", "mind", "--chunk", "4M"]
    with direct(cli, *argv, columns=columns) as terminal:
        terminal.expect(r"warning: mind\r\n")
        for _ in range(3):
            terminal.expect(PERCENT)
        end(cli)
        text = terminal.rest()
    bars = [line for line in drawn(text) if re.search(PERCENT, line)]
    assert bars
    widths = [sum(2 if ord(char) > 0x2E80 else 1 for char in line) for line in bars]
    assert max(widths) < columns, bars
    assert max(widths) > columns // 2, bars
    assert all(line.startswith("pace a") for line in bars)
    assert "\x1b[?25l" not in text, "the cursor is never hidden, so that nothing need give it back"
    assert drawn(text)[-1].startswith("pace of a volume") or columns < 80


@both_ways
def test_what_is_unknown_is_not_shown(cli: Cli) -> None:
    with direct(cli, "run", "pace", "img", "--until", cli.path("end"), "--total", "0") as terminal:
        terminal.expect(r"MiB/s")
        end(cli)
        text = terminal.rest()
    assert "%" not in "".join(drawn(text))
    assert "left" not in text


@both_ways
def test_the_bar_is_gone_when_the_last_line_comes(cli: Cli) -> None:
    with direct(cli, "run", "pace", "img", "--until", cli.path("end")) as terminal:
        terminal.expect(PERCENT)
        end(cli)
        text = terminal.rest()
    last = text[: text.index("pace of img completed")]
    assert re.search(r"\x1b\[2K[^%]*$", last), "its line was erased"


@both_ways
@pytest.mark.parametrize(
    ("options", "term"),
    [([], "dumb"), (["--progress", "never"], "xterm"), (["--json"], "xterm"), (["-q"], "xterm")],
)
def test_where_no_bar_is_to_be_there_is_none(cli: Cli, options: list[str], term: str) -> None:
    argv = ["run", "pace", "img", "--until", cli.path("end"), "--ticks", cli.path("ticks"), *options]
    with direct(cli, *argv, term=term) as terminal:
        cli.working()
        end(cli)
        text = terminal.rest()
    assert "━" not in text
    assert "\x1b" not in text
    assert terminal.process.returncode == 0


@both_ways
def test_a_result_on_a_terminal_stands_on_a_line_of_its_own(cli: Cli) -> None:
    with direct(cli, "run", "checksum", "img") as terminal:
        text = terminal.rest()
    assert re.fullmatch(r"[0-9a-f]{64}  img", drawn(text)[-1])
    assert drawn(text)[-2].startswith("checksum of img completed in ")
