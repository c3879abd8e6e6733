"""Help, version, completion, errors of the command line itself, and what they cost."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jobvisor_cli import main
from jobvisor_cli.root import COMMANDS, SECTIONS
from support.command import PROGRAM, Cli

#: Runs the program and then tells what it has imported.
TELL_MODULES = """
import os, sys
from jobvisor_cli.main import main
try:
    main()
except SystemExit:
    os.write(3, " ".join(sorted(sys.modules)).encode())
"""
THIRD_PARTY = {"click", "msgspec", "typing_extensions"}
HEAVY = {"sqlite3", "asyncio", "http", "multiprocessing", "logging", "subprocess", "pathlib"}


def imported(cli: Cli, *argv: str, **env: str) -> set[str]:
    read, write = os.pipe()
    code = f"import os; os.dup2({write}, 3); {TELL_MODULES.strip()}".replace("; import", "\nimport", 1)
    with open(read, "rb") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", code, *argv],
            env={**cli.env, **env}, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=[write, 3],
        )  # fmt: skip
        os.close(write)
        content = pipe.read()
    assert content, done.stderr
    return set(content.decode().split())


def outside(modules: set[str]) -> set[str]:
    """Top-level packages that neither Python nor this project brings."""
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    return {top for top in tops if not top.startswith(("jobvisor", "_", "scratch", "sitecustomize"))}


def test_help_shows_examples_and_every_command_with_a_line(cli: Cli) -> None:
    done = cli.run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "jobvisor run clone base.qcow2 vm1.qcow2" in done.stdout
    for section, lines in SECTIONS.items():
        assert f"\n{section}:\n" in done.stdout
        for name, line in lines.items():
            assert f"\n  {name:<10}  {line}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_of_run_lists_the_types_with_a_line_each(cli: Cli) -> None:
    done = cli.run("run", "--help")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "clone Copy a volume to a new one of the same format." in lines
    assert "pace Read a volume, at the pace of a test." in lines
    assert any(line.startswith("broken (cannot be loaded: ModuleNotFoundError") for line in lines)
    assert done.returncode == 0


def test_help_of_a_type_describes_arguments_and_options_in_groups(cli: Cli) -> None:
    page = cli.run("run", "clone", "--help").stdout
    parts = ["Usage: jobvisor run clone [OPTIONS] SOURCE TARGET", "\nArguments:\n", "\nOptions of clone:\n"]
    parts += ["--reflink / --no-reflink", "\nCommon options:\n", "--on-conflict", "--help"]
    positions = [page.index(part) for part in parts]
    assert positions == sorted(positions)
    assert "  SOURCE  file or block device to copy\n" in page


def test_nothing_at_all_is_answered_with_the_help_as_an_error(cli: Cli) -> None:
    for argv in ([], ["run"]):
        done = cli.run(*argv)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: jobvisor")


def test_version(cli: Cli) -> None:
    done = cli.run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "jobvisor 0.1.0\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu"], "error: no command is called 'rnu' (did you mean run?); see jobvisor --help\n"),
        (["cancel", "7"], "error: no command is called 'cancel' (did you mean abort?); see jobvisor --help\n"),
        (["stop"], "error: no command is called 'stop' (did you mean abort or suspend?); see jobvisor --help\n"),
        (["help"], "error: no command is called 'help' (did you mean --help?); see jobvisor --help\n"),
        (["clone", "a", "b"], "error: no command is called 'clone' (did you mean run clone or start clone?); see"),
        (["vol-wipe", "a"], "error: no command is called 'vol-wipe' (did you mean run wipe or start wipe?); see"),
        (["run", "clne", "a", "b"], "error: no job type is called 'clne' (did you mean clone?); see jobvisor run"),
        (["run", "pace"], "error: missing argument SOURCE; see jobvisor run pace --help\n"),
        (["run", "pace", "img", "more"], "error: got unexpected extra argument (more); see jobvisor run pace --help\n"),
        (["run", "pace", "img", "--colour", "red"], "error: no such option: --colour (did you mean --color?); see"),
        (["run", "pace", "-odd"], "error: no such option: -o (a file whose name begins with - is given as ./-NAME)"),
        (["run", "pace", "img", "--color", "blue"], "error: --color: 'blue' is not one of 'green', 'red'; see"),
        (["run", "pace", "img", "--key", "300"], "error: --key: expected `int` <= 255; see jobvisor run pace --help\n"),
        (["run", "pace", "img", "--chunk", "0"], "error: --chunk: expected `int` >= 1; see"),
        (["run", "pace", "img", "--chunk", "10X"], "error: --chunk: '10X' is no size; write it like 10G or 512MiB"),
        (["run", "pace", ""], "error: SOURCE: expected `str` of length >= 1; see"),
        (["run", "pace", "img", "--bandwidth", "50"], "error: --bandwidth: 50 needs a unit, like 50MiB (per second)"),
        (["run", "pace", "img", "--time-limit", "soon"], "error: --time-limit: 'soon' is no time; write it like"),
        (["run", "pace", "img", "--nice", "20"], "error: --nice: 20 is not in the range -20<=x<=19; see"),
        (["run", "pace", "img", "--ionice", "realtime"], "error: --ionice: 'realtime' is not one of"),
        (["run", "pace", "img", "--on-conflict", "ask"], "error: --on-conflict: 'ask' is not one of"),
        (["run", "pace", "img", "--json", "--info"], "error: --info says nothing more with --json"),
        (["types", "paec"], "error: no job type is called 'paec' (did you mean pace?); see jobvisor types --help\n"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_exit_2(
    cli: Cli, argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, since there are many."""
    monkeypatch.setattr(sys, "argv", ["jobvisor", *argv])
    monkeypatch.setenv("JOBVISOR_HOME", str(cli.home))
    for directory in reversed(cli.env["PYTHONPATH"].split(os.pathsep)):
        monkeypatch.syspath_prepend(directory)
    assert main._run() == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not cli.home.exists(), "nothing was begun"


def test_a_wrong_command_line_as_the_shell_sees_it(cli: Cli) -> None:
    done = cli.run("run", "clne", "a", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no job type is called 'clne' (did you mean clone?); see jobvisor run --help\n"


def test_a_type_that_cannot_be_loaded_is_one_line(cli: Cli) -> None:
    done = cli.run("run", "broken", "img")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: cannot load job type broken: ModuleNotFoundError: No module named 'scratch_types_that_are_not_there'\n"
    )


@pytest.mark.parametrize("more", [[], ["--no-daemon"]])
def test_a_home_that_cannot_be_used_is_one_line(cli: Cli, more: list[str]) -> None:
    done = cli.run("--home", cli.path("img"), "run", "pace", "img", *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: cannot use {cli.path('img')}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["rnu"]])
def test_the_top_costs_click_and_nothing_else(cli: Cli, argv: list[str]) -> None:
    modules = imported(cli, *argv)
    assert outside(modules) == {"click"}
    assert not modules & HEAVY
    assert not {
        name for name in modules if name.startswith("jobvisor.") and name not in ("jobvisor.errors", "jobvisor.places")
    }
    assert "jobvisor_workers" not in modules


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        (["run", "--help"], {}),
        (["run", "clone", "--help"], {}),
        (["run", "wipe", "img", "--bandwidth", "50"], {}),
        (["types"], {}),
        ([], {"_JOBVISOR_COMPLETE": "bash_complete", "COMP_WORDS": "jobvisor run c", "COMP_CWORD": "2"}),
        ([], {"_JOBVISOR_COMPLETE": "bash_complete", "COMP_WORDS": "jobvisor run clone --re", "COMP_CWORD": "3"}),
    ],
)
def test_what_starts_no_job_loads_no_supervisor_and_no_bar(cli: Cli, argv: list[str], env: dict[str, str]) -> None:
    modules = imported(cli, *argv, **env)
    assert outside(modules) <= THIRD_PARTY
    assert "sqlite3" not in modules
    assert not modules & {"jobvisor.core", "jobvisor.supervisor", "jobvisor_cli.attached", "jobvisor_cli.bars"}


def test_a_list_of_jobs_loads_what_it_needs_and_nothing_else(cli: Cli) -> None:
    """Steadier than a stopwatch: `bench/cli.py` has that."""
    assert cli.run("start", "checksum", "img").returncode == 0
    modules = imported(cli, "list", "--all")
    assert outside(modules) <= THIRD_PARTY
    assert not modules & (HEAVY | {"json", "email", "urllib", "ssl", "dataclasses", "fractions", "difflib"})
    own = {name.rpartition("jobvisor.")[2] for name in modules if name.startswith("jobvisor")}
    assert own <= {
        "jobvisor", "asking", "autostart", "client", "errors", "face", "info", "job", "places", "states",
        "remote", "remote.address", "remote.blocking", "remote.calls", "remote.conversation", "remote.exchange",
        "remote.problems", "jobvisor_workers", "jobvisor_workers.protocol",
        *(f"jobvisor_cli{name}" for name in (
            "", ".command", ".commands", ".commands.list", ".ids", ".main", ".reach", ".root", ".sizes", ".streams",
            ".table", ".wording",
        )),
    }  # fmt: skip


def test_the_completion_of_a_job_loads_no_client(cli: Cli) -> None:
    cli.run("start", "checksum", "img")
    modules = imported(cli, _JOBVISOR_COMPLETE="bash_complete", COMP_WORDS="jobvisor info ", COMP_CWORD="2")
    assert outside(modules) == {"click"}
    assert not modules & HEAVY
    assert not {"jobvisor.client", "jobvisor.info", "jobvisor_workers"} & modules


def complete(cli: Cli, words: str) -> list[str]:
    env = {**cli.env, "_JOBVISOR_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_completion(cli: Cli) -> None:
    assert complete(cli, "jobvisor s") == ["plain,start", "plain,suspend"]
    assert len(complete(cli, "jobvisor ")) == len(COMMANDS)
    assert complete(cli, "jobvisor run cl") == ["plain,clone"]
    assert "plain,crash" in complete(cli, "jobvisor run c")
    assert "plain,--reflink" in complete(cli, "jobvisor run clone --re")
    assert complete(cli, "jobvisor run clone im") == ["file,im"]
    assert complete(cli, "jobvisor types wi") == ["plain,wipe"]


def test_completing_a_type_imports_none(cli: Cli) -> None:
    modules = imported(cli, _JOBVISOR_COMPLETE="bash_complete", COMP_WORDS="jobvisor run c", COMP_CWORD="2")
    assert not {name for name in modules if name.startswith(("jobvisor_workers.jobs.", "scratch_types"))}


def test_closed_output_is_no_traceback(cli: Cli) -> None:
    for argv in ("--help", "run clone --help", "types clone"):
        done = subprocess.run(
            ["bash", "-c", f"jobvisor {argv} | true; echo ${{PIPESTATUS[0]}}"],
            env=cli.env,
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        assert done.stdout.strip() in ("0", "141")


def test_a_full_disk_behind_stdout_is_one_line(cli: Cli) -> None:
    done = subprocess.run(["bash", "-c", "jobvisor types >/dev/full"], env=cli.env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"
