"""What outlives a job that did not complete, for `retry` to go on from: the supervisor's part of it.

The design is in `jobvisor_workers.keeping`. All of this reads or writes job directories; on the journal's thread.
"""

from __future__ import annotations

import os
import sqlite3

import msgspec

from jobvisor import store
from jobvisor.errors import NoSuchJob
from jobvisor.home import Home
from jobvisor.info import JobInfo, Partial
from jobvisor_workers import finished
from jobvisor_workers.protocol import Life, Temporary
from jobvisor_workers.settle import read_life


def hand_on(before: str, directory: str) -> None:
    """A retry is accepted: the new job shares the map of the job before it, if there is something to go on from."""
    new = os.path.join(directory, finished.NAME)
    if os.path.lexists(new):  # of a start that was not accepted, and whose id is given again
        os.unlink(new)
    if finished.read(before).processed:
        try:
            os.link(os.path.join(before, finished.NAME), new)
        except OSError:  # a filesystem without hard links: it begins anew
            pass


def told(directory: str) -> Partial | None:
    """What a job that did not complete has kept."""
    known = finished.read(directory)
    return Partial(known.begun.partial, known.processed) if known.begun and known.processed else None


def end(directory: str) -> None:
    """The job completed: nobody goes on from what was kept."""
    try:
        os.truncate(os.path.join(directory, finished.NAME), 0)
    except FileNotFoundError:
        pass


def tell_earlier(db: sqlite3.Connection, home: Home, final: JobInfo) -> dict[int, JobInfo]:
    """Of the jobs that this one went on from is now the same kept; returns their infos."""
    changed: dict[int, JobInfo] = {}
    earlier = final.retry_of
    while earlier is not None and _share(home.job(earlier), home.job(final.id)):
        try:
            info = store.info(db, earlier)
        except NoSuchJob:
            break
        changed[earlier] = msgspec.structs.replace(info, partial=final.partial)
        store.finish(db, changed[earlier])
        earlier = info.retry_of
    return changed


def disposable(directory: str) -> list[Life]:
    """The names that are to go with a job that is forgotten, since no other job can go on from them."""
    try:
        if os.stat(os.path.join(directory, finished.NAME)).st_nlink > 1:
            return []
    except FileNotFoundError:
        return []
    life = read_life(directory)
    names = {(line.directory, line.name) for line in life if isinstance(line, Temporary) and line.kept}
    begun = finished.read(directory).begun
    if begun and begun.partial:  # of a retry that did not come to it
        names.add((os.path.dirname(begun.partial), os.path.basename(begun.partial)))
    return [Temporary(*name) for name in sorted(names)]


def _share(one: str, other: str) -> bool:
    try:
        return os.path.samefile(os.path.join(one, finished.NAME), os.path.join(other, finished.NAME))
    except FileNotFoundError:
        return False
