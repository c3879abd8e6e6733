"""A program that does one piece of work after the other with --keep-partial, whoever is killed: HOME WORK.

Piece n is a clone of WORK/source to WORK/target-n, or a wipe of WORK/volume-n. What did not complete is retried.
"""

import shutil
import sys
from pathlib import Path

from jobvisor import Job, Supervisor

TYPES = ["support.keep_types"]
#: The pieces take a while.
BANDWIDTH = 60 << 20


def main(home: str, work: Path) -> None:
    with Supervisor(home, types=TYPES) as supervisor:
        while True:
            job = step(supervisor, work)
            (work / "zygotes").write_text(" ".join(map(str, supervisor._core.zygotes().result())))
            with open(work / "accepted", "a") as file:
                file.write(f"{job.id}\n")
            job.wait()


def step(supervisor: Supervisor, work: Path) -> Job:
    """The job of now: one that is not over, or else a new one, which is a retry when it can be."""
    infos = supervisor.jobs(limit=1)
    if infos and not infos[0].ok:
        last = supervisor.job(infos[0].id)
        return last.retry() if infos[0].final else last
    number = sum(info.ok for info in supervisor.jobs())
    source, volume, target = (str(work / name) for name in ("source", f"volume-{number}", f"target-{number}"))
    if number % 2:
        shutil.copyfile(source, volume)
        return supervisor.start("wipe", volume=volume, keep_partial=True, bandwidth=BANDWIDTH)
    return supervisor.start("clone", source=source, target=target, keep_partial=True, bandwidth=BANDWIDTH)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
