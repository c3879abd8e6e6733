"""Which daemon a command asks, and the way to it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import click

from jobvisor import __version__, places
from jobvisor_cli import streams

if TYPE_CHECKING:
    from jobvisor.client import Client
    from jobvisor.info import DaemonInfo


def choose(*, user: bool, system: bool, home: str | None, socket: str | None) -> None:
    """Leave the choice in the environment, where the library, the daemon and private homes find it.

    An option goes before the environment, and the environment before the default.
    """
    given = {"--user": user, "--system": system, "--home": home is not None, "--socket": socket is not None}
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise click.UsageError(f"{names[0]} and {names[1]} name two daemons; give one of them")
    if "" in (home, socket):
        raise click.UsageError(f"{names[0]} names nothing")
    if socket is not None:
        os.environ["JOBVISOR_SOCKET"] = os.path.abspath(socket)
    elif names:
        os.environ.pop("JOBVISOR_SOCKET", None)
        os.environ["JOBVISOR_HOME"] = os.path.abspath(home or (places.SYSTEM_HOME if system else places.user_home()))


def socket() -> str:
    """Where the daemon listens that was chosen."""
    return os.environ.get("JOBVISOR_SOCKET") or places.socket_of(places.default_home())


def running() -> Client:
    """To the daemon if one runs: none is started."""
    from jobvisor.client import Client

    return Client(socket())


def client() -> Client:
    """To the daemon; the user's own is started when none runs, and replaced when it is older than this command.

    Raises JobvisorError.
    """
    from jobvisor.client import Client

    client = Client()
    known = client.daemon()
    # One that stays until it is told was not started by a command, and a named socket is somebody else's affair.
    own = known.uid == os.geteuid() and known.idle_after is not None and not os.environ.get("JOBVISOR_SOCKET")
    if own and known.socket != places.SYSTEM_SOCKET and _numbers(client.version) < _numbers(__version__):
        replace(client, known)
    return client


def replace(client: Client, known: DaemonInfo) -> None:
    """Another daemon in the place of the one that answered; `client` goes on with the new one."""
    from jobvisor import autostart

    autostart.stop(known.socket, known.pid)
    new = client.daemon()
    streams.note(f"daemon {known.pid} ({known.version}) was replaced by {new.pid} ({new.version}); jobs go on")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
