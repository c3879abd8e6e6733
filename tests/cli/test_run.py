"""`jobvisor run` to its end: what it prints where, and its exit code."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobvisor.info import JobInfo
from jobvisor.states import Cause, State
from jobvisor_cli import page, render
from jobvisor_cli.sizes import show_size
from support.command import Cli, both_ways, without_daemon
from support.lock_scenes import wait_until


@both_ways
def test_a_completed_job_says_so_on_stderr_alone(cli: Cli) -> None:
    done = cli.run("run", "pace", "img")
    assert (done.returncode, done.stdout) == (0, "")
    first, last = done.stderr.splitlines()
    assert first == "pace of img: running"
    assert last.startswith("pace of img completed in ")


@both_ways
def test_quiet_says_nothing(cli: Cli) -> None:
    done = cli.run("run", "pace", "img", "-q", "--warns", "mind the gap")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@both_ways
def test_a_warning_is_told_once_and_control_characters_do_nothing(cli: Cli) -> None:
    done = cli.run("run", "pace", "img", "--warns", "mind\nthe \x1b[31mgap")
    assert done.stderr.splitlines()[1:-1] == ["warning: mind\\nthe \\x1b[31mgap"]


@both_ways
def test_a_failed_job_is_one_line_and_exit_1(cli: Cli) -> None:
    done = cli.run("run", "pace", "img", "-q", "--fails", "cannot go on: the key is lost")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: cannot go on: the key is lost\n"


@both_ways
def test_a_missing_file_is_a_failed_job(cli: Cli) -> None:
    done = cli.run("run", "pace", "nix", "-q")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: cannot open {cli.path('nix')}: no such file\n"


@contextmanager
def a_script_that_has(cli: Cli) -> Iterator[Callable[[], None]]:
    """flock(1) on the volume, until it is told or the block is left."""
    ready = cli.path("ready")
    argv = ["flock", cli.path("img"), "sh", "-c", f"touch {ready}; exec cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as script:
        assert script.stdin is not None
        wait_until(lambda: os.path.exists(ready), "the script has the lock")
        yield script.stdin.close


@both_ways
def test_a_volume_in_use_is_exit_6_and_names_the_holder(cli: Cli) -> None:
    with a_script_that_has(cli):
        done = cli.run("run", "pace", "img", "-q", "--on-conflict", "fail")
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"error: cannot pace {cli.path('img')}: in use by pid ")
    assert done.stderr.count("\n") == 1


@both_ways
def test_waiting_is_told_with_the_holder(cli: Cli) -> None:
    with a_script_that_has(cli) as release, cli.start("run", "pace", "img") as command:
        assert command.stderr is not None
        line = command.stderr.readline()
        assert line.startswith(f"pace of img: waiting ({cli.path('img')} is in use by pid ")
        release()
        _, rest = command.communicate(timeout=30)
    assert rest.startswith("pace of img: running\n")
    assert command.returncode == 0


@both_ways
def test_a_time_limit_is_a_failure(cli: Cli) -> None:
    done = cli.run("run", "pace", "img", "-q", "--until", cli.path("never"), "--time-limit", "0.2s")
    assert done.returncode == 1
    assert "time limit" in done.stderr


@both_ways
def test_an_outsiders_term_to_the_worker_is_exit_3(cli: Cli) -> None:
    with cli.start("run", "pace", "img", "--until", cli.path("never"), "--ticks", cli.path("ticks")) as command:
        cli.working()
        os.kill(cli.worker(), signal.SIGTERM)
        _, err = command.communicate(timeout=30)
    assert command.returncode == 3
    assert f"error: pace of img was aborted: SIGTERM from pid {os.getpid()}" in err


@both_ways
def test_arguments_become_what_was_declared(cli: Cli) -> None:
    shown = cli.run(
        "run", "pace", "img", "--info", "--chunk", "1.5K", "--total", "10G", "--key", "7", "--color", "green",
        "--deep-look", "--no-maybe", "--target", "./-new", "--bandwidth", "50MiB", "--nice", "5", "--ionice", "idle",
    ).stdout  # fmt: skip
    rows = dict(line.split(":", 1) for line in shown.splitlines())
    rows = {label: text.strip() for label, text in rows.items()}
    assert (rows["Chunk"], rows["Total"], rows["Key"], rows["Color"]) == ("1536", str(10 << 30), "7", "green")
    assert (rows["Deep look"], rows["Maybe"]) == ("yes", "no")
    assert rows["Source"] == cli.path("img")
    assert os.path.exists(cli.path("-new"))


@both_ways
@pytest.mark.parametrize("name", ["--json", "with  blanks", "ümläut…", "new\nline", "a:%41"])
def test_files_with_odd_names(cli: Cli, name: str) -> None:
    os.rename(cli.path("img"), cli.path(name))
    done = cli.run("run", "pace", "-q", "--", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@both_ways
def test_a_name_that_is_no_utf_8_is_refused_in_one_line(cli: Cli) -> None:
    done = cli.run("run", "pace", os.fsdecode(b"\xff.img"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: cannot start pace: an argument is not valid UTF-8; rename the file\n"


def test_a_type_may_have_a_field_with_the_name_of_a_common_option(cli: Cli) -> None:
    shown = cli.run("run", "crash", "--help").stdout
    assert shown.count("--nice") == 1
    assert "a field with the name of a common option" in shown


@both_ways
def test_info_in_the_layout_of_virsh(cli: Cli) -> None:
    lines = cli.run("run", "pace", "img", "--info", "--total", "3M").stdout.splitlines()
    assert lines[0] == "Job type:         Completed"
    assert lines[1] == "Operation:        pace"
    assert lines[2].startswith("Time elapsed:     ")
    assert lines[2].endswith(" ms")
    assert "Data total:       3.000 MiB" in lines
    assert not any(line.startswith("Try:") for line in lines)


@both_ways
def test_info_of_a_failure_ends_with_what_to_try(cli: Cli) -> None:
    done = cli.run("run", "pace", "img", "--info", "--fails", "no space left")
    lines = done.stdout.splitlines()
    again = "jobvisor retry 1" if cli.daemon else "run it again"
    assert lines[0] == "Job type:         Failed"
    assert "Cause:            no-space" in lines
    assert "Error:            no space left" in lines
    assert lines[-1] == "Try:              " + page.ADVICE[Cause.NO_SPACE].format(again=again)


@both_ways
def test_a_crash_says_where_its_log_is_and_info_shows_it(cli: Cli) -> None:
    done = cli.run("run", "crash", "-q")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the worker left with status 7 and no word; see its log" + (
        "; jobvisor log 1 shows it\n" if cli.daemon else "; add --info to see it\n"
    )
    done = cli.run("run", "crash", "-q", "--info", "--nice", "raise")
    assert done.stderr.startswith("error: RuntimeError: out of cheese")
    assert "Traceback" not in done.stderr
    assert "    last words, raise\n" in done.stdout
    assert "    RuntimeError: out of cheese\n" in done.stdout


def test_every_cause_has_advice() -> None:
    assert set(page.ADVICE) == set(Cause)


@both_ways
def test_dry_run_does_nothing_and_says_so(cli: Cli) -> None:
    done = cli.run("run", "pace", "img", "--dry-run", "--target", "new")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "pace of img to new: all checks passed; nothing was done (--dry-run)"
    assert done.stdout == "  lock   img: others may read it; no job and no VM may write to it\n"
    assert not os.path.exists(cli.path("new"))


@both_ways
def test_dry_run_says_what_would_be_read_written_and_locked(cli: Cli) -> None:
    size = os.path.getsize(cli.path("img"))
    done = cli.run("run", "wipe", "--algorithm", "dod", "img", "--dry-run")
    *lines, space = done.stdout.splitlines()
    assert lines == [
        f"  read   img: {show_size(size)}",
        f"  write  img: {show_size(3 * size)}",
        "  lock   img: nobody else may use it: no job, no VM, nor who takes flock(1)",
    ]
    assert space.startswith("  space  takes no more; ")
    assert space.endswith(" are free")


@both_ways
def test_progress_always_off_a_terminal_is_lines(cli: Cli) -> None:
    with cli.start("run", "pace", "img", "--until", cli.path("end"), "--progress", "always") as command:
        assert command.stderr is not None
        assert command.stderr.readline() == "pace of img: running\n"
        line = command.stderr.readline()
        Path(cli.path("end")).touch()
        command.communicate(timeout=30)
    assert line.startswith("pace of img: pace, ")
    assert " %, " in line
    assert " of 1000 MiB" in line


# -- results


@both_ways
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_is_printed_as_its_tool_prints_it(cli: Cli, algorithm: str) -> None:
    name = "an image"
    os.rename(cli.path("img"), cli.path(name))
    done = cli.run("run", "checksum", "--algorithm", algorithm, name)
    content = Path(cli.path(name)).read_bytes()
    assert done.returncode == 0
    assert done.stdout == f"{hashlib.new(algorithm, content).hexdigest()}  {name}\n"
    check = subprocess.run(
        [f"{algorithm}sum", "-c", "-"], input=done.stdout, text=True, capture_output=True, cwd=cli.directory
    )
    assert check.stdout == f"{name}: OK\n"


def test_a_digest_line_of_an_odd_name_is_escaped_as_sha256sum_does(tmp_path: Path) -> None:
    name = tmp_path / "a\nb\\c"
    name.write_bytes(b"")
    expected = subprocess.run(["sha256sum", name], capture_output=True, text=True, check=True).stdout
    info = JobInfo(
        id=1, type="checksum", state=State.COMPLETED, created=0, result={"digest": hashlib.sha256(b"").hexdigest()}
    )
    assert render.digest_line(info, {"volume": name}) == expected


@both_ways
def test_a_clone_prints_nothing_on_stdout(cli: Cli) -> None:
    done = cli.run("run", "clone", "img", "./new")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1].startswith("clone of img to ./new completed in ")
    assert Path(cli.path("new")).read_bytes() == Path(cli.path("img")).read_bytes()


@both_ways
def test_a_result_that_nobody_takes_ends_by_sigpipe(cli: Cli) -> None:
    script = f"jobvisor run checksum{cli.flag} -q img | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=cli.env, cwd=cli.directory, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


@both_ways
def test_a_result_that_cannot_be_written_is_an_error(cli: Cli) -> None:
    script = f"jobvisor run checksum{cli.flag} -q img >/dev/full"
    done = subprocess.run(["bash", "-c", script], env=cli.env, cwd=cli.directory, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"


@both_ways
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_no_danger(cli: Cli, closed: str) -> None:
    """A journal opened as descriptor 2 would get whatever anybody writes to stderr."""
    options = f"--info --until {cli.path('end')} --ticks {cli.path('ticks')} {closed}"
    with subprocess.Popen(
        ["bash", "-c", f"exec jobvisor run pace{cli.flag} img {options}"],
        env=cli.env, cwd=cli.directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as command:  # fmt: skip
        cli.working()
        files = [os.readlink(f"/proc/{command.pid}/fd/{number}") for number in range(3)]
        Path(cli.path("end")).touch()
        _, err = command.communicate(timeout=30)
    assert command.returncode == 0
    assert b"Traceback" not in err
    assert all(file == os.devnull or file.startswith("pipe:") for file in files), files


# -- JSON


@both_ways
def test_json_is_events_and_ends_with_the_job(cli: Cli) -> None:
    with cli.start("run", "pace", "img", "--json", "--until", cli.path("end")) as command:
        assert command.stdout is not None
        lines = [command.stdout.readline()]
        while '"event":"progress"' not in lines[-1]:
            lines.append(command.stdout.readline())
        lines.append(command.stdout.readline())
        Path(cli.path("end")).touch()
        out, err = command.communicate(timeout=30)
    events = [json.loads(line) for line in [*lines, *out.splitlines()]]
    assert (command.returncode, err) == (0, "")
    states = [event["job"]["state"] for event in events if event["event"] == "state"]
    assert list(dict.fromkeys(states)) == ["queued", "starting", "running", "completed"]
    last = events[-1]
    assert (last["event"], last["job"]["state"], last["job"]["success"]) == ("ended", "completed", True)
    assert [event["event"] for event in events].count("ended") == 1
    assert last["job"]["operation"] == "pace"
    progress = [event for event in events if event["event"] == "progress"]
    assert progress
    told = [event["time"] for event in events if event["event"] in ("state", "progress")]
    gaps = [event["time"] - max(at for at in told if at < event["time"]) for event in progress]
    assert min(gaps) > 0.3, "progress at most about twice a second"


@both_ways
def test_json_of_a_failure_has_the_cause_and_stderr_the_line(cli: Cli) -> None:
    done = cli.run("run", "pace", "img", "--json", "--fails", "no space left")
    last = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, done.stderr) == (1, "error: no space left\n")
    assert (last["event"], last["job"]["cause"], last["job"]["errmsg"]) == ("ended", "no-space", "no space left")


@both_ways
def test_json_without_a_job_is_nothing_on_stdout(cli: Cli) -> None:
    done = cli.run("run", "pace", "img", "--json", "--bandwidth", "50")
    assert (done.returncode, done.stdout) == (2, "")


@both_ways
def test_a_reader_of_events_that_leaves_does_not_end_the_job(cli: Cli) -> None:
    command = f"jobvisor run pace{cli.flag} img --json --until {cli.path('end')} --target new"
    script = f"{command} | head -n1; echo ${{PIPESTATUS[0]}}"
    with subprocess.Popen(
        ["bash", "-c", script],
        env=cli.env,
        cwd=cli.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdout is not None
        assert json.loads(shell.stdout.readline())["event"] == "state"
        Path(cli.path("end")).touch()
        out, err = shell.communicate(timeout=30)
    assert (out, err) == ("141\n", "")
    assert os.path.exists(cli.path("new"))


@both_ways
def test_a_reader_of_events_that_is_slow_does_not_delay_a_signal(cli: Cli) -> None:
    """The pipe is full, nobody reads: the abort goes through all the same."""
    read, write = os.pipe()
    capacity = 4096  # F_SETPIPE_SZ rounds up to a page
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, capacity)
    os.set_blocking(write, False)
    os.write(write, b"x" * capacity)
    os.set_blocking(write, True)
    with subprocess.Popen(
        cli.argv("run", "pace", "img", "--json", "--until", cli.path("never"), "--ticks", cli.path("ticks")),
        env=cli.env, cwd=cli.directory, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE,
    ) as command:  # fmt: skip
        os.close(write)
        cli.working()
        command.send_signal(signal.SIGINT)
        wait_until(lambda: not cli.processes().keys() - {command.pid}, "the job is aborted")
        with open(read, "rb") as pipe:
            content = pipe.read()[capacity:]
        command.communicate(timeout=30)
    assert command.returncode == -signal.SIGINT
    events = [json.loads(line) for line in content.splitlines()]
    assert (events[-1]["event"], events[-1]["job"]["state"]) == ("ended", "aborted")


@without_daemon
def test_nothing_of_a_job_is_left_and_the_home_is_private(cli: Cli) -> None:
    with cli.start("run", "pace", "img", "--until", cli.path("end"), "--ticks", cli.path("ticks")) as command:
        cli.working()
        (private,) = cli.homes()
        assert stat.S_IMODE(os.stat(cli.home / "private" / private).st_mode) == 0o700
        Path(cli.path("end")).touch()
        command.communicate(timeout=30)
    assert not cli.homes(), "gone when the command is"
    assert not cli.processes()


@without_daemon
def test_home_option(cli: Cli, tmp_path: Path) -> None:
    done = cli.run("--home", "../elsewhere", "run", "pace", "img", "-q", "--no-daemon")
    assert done.returncode == 0
    assert (tmp_path / "elsewhere" / "private").is_dir()
    assert not cli.home.exists()
