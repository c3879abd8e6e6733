"""`jobvisor run upload VOLUME -` and `run download VOLUME -` in real pipes."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest

from jobvisor_cli import render
from jobvisor_workers import JobType
from support.command import PROGRAM, Cli, both_ways, hear_hangups, with_daemon
from support.lock_scenes import wait_until
from support.terminal import CTRL_C, Terminal

#: Larger than all pipes and sockets on the way together.
LARGE = 24 << 20


def shell(cli: Cli, line: str, seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
    """A line of bash in which $R is `jobvisor run`."""
    flag = "" if cli.daemon else "--no-daemon"
    line = f'set -o pipefail; R() {{ local t=$1; shift; {PROGRAM} run $t {flag} "$@"; }}\n{line}'
    return subprocess.run(
        ["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
        cwd=cli.directory, env=cli.env, preexec_fn=hear_hangups,
    )  # fmt: skip


def large(cli: Cli, name: str, seed: bytes = b"") -> bytes:
    content = hashlib.shake_128(seed).digest(1 << 20) * (LARGE >> 20)
    Path(cli.path(name)).write_bytes(content)
    return content


def held(cli: Cli, content: bytes, *argv: str) -> str:
    """The last line on stderr of a command that fails, whose input does not end."""
    with subprocess.Popen(
        cli.argv(*argv), stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cli.directory, env=cli.env
    ) as command:
        assert command.stdin
        command.stdin.write(content)
        command.stdin.flush()
        assert command.wait(30) == 1
        assert command.stderr
        return command.stderr.read().decode().splitlines()[-1]


@both_ways
def test_every_byte_passes_in_both_directions(cli: Cli) -> None:
    content = bytes(range(256)) * 40_000 + b"\r\n\x04\x1a"
    Path(cli.path("a")).write_bytes(content)
    Path(cli.path("b")).touch()
    done = shell(cli, "R download a - --checksum sha256 | R upload b - --checksum md5")
    assert done.returncode == 0, done.stderr
    assert Path(cli.path("b")).read_bytes() == content
    assert done.stdout.decode() == f"{hashlib.md5(content).hexdigest()}  -\n"
    said = done.stderr.decode().splitlines()
    assert f"{hashlib.sha256(content).hexdigest()}  -" in said
    assert "download of a to standard output: running" in said
    assert "upload of standard input to b: running" in said
    assert not [line for line in said if "waiting" in line]
    done = shell(cli, "R download b -q - | cmp - a && R download -q b - --offset 5 --length 7 >c")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert Path(cli.path("c")).read_bytes() == content[5:12]


def test_progress_goes_to_stderr_and_never_into_the_data(cli: Cli) -> None:
    content = large(cli, "a")
    done = shell(cli, "R download a - --progress always --bandwidth 9MiB")
    assert done.returncode == 0
    assert done.stdout == content
    assert b"download of a to standard output: copy, " in done.stderr


@both_ways
def test_a_reader_that_has_enough_fails_the_job(cli: Cli) -> None:
    large(cli, "a")
    done = shell(cli, "R download a - | head -c 10 | wc -c; echo ${PIPESTATUS[0]}")
    assert done.stdout.split() == [b"10", b"1"]
    assert done.stderr.decode().splitlines()[-1] == "error: cannot write to standard output: Broken pipe"
    if cli.daemon:
        assert "the reader of its output left after" in cli.run("info", "1").stdout
    done = shell(cli, "R download img - >/dev/full")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "error: cannot write to standard output: No space left on device"


@both_ways
def test_an_input_of_another_length_than_said(cli: Cli) -> None:
    done = shell(cli, "head -c 100 /dev/zero | R upload img - --length 200 -q")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines()[-1] == (
        f"error: cannot upload to {cli.path('img')}: standard input ended after 100 of the 200 bytes of --length"
    )
    assert held(cli, bytes(300), "run", "upload", "img", "-", "--length", "200", "-q") == (
        f"error: cannot upload to {cli.path('img')}: standard input has more than the 200 bytes of --length"
    )


@both_ways
def test_a_job_that_fails_at_once_does_not_wait_for_its_input(cli: Cli) -> None:
    said = held(cli, b"", "run", "upload", "nix", "-")
    assert said == f"error: cannot open {cli.path('nix')}: no such file"


@both_ways
def test_an_input_that_cannot_be_read(cli: Cli) -> None:
    before = Path(cli.path("img")).read_bytes()
    done = shell(cli, "R upload img - 0>out")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "error: cannot read standard input: Bad file descriptor"
    assert Path(cli.path("img")).read_bytes() == before


@both_ways
def test_an_interrupt_that_also_ends_the_writer_is_not_the_end_of_the_input(cli: Cli) -> None:
    """^C reaches the whole pipeline."""
    before = Path(cli.path("img")).read_bytes()
    argv = " ".join(map(shlex.quote, cli.argv("run", "upload", "img", "-")))
    line = f"(head -c 65536 /dev/zero; touch sent; exec sleep 60) | {argv}"
    with subprocess.Popen(
        ["bash", "-c", line], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        cwd=cli.directory, env=cli.env, process_group=0, preexec_fn=hear_hangups,
    ) as pipeline:  # fmt: skip
        wait_until(lambda: Path(cli.path("img")).read_bytes()[:65536] == bytes(65536), "something was written")
        os.killpg(pipeline.pid, signal.SIGINT)
        _, err = pipeline.communicate(timeout=30)
    assert b"upload of standard input to img aborted after " in err
    assert b"between byte 0 and byte 65536; elsewhere it is as it was" in err
    assert Path(cli.path("img")).read_bytes()[65536:] == before[65536:]


def test_a_terminal_gets_no_data_unless_it_is_asked_for(cli: Cli) -> None:
    with Terminal(cli.argv("run", "download", "img", "-"), env=cli.env, cwd=str(cli.directory)) as terminal:
        said = terminal.rest()
    assert "standard output is a terminal; send it to a file or into a pipe" in said
    assert len(said) < 300


@with_daemon
def test_a_second_interrupt_leaves_a_reader_that_takes_nothing(cli: Cli) -> None:
    large(cli, "a")
    with Terminal(
        ["bash", "-c", f"{PROGRAM} run download a - | sleep 60"], env=cli.env, cwd=str(cli.directory)
    ) as terminal:
        terminal.expect("download")
        wait_until(lambda: "job:" in "".join(cli.processes().values()), "the job works")
        terminal.keys(CTRL_C)
        assert "aborted after" in terminal.rest()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["start", "upload", "img", "-"], "nobody would send its standard input; use jobvisor run, or the API"),
        (["start", "download", "img", "-"], "nobody would take its standard output; use jobvisor run, or the API"),
        (["run", "download", "img", "-", "--json"], "--json goes to standard output, and so does the data"),
        (["run", "download", "img", "-", "--info"], "--info goes to standard output, and so does the data"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(cli: Cli, words: list[str], why: str) -> None:
    done = cli.run(*words)
    assert done.returncode == 2
    assert why in done.stderr


@with_daemon
def test_a_retry_has_no_pipe(cli: Cli) -> None:
    assert shell(cli, "R upload img - --length 5 </dev/null").returncode == 1
    done = cli.run("retry", "1")
    assert done.returncode == 2
    assert done.stderr == "error: cannot retry job 1: its standard input is gone; use jobvisor run again\n"


@both_ways
def test_a_dry_run_takes_no_data(cli: Cli) -> None:
    done = shell(cli, "R download img - --dry-run; R upload img - --dry-run")
    assert done.returncode == 0, done.stderr
    assert b"read " in done.stdout


def test_a_job_without_volumes_is_called_by_its_type() -> None:
    class Upper(JobType, tag="upper"):
        reads_stdin: ClassVar[bool] = True

    assert render.subject(Upper, {}) == "upper"
    assert (Upper().has_stdin, Upper().has_stdout) == (True, False)
