"""How a job ended: the command's exit code, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobvisor.states import Cause, State
from jobvisor_cli import streams
from jobvisor_cli.table import named

if TYPE_CHECKING:
    from jobvisor.info import JobInfo

FAILED, ABORTED, BUSY, WRONG_STATE = 1, 3, 6, 7


def code(info: JobInfo) -> int:
    """Of an ended job."""
    if info.cause is Cause.BUSY:
        return BUSY
    return {State.COMPLETED: 0, State.ABORTED: ABORTED}.get(info.state, FAILED)


def why(info: JobInfo, what: str, *, warned: bool = False) -> str:
    """Why it is not completed; `what`: its subject. `warned`: its warnings were shown, and are not repeated."""
    if info.state is State.ABORTED:
        return f"{what} was aborted" + (f": {info.errmsg}" if info.errmsg else "")
    message = info.errmsg or f"{what} failed ({info.cause})"
    for text in info.warnings if warned else ():
        message = message.removesuffix(f"; {text}")
    return message


def tell(info: JobInfo, awaited: State | None, *, quiet: bool) -> int:
    """Say how a job ended that somebody waited for, and return the code; `awaited`: the state it was to get into."""
    what = named(info)
    if info.state is awaited or (info.ok and awaited is None):
        if not quiet:
            from jobvisor_cli.render import ending

            streams.note(ending(what, info, None) if info.final else f"{what} is {info.state}")
        return 0
    if info.ok:
        streams.complain(f"{what} completed without being {awaited}")
        return WRONG_STATE
    message = why(info, what)
    streams.complain(message if message.startswith(what) else f"{what}: {message}")
    return code(info)
