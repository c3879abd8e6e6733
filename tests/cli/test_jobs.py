"""Jobs that live in the daemon: started, listed, controlled and awaited by one command each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor.states import State
from support.command import Cli
from support.images import filled
from support.lock_scenes import flocked, wait_until


@pytest.fixture
def jobs(cli: Cli) -> Iterator[Cli]:
    """What runs at the end is aborted, by the command for that."""
    yield cli
    done = cli.run("abort", "--all", "--force")
    assert done.returncode == 0, done.stderr


def start(cli: Cli, *more: str) -> str:
    """The id of a job that works until `end` exists."""
    done = cli.run("start", "pace", "img", "--until", cli.path("end"), *more)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{int(done.stdout)}\n", "the id alone"
    return done.stdout.strip()


def end(cli: Cli) -> None:
    Path(cli.path("end")).touch()


def state(cli: Cli, job: str) -> str:
    found: str = json.loads(cli.run("info", job, "--json").stdout)["state"]
    return found


def said(cli: Cli, *argv: str) -> tuple[int, str, str]:
    done = cli.run(*argv)
    return done.returncode, done.stdout, done.stderr


# -- start


def test_a_start_returns_when_the_job_works_and_list_shows_it(jobs: Cli) -> None:
    job = start(jobs)
    assert state(jobs, job) == "running"
    title, line = jobs.run("list").stdout.splitlines()
    assert title.split() == ["ID", "STATE", "TYPE", "DONE", "RATE", "LEFT", "AGE", "RESOURCE"]
    assert line.split()[:3] == ["1", "running", "pace"]
    assert line.endswith(f"  {jobs.path('img')}"), "whole names off a terminal"


def test_a_typo_in_a_path_is_told_at_once(jobs: Cli) -> None:
    error = f"error: cannot open {jobs.path('imgg')}: no such file (job 1)\n"
    assert said(jobs, "start", "checksum", "imgg") == (1, "", error)
    code, out, err = said(jobs, "start", "checksum", "imgg", "--json")
    assert (code, json.loads(out)["state"], err) == (1, "failed", error.replace("job 1", "job 2"))


def test_a_volume_in_use_is_exit_6(jobs: Cli) -> None:
    job = start(jobs)
    code, out, err = said(jobs, "start", "wipe", "img", "--on-conflict", "fail")
    assert (code, out) == (6, "")
    assert f"in use by job {job}" in err
    assert err.count("\n") == 1
    os.rename(jobs.path("img"), jobs.path("other"))
    Path(jobs.path("img")).write_bytes(b"x")
    with flocked(Path(jobs.path("img"))):
        code, out, err = said(jobs, "start", "wipe", "img", "--on-conflict", "fail")
    assert (code, out) == (6, "")
    assert "(flock" in err


def test_a_job_that_has_to_wait_is_started_all_the_same(jobs: Cli) -> None:
    first = start(jobs)
    second = jobs.run("start", "wipe", "img").stdout.strip()
    assert state(jobs, second) == "queued"
    line = jobs.run("list", "--state", "queued").stdout.splitlines()[1]
    assert line.endswith(f"({jobs.path('img')} is in use by job {first})")
    assert f"Reason:           {jobs.path('img')} is in use by job {first}\n" in jobs.run("info", second).stdout


def test_a_dry_run_and_a_start_without_waiting(jobs: Cli) -> None:
    assert said(jobs, "start", "clone", "img", "copy", "--dry-run") == (0, "1\n", "")
    assert jobs.run("wait", "1").returncode == 0
    assert not os.path.exists(jobs.path("copy"))
    assert said(jobs, "start", "checksum", "imgg", "--no-wait") == (0, "2\n", "")
    assert jobs.run("wait", "2").returncode == 1


# -- list


def test_lists_are_filtered(jobs: Cli) -> None:
    first = start(jobs)
    done = jobs.run("start", "checksum", "img").stdout.strip()
    jobs.run("wait", done)
    jobs.run("start", "checksum", "imgg")
    ids = {
        (): [first],
        ("--all",): ["3", done, first],
        ("--failed",): ["3"],
        ("--all", "-n", "1"): ["3"],
        ("--state", "completed", "--state", "running"): [done, first],
        ("--all", "--type", "checksum"): ["3", done],
        ("--all", "--resource", "img"): [done, first],
        ("--all", "--resource", jobs.path("imgg")): ["3"],
        ("--since", "1h"): ["3", done, first],
        ("--since", "0"): [first],
        ("--failed", "--type", "pace"): [],
        ("--all-users",): [first],
    }
    for options, expected in ids.items():
        assert jobs.run("list", "-q", *options).stdout.split() == expected, options
        found = [str(json.loads(line)["id"]) for line in jobs.run("list", "--json", *options).stdout.splitlines()]
        assert found == expected, options


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["list", "--state", "runing"], "error: --state: no state is called 'runing' (did you mean running?); see"),
        (["list", "--failed", "--state", "failed"], "error: --failed is --state failed; give one of them; see"),
        (["list", "--since", "yesterday"], "error: --since: 'yesterday' is no time; write it like 90s, 10m, 2h or 7d;"),
        (["list", "-n", "0"], "error: -n: 0 is not in the range x>=1; see"),
        (["info", "img"], "error: ID: 'img' is no job id; an id is a number, or the word current; see"),
        (["info", "-5"], "error: -5 is no job id, which is a number above 0; see"),
        (
            ["info", "--raw", "--full"],
            "error: --full, --raw and --json are three ways to show a job; give one of them;",
        ),
        (["abort"], "error: name the jobs by their ids, or the word current, or give --all; see"),
        (["abort", "1", "--all"], "error: --all goes without ids; see"),
        (["retry"], "error: missing argument ID…; see jobvisor retry --help"),
        (["complete"], "error: missing argument ID…; see"),
        (["forget"], "error: name the jobs by their ids, or the word current, or give --all or --before 7d; see"),
        (
            ["forget", "--all", "--before", "7d"],
            "error: name the jobs by their ids, or the word current, or give --all",
        ),
        (["watch", "1", "--all"], "error: --all goes without ids; see"),
        (["start"], "Usage: jobvisor start "),
        (["start", "clne", "a", "b"], "error: no job type is called 'clne' (did you mean clone?); see jobvisor start"),
        (["start", "pace", "img", "--info"], "error: no such option: --info"),
        (["daemon", "--stop", "--status"], "error: --status, --stop and --replace are three things to do; give one"),
        (["--user", "--system", "list"], "error: --user and --system name two daemons; give one of them; see"),
        (["--home", "", "list"], "error: --home names nothing; see"),
        (["completion", "tcsh"], "error: SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'; see"),
    ],
)
def test_a_wrong_command_line_starts_no_daemon(cli: Cli, argv: list[str], message: str) -> None:
    done = cli.run(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1 or message.startswith("Usage")
    assert not cli.home.exists()


# -- verbs


def test_suspend_resume_and_abort_return_when_it_is_true(jobs: Cli) -> None:
    job = start(jobs, "--ticks", jobs.path("ticks"), "--target", "new")
    jobs.working()
    assert said(jobs, "suspend") == (0, "", f"job {job} (pace new) suspended\n"), "the current job"
    assert jobs.state(jobs.worker()) == "T"
    assert said(jobs, "resume", job, "-q") == (0, "", "")
    jobs.working()
    code, out, err = said(jobs, "abort", "current", "--json")
    assert (code, err, json.loads(out)["state"]) == (0, "", "aborted")
    assert not jobs.processes()
    assert not os.path.exists(jobs.path("new"))


def test_a_wrong_verb_is_exit_7_and_says_what_is_allowed(jobs: Cli) -> None:
    job = start(jobs)
    error = f"error: cannot resume job {job}: it is running; it allows abort, suspend\n"
    assert said(jobs, "resume", job) == (7, "", error)
    error = f"error: cannot forget job {job}: it is running; it allows abort, suspend\n"
    assert said(jobs, "forget", job) == (7, "", error)
    jobs.run("abort", job)
    error = f"error: cannot abort job {job}: it is aborted; it allows forget, retry\n"
    assert said(jobs, "abort", job) == (7, "", error)


def test_of_several_jobs_all_that_can_be_done_is_done(jobs: Cli) -> None:
    first, second, third = (start(jobs) for _ in range(3))
    jobs.run("abort", second)
    code, out, err = said(jobs, "suspend", first, second, "99", third, first)
    assert (code, out) == (7, "")
    assert err.splitlines() == [
        f"error: cannot suspend job {second}: it is aborted; it allows forget, retry",
        "error: there is no job 99; jobvisor list --all shows those that there are",
        f"job {first} (pace img) suspended",
        f"job {third} (pace img) suspended",
    ]
    assert [state(jobs, job) for job in (first, third)] == ["suspended", "suspended"]


def test_all_means_those_that_it_can_be_done_to(jobs: Cli) -> None:
    running = [start(jobs), start(jobs)]
    queued = jobs.run("start", "wipe", "img").stdout.strip()
    code, _, err = said(jobs, "suspend", "--all")
    assert code == 0
    assert sorted(err.splitlines()) == [
        f"job {running[0]} (pace img) suspended",
        f"job {running[1]} (pace img) suspended",
        f"job {queued} (wipe img) is held in the queue",
    ]
    assert said(jobs, "suspend", "--all") == (0, "", "no job to suspend\n")
    assert jobs.run("resume", "--all").stderr.count("\n") == 3
    assert said(jobs, "resume", "--all") == (0, "", "no job to resume\n")
    assert jobs.run("abort", "--all").returncode == 0
    assert jobs.run("list", "-q").stdout == ""


def test_several_aborts_go_on_side_by_side(jobs: Cli) -> None:
    for _ in range(3):
        start(jobs, "--linger", jobs.path("gate"))
    with jobs.start("abort", "1", "2", "3") as command:
        wait_until(lambda: {state(jobs, str(number)) for number in (1, 2, 3)} == {"aborting"}, "all were told")
        assert command.poll() is None
        Path(jobs.path("gate")).touch()
        _, err = command.communicate(timeout=30)
    assert command.returncode == 0
    assert err == "".join(f"job {number} (pace img) aborted\n" for number in (1, 2, 3))


def test_an_abort_need_not_be_awaited_and_can_be_forced(jobs: Cli) -> None:
    job = start(jobs, "--linger", jobs.path("never"))
    assert said(jobs, "abort", job, "--no-wait") == (0, "", f"job {job} (pace img) is being aborted\n")
    assert state(jobs, job) == "aborting"
    assert jobs.run("abort", job, "--force").returncode == 0
    assert state(jobs, job) == "aborted"


def test_an_abort_that_came_too_late_is_exit_7(jobs: Cli) -> None:
    job = start(jobs, "--linger", jobs.path("gate"), "--target", "new")
    end(jobs)
    wait_until(lambda: os.path.exists(jobs.path("new")), "the work is done")
    with jobs.start("abort", job) as command:
        wait_until(lambda: state(jobs, job) == "aborting", "it was told")
        Path(jobs.path("gate")).touch()
        _, err = command.communicate(timeout=30)
    assert (command.returncode, err) == (7, f"error: cannot abort job {job}: it is completed; it allows forget\n")


def test_a_retry_prints_the_new_id_and_how_it_begins(jobs: Cli) -> None:
    job = start(jobs)
    jobs.run("abort", job)
    assert said(jobs, "retry", job) == (0, "2\n", "job 2 begins anew\n")
    assert said(jobs, "retry", job, "-q") == (0, "3\n", "")
    assert json.loads(jobs.run("info", "2", "--json").stdout)["retry_of"] == 1
    assert jobs.run("current").stdout == "3\n"


def test_a_retry_that_goes_on(jobs: Cli) -> None:
    filled(Path(jobs.path("volume")), 1 << 20)
    args = ("wipe", "volume", "--algorithm", "dod", "--keep-partial", "--bandwidth", "2MiB")
    job = jobs.run("start", *args).stdout.strip()
    wait_until(lambda: "pass 2" in str(json.loads(jobs.run("info", job, "--json").stdout)["phase"]), "pass 1 is done")
    jobs.run("abort", job, "-q")
    partial = json.loads(jobs.run("info", job, "--json").stdout)["partial"]
    done = partial["done"] >> 20  # the ends of passes are noted
    assert partial == {"path": None, "done": done << 20}
    assert 0 < done < 4
    kept = f"Kept:             {done} MiB of 4 MiB; jobvisor retry {job} goes on from there\n"
    assert kept in jobs.run("info", job).stdout
    assert said(jobs, "retry", job) == (0, "2\n", f"job 2 goes on from the {done} MiB that are done\n")
    assert jobs.run("wait", "2").returncode == 0
    page = jobs.run("info", "2").stdout
    assert "Result continued from: 1\n" in page
    assert f"Result bytes continued: {done << 20}\n" in page
    assert "Kept:" not in page + jobs.run("info", job).stdout


def test_without_a_daemon_nobody_could_retry(cli: Cli) -> None:
    done = cli.run("run", "clone", "--no-daemon", "img", "copy", "--keep-partial")
    assert done.returncode == 2
    assert done.stderr == "error: cannot start clone with --keep-partial: without a daemon nobody can retry it\n"
    assert not Path(cli.path("copy")).exists()


def test_forgetting(jobs: Cli) -> None:
    for _ in range(3):
        jobs.run("wait", "-q", jobs.run("start", "checksum", "img").stdout.strip())
    assert said(jobs, "forget", "1") == (0, "", "job 1 forgotten\n")
    code, out, err = said(jobs, "info", "1")
    assert (code, out, err) == (4, "", "error: there is no job 1; jobvisor list --all shows those that there are\n")
    assert said(jobs, "forget", "--before", "7d") == (0, "", "0 jobs forgotten\n")
    assert said(jobs, "forget", "--all") == (0, "", "2 jobs forgotten\n")
    assert jobs.run("list", "--all", "-q").stdout == ""


def test_the_current_job(jobs: Cli) -> None:
    nothing = "error: there is no current job; name one by its id, see jobvisor list --all\n"
    assert said(jobs, "current") == (4, "", nothing)
    assert said(jobs, "info") == (4, "", nothing)
    first, second = start(jobs), start(jobs)
    assert said(jobs, "current") == (0, f"{second}\n", "")
    assert said(jobs, "current", first) == (0, "", "")
    assert json.loads(jobs.run("info", "--json").stdout)["id"] == int(first)
    assert said(jobs, "current", "99")[0] == 4


@pytest.mark.parametrize("job", ["0", "99", "9" * 25])
def test_an_id_that_nothing_has_is_exit_4(cli: Cli, job: str) -> None:
    for command in ("info", "wait", "watch", "log", "suspend", "abort", "retry", "forget"):
        code, out, err = said(cli, command, job)
        assert (code, out) == (4, ""), command
        assert err == f"error: there is no job {job}; jobvisor list --all shows those that there are\n"


# -- info, log, mask


def test_info_in_its_three_ways(jobs: Cli) -> None:
    job = start(jobs, "--total", "3G", "--effect", "half of it")
    page = jobs.run("info", job).stdout
    assert page.startswith("Job type:         Bounded\nOperation:        pace\nTime elapsed:     ")
    assert "\nData total:       3.000 GiB\n" in page
    assert f"\nId:               {job}\nState:            running\n" in page
    raw = dict(line.split(": ") for line in jobs.run("info", job, "--raw").stdout.splitlines())
    assert (raw["operation"], raw["job_type"], raw["data_total"]) == ("pace", "bounded", str(3 << 30))
    full = jobs.run("info", job, "--full").stdout
    assert "\nAn abort leaves:  half of it\n" in full
    assert f"(uid {os.getuid()})\n" in full
    assert "\nStarted:          20" in full
    two = jobs.run("info", job, job, "99")
    assert two.returncode == 4


def test_info_says_which_libvirt_was_asked(jobs: Cli) -> None:
    uri = "qemu+unix:///system?socket=/nonexistent"
    job = jobs.run("start", "checksum", "vol://p/v", "-c", uri, "--no-wait").stdout.strip()
    jobs.run("wait", job)
    assert f"Libvirt:          {uri}\n" in jobs.run("info", job).stdout


def test_info_of_a_failure_ends_with_what_to_try(jobs: Cli) -> None:
    jobs.run("start", "checksum", "imgg")
    page = jobs.run("info").stdout.splitlines()
    assert "Cause:            error" in page
    assert page[-2] == f"Error:            cannot open {jobs.path('imgg')}: no such file"
    assert page[-1].startswith("Try:              correct what the error names, and jobvisor retry 1; --dry-run")


def test_the_log_of_a_crash(jobs: Cli) -> None:
    assert jobs.run("start", "crash").returncode in (0, 1), "it may crash before or after the start has returned"
    assert jobs.run("wait", "1").returncode == 1
    assert said(jobs, "log") == (0, "last words, own\n", "")
    assert "    last words, own\n" in jobs.run("info").stdout


def test_a_log_is_followed_to_the_end_of_the_job(jobs: Cli) -> None:
    job = start(jobs, "--says", jobs.path("say"))
    with jobs.start("log", "-f", job) as command:
        assert command.stdout is not None
        for word in ("one", "two"):
            Path(jobs.path("say")).write_text(f"{word}\n")
            assert command.stdout.readline() == f"{word}\n"
            assert command.poll() is None
        end(jobs)
        assert command.communicate(timeout=30) == ("", "")
    assert command.returncode == 0


def test_the_mask_of_a_volume(jobs: Cli) -> None:
    rows = jobs.run("mask", "img").stdout.splitlines()
    assert rows[0] == f"Resource:         {jobs.path('img')}"
    assert {"clone", "wipe"} <= set(rows[1].removeprefix("May start:").replace(",", "").split())
    start(jobs)
    jobs.run("start", "wipe", "img")
    lines = jobs.run("mask", "img").stdout.splitlines()[1:]
    (readers,) = [line for line in lines if line.endswith(": job 2 is in the way")]
    (writers,) = [line for line in lines if line.endswith(": job 1 is in the way")]
    assert (" checksum," in readers, " wipe:" in writers) == (True, True)
    assert [line for line in lines if line not in (readers, writers)] == [
        "May start:        nothing",
        "Held by:          job 1 (pace img), running",
        "Waiting:          job 2 (wipe img), queued",
    ]
    assert json.loads(jobs.run("mask", "img", "--json").stdout)["may_start"] == []


# -- wait and watch


def test_waiting_for_the_end_and_for_a_state(jobs: Cli) -> None:
    job = start(jobs)
    error = f"error: job {job} did not get there within 0.1 s; it goes on\n"
    assert said(jobs, "wait", "--timeout", "0.1s") == (8, "", error)
    assert said(jobs, "wait", "--timeout", "0")[0] == 8
    assert said(jobs, "wait", job, "--for", "running") == (0, "", f"job {job} (pace img) is running\n")
    end(jobs)
    code, out, err = said(jobs, "wait", job)
    assert (code, out) == (0, "")
    assert err.startswith(f"job {job} (pace img) completed in ")
    error = f"error: job {job} (pace img) completed without being suspended\n"
    assert said(jobs, "wait", job, "--for", "suspended") == (7, "", error)
    assert json.loads(jobs.run("wait", job, "--json").stdout)["state"] == "completed"


def test_waiting_has_the_code_of_the_first_that_did_not_complete(jobs: Cli) -> None:
    jobs.run("start", "checksum", "img")
    jobs.run("start", "checksum", "imgg")
    aborted = start(jobs)
    jobs.run("abort", aborted)
    code, _, err = said(jobs, "wait", "1", aborted, "2")
    assert code == 3
    assert err.splitlines()[1:] == [
        f"error: job {aborted} (pace img) was aborted",
        f"error: job 2 (checksum imgg): cannot open {jobs.path('imgg')}: no such file",
    ]
    assert said(jobs, "wait", "2", "--for", "failed")[0] == 0


@pytest.mark.parametrize("command", [["wait"], ["watch"], ["watch", "--all"], ["log", "-f"]])
def test_an_interrupt_ends_the_command_and_never_the_job(jobs: Cli, command: list[str]) -> None:
    job = start(jobs)
    with jobs.start(*command) as process:
        wait_until(lambda: connections(jobs, process.pid), "it has asked the daemon")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert state(jobs, job) == "running"


def connections(cli: Cli, pid: int) -> list[str]:
    """Sockets that a process has open."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except FileNotFoundError:
            pass
    return [name for name in found if name.startswith("socket:")]


def test_watching_off_a_terminal_tells_changes_of_state(jobs: Cli) -> None:
    first, second = start(jobs), start(jobs, "--warns", "mind the gap")
    with jobs.start("watch", first, second) as command:
        assert command.stderr is not None
        begun = [command.stderr.readline() for _ in range(3)]
        jobs.run("suspend", first)
        assert command.stderr.readline() == f"job {first} (pace img): suspended\n"
        jobs.run("abort", first)
        end(jobs)
        out, err = command.communicate(timeout=30)
    assert sorted(begun) == [
        f"job {first} (pace img): running\n",
        f"job {second} (pace img): running\n",
        "warning: mind the gap\n",
    ]
    assert out == ""
    assert f"error: job {first} (pace img) was aborted\n" in err
    assert f"job {second} (pace img) completed in " in err
    assert command.returncode == 3


def test_watching_all_goes_on_with_jobs_that_are_started_meanwhile(jobs: Cli) -> None:
    assert said(jobs, "watch", "--all") == (0, "", "no jobs now\n")
    start(jobs)
    with jobs.start("watch", "--all", "--json") as command:
        assert command.stdout is not None
        assert json.loads(command.stdout.readline())["job"]["id"] == 1
        start(jobs)
        end(jobs)
        out, _ = command.communicate(timeout=30)
    events = [json.loads(line) for line in out.splitlines()]
    assert sorted(event["job"]["id"] for event in events if event["event"] == "ended") == [1, 2]
    assert command.returncode == 0


# -- the daemon


def test_the_daemon_in_the_foreground(cli: Cli) -> None:
    code, out, _ = said(cli, "daemon", "--status")
    assert (code, out.partition(":")[0]) == (9, "not running")
    assert not cli.home.exists(), "looking starts nothing"
    with cli.start("daemon", "--socket", cli.path("socket")) as daemon:
        assert daemon.stderr is not None
        while "listens on" not in (line := daemon.stderr.readline()):
            assert line
        known = json.loads(cli.run("--socket", cli.path("socket"), "daemon", "--status", "--json").stdout)
        assert (known["pid"], known["idle_after"]) == (daemon.pid, None)
        assert cli.run("--socket", cli.path("socket"), "start", "checksum", "img").stdout == "1\n"
        daemon.send_signal(signal.SIGINT)
        daemon.communicate(timeout=30)
    assert daemon.returncode == 0
    assert "error: " in cli.run("--socket", cli.path("socket"), "list").stderr, "none is started there"


def test_stop_and_replace(jobs: Cli) -> None:
    job = start(jobs, "--ticks", jobs.path("ticks"))
    old = jobs.daemon_pid()
    code, out, err = said(jobs, "daemon", "--replace")
    new = jobs.daemon_pid()
    assert (code, out, err) == (0, "", f"daemon {old} (0.1.0) was replaced by {new} (0.1.0); jobs go on\n")
    jobs.working()
    assert said(jobs, "daemon", "--stop") == (0, "", f"daemon {new} ended; jobs go on\n")
    jobs.working()
    assert said(jobs, "daemon", "--stop")[0] == 0
    assert state(jobs, job) == "running", "adopted by the next one"


def test_a_daemon_that_is_older_is_replaced_and_that_is_said(jobs: Cli) -> None:
    """A newer command is this one with another number."""
    job = start(jobs)
    old = jobs.daemon_pid()
    newer = (
        "import sys, jobvisor, jobvisor_cli.reach as reach; reach.__version__ = '99.0'; sys.argv[0] = 'jobvisor'\n"
        "from jobvisor_cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", newer, "list", "-q"],
        env=jobs.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == f"{job}\n"
    assert done.stderr == f"daemon {old} (0.1.0) was replaced by {jobs.daemon_pid()} (0.1.0); jobs go on\n"


def test_every_state_can_be_asked_for(cli: Cli) -> None:
    for name in State:
        assert cli.run("list", "--state", name).returncode == 0


def test_a_program_that_serves_its_own_supervisor_is_not_stopped(cli: Cli) -> None:
    program = (
        "import sys\nfrom jobvisor import Supervisor\n"
        "with Supervisor() as s, s.serve() as path: print(path, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], env=cli.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdin is not None
        assert host.stdout is not None
        path = host.stdout.readline().strip()
        assert said(cli, "start", "checksum", "img") == (0, "1\n", ""), "it is as good as a daemon"
        for option in ("--stop", "--replace"):
            code, out, err = said(cli, "daemon", option)
            assert (code, out) == (5, "")
            assert err.startswith(f"error: pid {host.pid}, which serves {path}, is a program with a supervisor of its")
        assert host.poll() is None
        host.stdin.close()
        assert host.wait(30) == 0


def test_a_hold_outlives_a_killed_daemon(jobs: Cli) -> None:
    assert said(jobs, "hold") == (0, "", "nothing is held\n")
    assert jobs.run("hold", "--type", "pace").returncode == 2
    code, out, err = said(jobs, "hold", "--type", "pace", "--reason", "the array is rebuilt")
    assert (code, out) == (0, "")
    assert err.endswith("'s pace jobs are held; jobvisor release --type pace lets them start\n")
    job = start(jobs)
    os.kill(json.loads(jobs.run("daemon", "--status", "--json").stdout)["pid"], signal.SIGKILL)
    assert "the array is rebuilt" in jobs.run("list").stdout
    assert jobs.run("hold").stdout.endswith(": the array is rebuilt\n")
    code, out, err = said(jobs, "hold", "--type", "pace", "--reason", "again")
    assert (code, out) == (7, "")
    assert "holds them already (the array is rebuilt)" in err
    assert said(jobs, "release", "--type", "pace") == (0, "", "released\n")
    assert jobs.run("wait", job, "--for", "running").returncode == 0


def test_a_job_comes_after_others(jobs: Cli) -> None:
    first = start(jobs)
    after = jobs.run("start", "checksum", "img", "--after", first, "--priority", "-1", "--queue-limit", "10m")
    assert (after.returncode, after.stderr) == (0, "")
    page = jobs.run("info", "2", "--full").stdout
    assert "Reason:           job 1 has not completed yet\n" in page
    assert "After:            ok:1\nPriority:         -1\n" in page
    failed = jobs.run("run", "checksum", "img", "--after", f"failed:{first}", "--quiet", "--queue-limit", "0.1s")
    assert failed.returncode == 1
    assert "longer than its queue limit of 0.1 s: job 1 has not ended yet" in failed.stderr
    end(jobs)
    assert jobs.run("wait", "2").returncode == 0
    assert said(jobs, "start", "checksum", "img", "--after", "99")[0] == 4
    assert said(jobs, "start", "checksum", "img", "--after", "soon")[::2] == (
        2,
        "error: --after: after is a job's id, any:ID or failed:ID, not 'soon'; see jobvisor start checksum --help\n",
    )
    assert said(jobs, "run", "checksum", "img", "--after", "1", "--no-daemon")[0] == 2


def test_the_daemon_reads_its_configuration_again_when_it_gets_hup(jobs: Cli) -> None:
    assert jobs.run("config").stdout.splitlines()[0].split() == ["limits.jobs", "no", "limit", "default"]
    known = json.loads(jobs.run("daemon", "--status", "--json").stdout)
    file = Path(known["home"], "config.toml")
    file.write_text("[limits.type]\npace = 1\n")
    os.kill(known["pid"], signal.SIGHUP)
    line = ["limits.type.pace", "1", f"{file}:2"]
    wait_until(lambda: jobs.run("config").stdout.splitlines()[-1].split() == line, "the new configuration")
    start(jobs)
    start(jobs)
    assert "(the limit of 1 pace job at once is reached)" in jobs.run("list").stdout
    file.write_text("[limits]\npace = 1\n")
    os.kill(known["pid"], signal.SIGHUP)
    log = Path(known["home"], "daemon.log")
    wait_until(lambda: f"keeps its configuration: {file}:2: no limit is called pace" in log.read_text(), "its refusal")
    assert said(jobs, "config", "--reload")[::2] == (
        1, f"error: {file}:2: no limit is called pace; there are jobs, per_user, per_type, per_pool, per_device, user, "
        "type, pool, device\n",
    )  # fmt: skip
    assert jobs.run("config").stdout.splitlines()[-1].split() == line
    assert json.loads(jobs.run("daemon", "--status", "--json").stdout)["pid"] == known["pid"]
    file.unlink()
    assert json.loads(jobs.run("config", "--reload", "--json").stdout.splitlines()[-1])["value"] is None
    assert jobs.run("wait", "2", "--for", "running").returncode == 0
