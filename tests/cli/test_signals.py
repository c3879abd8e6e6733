"""Signals to `jobvisor run`: each leaves the job in the state that was promised, and nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobvisor_cli.attached import SAME_REQUEST
from jobvisor_cli.signals import TAKEN, Inbox
from support.command import Cli, both_ways, with_daemon, without_daemon
from support.lock_scenes import wait_until

INT, TERM, HUP, TSTP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP


def started(cli: Cli, *more: str) -> subprocess.Popen[str]:
    """A job that works until it is told to end."""
    command = cli.start(
        "run", "pace", "img", "--target", "new", "--until", cli.path("end"), "--ticks", cli.path("ticks"), *more
    )
    cli.working()
    return command


def end(cli: Cli) -> None:
    Path(cli.path("end")).touch()


def alone(cli: Cli) -> None:
    """The command has ended and nothing of the job with it."""
    assert not cli.processes(), "the command leaves when all is gone"
    assert not cli.homes()


@both_ways
@pytest.mark.parametrize("number", [INT, TERM])
def test_aborts_waits_until_it_is_true_and_dies_of_the_signal(cli: Cli, number: signal.Signals) -> None:
    with started(cli) as command:
        command.send_signal(number)
        out, err = command.communicate(timeout=30)
        alone(cli)
    assert command.returncode == -number
    assert out == ""
    assert "\npace of img to new: aborting\npace of img to new aborted after " in err
    assert not os.path.exists(cli.path("new"))


@both_ways
def test_an_abort_tells_what_it_left(cli: Cli) -> None:
    with started(cli, "--effect", "a third is overwritten") as command:
        command.send_signal(INT)
        _, err = command.communicate(timeout=30)
    assert err.endswith(": a third is overwritten\n")


@both_ways
def test_json_of_an_abort_ends_with_the_job(cli: Cli) -> None:
    with started(cli, "--json") as command:
        command.send_signal(INT)
        out, err = command.communicate(timeout=30)
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["job"]["state"], last["job"]["cause"]) == ("ended", "aborted", None)
    assert (command.returncode, err) == (-INT, "")


@both_ways
def test_a_second_interrupt_detaches_and_names_job_and_process(cli: Cli) -> None:
    gate = cli.path("gate")
    with started(cli, "--linger", gate) as command:
        assert command.stderr is not None
        command.send_signal(INT)
        while "aborting" not in command.stderr.readline():
            pass
        worker = cli.worker()
        command.send_signal(INT)
        _, err = command.communicate(timeout=30)
    assert command.returncode == -INT
    how = "jobvisor abort --force 1" if cli.daemon else f"kill -9 {worker}"
    assert err == f"detached: job 1 (pid {worker}) is still being aborted; {how} ends it at once\n"
    assert worker in cli.processes(), "it is cleaning up"
    Path(gate).touch()
    cli.nothing_left()
    assert not os.path.exists(cli.path("new"))


@both_ways
@pytest.mark.parametrize("number", [INT, TERM])
def test_one_request_that_comes_twice_does_not_detach(cli: Cli, number: signal.Signals) -> None:
    """timeout(1) signals its child and then the child's group."""
    with started(cli, "--linger", cli.path("gate")) as command:
        for _ in range(100):  # in less than a millisecond, so that some meet the first one being obeyed
            command.send_signal(number)
        wait_until(lambda: "aborting" in os.read(command.stderr.fileno(), 4096).decode(), "it aborts")  # type: ignore[union-attr]
        assert command.poll() is None
        Path(cli.path("gate")).touch()
        command.communicate(timeout=30)
        alone(cli)
    assert command.returncode == -number


@both_ways
def test_a_second_term_goes_on_waiting(cli: Cli) -> None:
    with started(cli, "--linger", cli.path("gate")) as command:
        assert command.stderr is not None
        command.send_signal(TERM)
        while "aborting" not in command.stderr.readline():
            pass
        command.send_signal(TERM)
        Path(cli.path("gate")).touch()
        _, err = command.communicate(timeout=30)
        alone(cli)
    assert command.returncode == -TERM
    assert "detached" not in err


@both_ways
def test_hangup_lets_the_job_go_on_to_its_end(cli: Cli) -> None:
    with started(cli) as command:
        command.send_signal(HUP)
        command.communicate(timeout=30)
        assert command.returncode == -HUP
        cli.working()
        end(cli)
        cli.nothing_left()
    assert os.path.exists(cli.path("new"))


@both_ways
def test_hangup_of_a_stopped_command_resumes_the_job(cli: Cli) -> None:
    """A shell that leaves sends HUP and CONT to what it had stopped; nobody else would ever resume the job."""
    with started(cli) as command:
        command.send_signal(TSTP)
        wait_until(lambda: cli.state(command.pid) == "T", "the command stopped")
        command.send_signal(HUP)
        command.send_signal(signal.SIGCONT)
        command.communicate(timeout=30)
        assert command.returncode == -HUP
        cli.working()
        end(cli)
        cli.nothing_left()
    assert os.path.exists(cli.path("new"))


@both_ways
def test_nohup_is_respected(cli: Cli) -> None:
    with subprocess.Popen(
        ["nohup", *cli.argv("run", "pace", "img", "--until", cli.path("end"), "--ticks", cli.path("ticks"))],
        env=cli.env, cwd=cli.directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as command:  # fmt: skip
        cli.working()
        command.send_signal(HUP)
        cli.working()
        end(cli)
        command.communicate(timeout=30)
    assert command.returncode == 0


@both_ways
@pytest.mark.parametrize("way", [TSTP, signal.SIGSTOP])
def test_a_stop_stops_the_job_and_a_continue_continues_it(cli: Cli, way: signal.Signals) -> None:
    if way is signal.SIGSTOP and cli.daemon:
        pytest.skip("only a job of the command's own can follow what no program can catch")
    with started(cli) as command:
        worker = cli.worker()
        command.send_signal(way)
        wait_until(lambda: cli.state(command.pid) == "T", "the command stopped")
        if way is TSTP:
            assert cli.state(worker) == "T", "the job was suspended first"
        wait_until(lambda: cli.state(worker) == "T", "the job stopped")
        ticks = cli.ticks()
        command.send_signal(signal.SIGCONT)
        wait_until(lambda: cli.ticks() > ticks, "the job goes on")
        end(cli)
        command.communicate(timeout=30)
    assert command.returncode == 0
    assert os.path.exists(cli.path("new"))


@both_ways
def test_term_of_a_stopped_command_aborts_when_it_is_continued(cli: Cli) -> None:
    with started(cli) as command:
        command.send_signal(TSTP)
        wait_until(lambda: cli.state(command.pid) == "T", "the command stopped")
        command.send_signal(TERM)
        command.send_signal(signal.SIGCONT)
        _, err = command.communicate(timeout=30)
        alone(cli)
    assert command.returncode == -TERM
    states = [line.rpartition(" ")[2] for line in err.splitlines()[:-1]]
    assert states == ["running", "suspended", "aborting"], "it was not resumed for that"


@both_ways
def test_a_stop_without_job_control_is_passed_over(cli: Cli) -> None:
    """The leader of a session has nobody to continue it: the kernel drops the stop, and the job is resumed at once."""
    with subprocess.Popen(
        cli.argv("run", "pace", "img", "--until", cli.path("end"), "--ticks", cli.path("ticks")),
        env=cli.env, cwd=cli.directory, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as command:  # fmt: skip
        assert command.stderr is not None
        cli.working()
        command.send_signal(TSTP)
        while "suspended" not in command.stderr.readline():
            pass
        cli.working()
        end(cli)
        command.communicate(timeout=30)
    assert command.returncode == 0


@both_ways
def test_a_type_that_must_not_be_stopped_is_not(cli: Cli) -> None:
    with cli.start("run", "rigid", "img", "--until", cli.path("end")) as command:
        assert command.stderr is not None
        assert command.stderr.readline() == "rigid of img: running\n"
        command.send_signal(TSTP)
        line = command.stderr.readline()
        assert line == "cannot suspend job 1: a rigid job cannot be suspended; it goes on\n"
        end(cli)
        command.communicate(timeout=30)
    assert command.returncode == 0


@without_daemon
def test_a_killed_command_leaves_nothing(cli: Cli) -> None:
    with started(cli) as command:
        command.send_signal(signal.SIGKILL)
        command.communicate(timeout=30)
        cli.nothing_left()
    assert not os.path.exists(cli.path("new"))


@both_ways
@pytest.mark.parametrize(
    ("after", "number"), [(0, INT), (1, INT), (1, TERM), (1, HUP), (2, INT), (2, HUP), (3, INT), (3, HUP)]
)
def test_a_signal_while_the_start_is_in_flight_is_heard(cli: Cli, after: int, number: signal.Signals) -> None:
    """At moments on the way: no process but Python; the home is made; the zygote runs; a moment later."""
    stages = [
        lambda: True,
        lambda: bool(cli.home.exists() if cli.daemon else cli.homes()),
        lambda: "jobvisor-zygote" in cli.everything().values(),
        lambda: "job:1" in cli.processes().values(),
    ]
    with cli.start("run", "pace", "img", "--target", "new", "--until", cli.path("end")) as command:
        wait_until(stages[after], "the moment has come")
        command.send_signal(number)
        _, err = command.communicate(timeout=30)
        if number is HUP:
            end(cli)
        else:
            assert not cli.processes()
        cli.nothing_left()
    assert command.returncode == -number
    assert after == 0 or "Traceback" not in err  # Python itself is starting, and the signal meets its own ways
    assert number is HUP or not os.path.exists(cli.path("new"))


@with_daemon
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_daemons_job_goes_on_when_the_command_is_killed_or_stopped(cli: Cli, number: signal.Signals) -> None:
    with started(cli) as command:
        command.send_signal(number)
        wait_until(lambda: cli.state(command.pid) in "TZ", "it happened")
        cli.working()
        end(cli)
        wait_until(lambda: os.path.exists(cli.path("new")), "the job completes")
        command.send_signal(signal.SIGCONT)
        command.communicate(timeout=30)
    assert command.returncode == (-number if number is signal.SIGKILL else 0)


def another_daemon(cli: Cli, than: int) -> bool:
    return cli.daemon_pid() not in (0, than)


@with_daemon
def test_the_run_goes_on_when_the_daemon_is_killed(cli: Cli) -> None:
    with started(cli) as command:
        for _ in range(3):
            killed = cli.daemon_pid()
            os.kill(killed, signal.SIGKILL)
            wait_until(partial(another_daemon, cli, killed), "the command has started another one")
            cli.working()
        end(cli)
        _, err = command.communicate(timeout=30)
    assert command.returncode == 0
    assert "pace of img to new completed in" in err
    assert err.count("completed") == 1


@with_daemon
def test_an_interrupt_is_obeyed_when_the_daemon_was_killed(cli: Cli) -> None:
    with started(cli) as command:
        os.kill(cli.daemon_pid(), signal.SIGKILL)
        command.send_signal(INT)
        command.communicate(timeout=30)
        alone(cli)
    assert command.returncode == -INT
    assert not os.path.exists(cli.path("new"))


@with_daemon
def test_a_daemon_that_hangs_does_not_keep_the_terminal(cli: Cli) -> None:
    """Two ^C, and not at the same moment."""
    with started(cli) as command:
        daemon = cli.daemon_pid()
        os.kill(daemon, signal.SIGSTOP)
        command.send_signal(INT)
        time.sleep(2 * SAME_REQUEST)  # two signals that come closer together are one request
        command.send_signal(INT)
        _, err = command.communicate(timeout=30)
        os.kill(daemon, signal.SIGCONT)
    assert command.returncode == -INT
    assert err.endswith("detached: the daemon does not answer; job 1 may go on\n")


@both_ways
def test_an_abort_that_came_too_late_is_told_as_it_was(cli: Cli) -> None:
    """The worker is past its work and only lingers: the job completes, and the command still dies of the signal."""
    with started(cli, "--linger", cli.path("gate")) as command:
        end(cli)
        wait_until(lambda: os.path.exists(cli.path("new")), "the work is done")
        command.send_signal(INT)
        assert command.stderr is not None
        while "aborting" not in command.stderr.readline():
            pass
        Path(cli.path("gate")).touch()
        _, err = command.communicate(timeout=30)
    assert command.returncode == -INT
    assert "completed in" in err
    assert err.endswith(", before it could be aborted\n")
    assert os.path.exists(cli.path("new"))


@pytest.fixture
def own_signals() -> Iterator[None]:
    """An Inbox leaves the signals as a shell has them: with its SIGPIPE a later test would end the whole run."""
    before = {number: signal.getsignal(number) for number in (INT, TERM, HUP, TSTP, *TAKEN, signal.SIGPIPE)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_news_between_two_looks_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread nudges just as the pipe is read: the mark must not stay set with nothing in the pipe."""
    read = os.read
    inbox = Inbox()

    def nudged_meanwhile(fd: int, most: int) -> bytes:
        inbox.nudge()
        return read(fd, most)

    inbox.nudge()
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", nudged_meanwhile)
        inbox.wait(0)
    inbox.nudge()
    began = time.monotonic()
    inbox.wait(5)
    inbox.release()
    assert time.monotonic() - began < 5, "it sleeps through all further news"


def test_news_after_the_end_are_no_news() -> None:
    """Other threads hear of the end later than the command; a write to a pipe without reader would end it."""
    program = "from jobvisor_cli.signals import Inbox; inbox = Inbox(); inbox.release(); inbox.nudge(); print('alive')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done
