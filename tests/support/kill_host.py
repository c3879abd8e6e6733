"""A program that embeds a supervisor and starts jobs until it is killed: kill_host.py HOME WORK SEED [UID].

Each id is written to WORK/accepted as soon as start() returned it, so that none that was promised can be lost unseen.
"""

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from jobvisor import Job, Supervisor, WrongState
from jobvisor.asking import Options
from jobvisor_workers.protocol import Requester

home, work, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
uid = int(sys.argv[4]) if sys.argv[4:] else None
chance = random.Random(seed)


def start(**args: Any) -> Job:
    """A job for this user or for the other one."""
    if uid is None:
        return supervisor.start("steady", **args)
    core = supervisor._core.seen_by(Requester(uid, uid, [uid], "", ""))
    return supervisor.job(core.start("steady", Options(), args).result().id)


with Supervisor(home, types=["support.kill_types"], grace=2.0) as supervisor:
    (work / "zygote").write_text("\n".join(map(str, supervisor._core.zygotes().result())))
    for info in supervisor.jobs(state="suspended", all_users=uid is not None):
        try:
            supervisor.job(info.id).resume(wait=False)
        except WrongState:  # it was over already
            pass
    accepted = os.open(work / "accepted", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for number in range(6):
        name = f"{seed}-{number}"  # of this round alone: a pid comes again
        job = start(
            source=str(work / "source"),
            target=str(work / f"target-{name}"),
            marks=str(work / "marks"),
            delay=chance.choice([0.0, 0.001, 0.004]),
            child=chance.random() < 0.3,
        )
        os.write(accepted, f"{job.id} target-{name}\n".encode())
        try:
            if chance.random() < 0.15:
                job.abort(wait=False)
            elif chance.random() < 0.1:
                job.suspend(wait=False)
        except WrongState:  # it was over already
            pass
        (work / "zygote").write_text("\n".join(map(str, supervisor._core.zygotes().result())))
    while True:
        time.sleep(60)
