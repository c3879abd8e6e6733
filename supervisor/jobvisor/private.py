"""A supervisor for one command: its jobs stop, go on and die with the process, and its home is removed at the end."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from jobvisor import recovery
from jobvisor.core import Core
from jobvisor.errors import HomeInUse, HomeUnusable
from jobvisor.home import Home
from jobvisor.orphan import COLLECT_AGAIN, kill_strays
from jobvisor.places import default_home
from jobvisor.supervisor import Supervisor
from jobvisor_workers.settle import read_life, settle


class PrivateSupervisor(Supervisor):
    """Makes itself a home below the user's; what a killed command left there is put in order first."""

    def __init__(self, *, grace: float = 10.0) -> None:
        """Raises HomeUnusable."""
        parent = Path(default_home(), "private")
        try:
            for directory in (parent.parent, parent):  # a mode is not given to what parents=True makes on the way
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HomeUnusable(str(parent), error.strerror or str(error))
        tidy(str(parent))
        self._detached = False
        self._core = Core(parent / f"{os.getpid()}-{os.urandom(4).hex()}", (), grace, tied=True)

    def detach(self) -> None:
        """The jobs are to go on when this process ends; the zygote then removes the home."""
        self._core.detach()
        self._detached = True

    def close(self, *, abort: bool = False) -> None:
        super().close(abort=abort)
        if not self._detached:
            shutil.rmtree(self.home, ignore_errors=True)


def tidy(parent: str) -> None:
    """Remove the homes of commands that were killed together with their zygote, after settling their outputs."""
    for name in os.listdir(parent):
        owner, _, _ = name.partition("-")
        if not owner.isdigit() or _lives(int(owner)):
            continue
        path = os.path.join(parent, name)
        try:
            home = Home(path)
        except (HomeInUse, HomeUnusable):
            continue
        directories = [home.job(int(job)) for job in os.listdir(home.jobs) if job.isdigit()]
        if not any(isinstance(recovery.look(directory), recovery.Alive) for directory in directories):
            for directory in directories:
                while kill_strays(directory):
                    time.sleep(COLLECT_AGAIN)
                settle(read_life(directory))
            shutil.rmtree(path, ignore_errors=True)
        home.release()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
