"""`jobvisor daemon`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

from jobvisor.errors import Unreachable
from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command
from jobvisor_cli.page import LABEL
from jobvisor_cli.sizes import show_age

if TYPE_CHECKING:
    from jobvisor.info import DaemonInfo


@click.command("daemon", cls=Command)
@click.option("--status", is_flag=True, help="tell whether one runs, and which")
@click.option("--stop", is_flag=True, help="end the one that runs; its jobs go on, and the next daemon adopts them")
@click.option("--replace", is_flag=True, help="start a new one in the background in place of the one that runs")
@click.option("--socket", metavar="PATH", type=click.Path(), help="listen there instead of in the home")
@click.option("--socket-group", metavar="GROUP", help="let the members of this group use it")
@click.option("--json", "as_json", is_flag=True, help="with --status: one JSON object")
def command(
    status: bool, stop: bool, replace: bool, socket: str | None, socket_group: str | None, as_json: bool
) -> int | None:
    """Run the daemon in the foreground, until ^C or SIGTERM; or see to the one that runs.

    Commands start a daemon of the user's own by themselves, and it leaves when it has no more to do. One for the whole
    system is run as root, for instance by systemd. The jobs do not depend on the daemon: when it ends they go on.
    """
    if status + stop + replace > 1:
        raise click.UsageError("--status, --stop and --replace are three things to do; give one of them")
    if (status or stop or replace) and (socket or socket_group):
        raise click.UsageError("--socket and --socket-group are for a daemon in the foreground")
    if status:
        return _status(as_json)
    if stop:
        return _stop()
    if replace:
        return _replace()
    _serve(socket, socket_group)
    return None


def _serve(socket: str | None, group: str | None) -> None:
    from jobvisor import daemon

    if socket is not None:
        os.environ["JOBVISOR_SOCKET"] = os.path.abspath(socket)
    config = daemon.Config(socket=os.environ.get("JOBVISOR_SOCKET") or None, group=group)
    daemon.run(config, lambda path: streams.note(f"the daemon listens on {path}; ^C ends it, and jobs go on"))


def _status(as_json: bool) -> int:
    try:
        with reach.running() as client:
            known = client.daemon()
    except Unreachable as error:
        streams.result(f"not running: {error}\n")
        return error.exit_code
    if as_json:
        import msgspec

        streams.json_line(msgspec.to_builtins(known))
    else:
        streams.result("".join(f"{label + ':':<{LABEL}} {text}\n" for label, text in _rows(known)))
    return 0


def _rows(known: DaemonInfo) -> list[tuple[str, str]]:
    leaves = "when it is told" if known.idle_after is None else f"after {known.idle_after:g} s without job and client"
    return [
        ("Daemon", f"pid {known.pid}, version {known.version}"),
        ("Home", known.home),
        ("Socket", known.socket),
        ("Uid", str(known.uid)),
        ("Running for", show_age(time.time() - known.started)),
        ("Jobs", str(known.jobs)),
        ("Leaves", leaves),
    ]


def _replace() -> int:
    from jobvisor.client import Client

    if os.environ.get("JOBVISOR_SOCKET"):
        raise click.UsageError("--replace goes with --home: a daemon on a socket of its own is not started by commands")
    try:
        with reach.running() as client:
            known = client.daemon()
    except Unreachable:
        known = None
    with Client() as client:
        if known:
            reach.replace(client, known)
        else:
            streams.note(f"daemon {client.daemon().pid} was started")
    return 0


def _stop() -> int:
    from jobvisor import autostart

    path = reach.socket()
    pid = autostart.stop(path)
    streams.note(f"no daemon listens on {path}" if pid is None else f"daemon {pid} ended; jobs go on")
    return 0
