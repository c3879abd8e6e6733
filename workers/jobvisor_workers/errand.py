"""Errands: short looks and removals in a user's directories, with the rights of that user.

A supervisor of root's must not follow a user's paths with its own rights: whoever may rename a directory there would
lead it anywhere. So the zygote forks a child that becomes the user, does it, and answers on a pipe; no answer is an
answer too (a filesystem that hangs, or a user who kills it).
"""

from __future__ import annotations

import os
import traceback
from typing import NoReturn

from jobvisor_workers.errors import JobError
from jobvisor_workers.identity import become
from jobvisor_workers.protocol import Look, Named, Seen, Settle, encode
from jobvisor_workers.resources.path import identify
from jobvisor_workers.runtime import close_all_but
from jobvisor_workers.settle import settle

#: Seconds until the zygote ends a child that does not answer.
TIME = 3.0
_MODES = {"read": (os.R_OK,), "write": (os.R_OK | os.W_OK,), "any": (os.R_OK, os.W_OK)}


def run(errand: Look | Settle, pipe: int) -> NoReturn:
    """In a fresh child of the zygote, which ends here."""
    try:
        close_all_but({0, 1, 2, pipe})
        become(errand.requester)
        answer = look(errand.volumes) if isinstance(errand, Look) else settle(errand.life) is not None
        rest = encode(answer)
        while rest:
            rest = rest[os.write(pipe, rest) :]
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def look(volumes: list[Named]) -> dict[str, Seen]:
    """What each path stands for, if the calling process may use it so."""
    return {volume.path: _look(volume) for volume in volumes}


def _look(volume: Named) -> Seen:
    try:
        key = identify(volume.path, new=volume.new)
    except JobError as error:
        return Seen(error=str(error))
    place, modes = volume.path, _MODES[volume.access]
    if volume.access != "any" and volume.new:
        place, modes = os.path.dirname(os.path.realpath(volume.path)), (os.W_OK | os.X_OK,)
    elif key.startswith("new:"):
        return Seen(key)
    if not any(os.access(place, mode) for mode in modes):
        return Seen(error=f"cannot use {volume.path}: permission denied", denied=True)
    return Seen(key)
