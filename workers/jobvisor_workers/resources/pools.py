"""The libvirt side of a worker: volumes found by name, worked on by path where there is one, pools told of it.

The worker opens a connection of its own, after the fork (one must not be on both sides of it), registers no event loop
(with one libvirtd would drop a client that is suspended for 30 s), and closes it before the work: libvirtd may be
restarted meanwhile.
"""

from __future__ import annotations

import os
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec

from jobvisor_workers.errors import JobError
from jobvisor_workers.jobtype import WRITE, Access, JobType
from jobvisor_workers.resources import uri as uris
from jobvisor_workers.resources.uri import Name

if TYPE_CHECKING:
    import libvirt

    from jobvisor_workers.locks import Lock

Job = TypeVar("Job", bound=JobType)

#: Kinds of pools whose volumes are the files of one directory.
DIRECTORIES = {"dir", "fs", "netfs"}
#: Those whose volumes are block devices of this host, which only the pool's driver can make and delete.
DRIVEN = {"disk", "logical", "zfs"}
#: What libvirt says when it has work of its own to do in the pool ("has asynchronous jobs running"), and of defects.
BUSY = 1
#: Seconds in which such work must end, and between two tries.
BUSY_TIME, BUSY_PAUSE = 30.0, 0.2
#: Looks at a file that changes while libvirtd and we describe it.
LOOKS = 5


class Pools:
    """One libvirtd, as one job sees it."""

    def __init__(self, uri: str, doing: str) -> None:
        """`doing`: the verb of error messages, a job type's name."""
        self.uri, self._doing = uri, doing
        self._connection: libvirt.virConnect | None = None
        #: Of names with a local path: path → name.
        self.names: dict[str, Name] = {}
        self._existing: set[str] = set()
        #: Pools to be refreshed when the job is complete.
        self.changed: set[str] = set()

    # --- names -----------------------------------------------------------------------------------------------

    def localize(self, job: Job) -> Job:
        """The job with the paths of the volumes that it names, where there is one that this process may use.

        A volume to be made in a pool that is a directory has the path that it will have there. Raises JobError.
        """
        paths: dict[str, str] = {}
        for field, resource in job.resources().items():
            value = getattr(job, field)
            if not value or not value.startswith(uris.VOLUME):
                continue
            name = uris.parse(value)
            access = resource.access_with(msgspec.structs.asdict(job))
            path = self.path(name, access, new=resource.new)
            if path is None:
                if not job.remote and not (job.fills and resource.new and self.is_driven(name)):
                    self._no_path(name, job.name())
                continue
            if access is WRITE:
                self.changed.add(name.pool)
            self.names[path] = name
            paths[field] = path
        return msgspec.structs.replace(job, **paths)

    def path(self, name: Name, access: Access, *, new: bool = False) -> str | None:
        """Where a volume is, or will be, for this process; None when only libvirtd gets at it. Raises JobError."""
        pool = self.pool(name.pool, f"{name}")
        if not uris.is_local(self.uri):
            return None
        volume = self._find(pool, name, missing_ok=new)
        if volume is None:
            return self._path_of_new(pool, name)
        path: str = self.ask(volume.path, f"{name}")
        mode = os.R_OK | (os.W_OK if access is WRITE else 0)
        if not os.path.isabs(path) or not os.access(path, mode):
            return None
        if os.path.isfile(path):
            self._existing.add(path)
        return path

    def pool(self, name: str, what: str) -> libvirt.virStoragePool:
        """An active pool. `what`: the resource of error messages. Raises JobError."""
        pool = self.inactive_pool(name, what)
        if not self.ask(pool.isActive, what):
            start = f"pool-start {Name(name)}"
            raise JobError(f"cannot {self._doing} {what}: pool {name} at {self.uri} is not active; start it: {start}")
        return pool

    def inactive_pool(self, name: str, what: str) -> libvirt.virStoragePool:
        """A pool in whatever state. Raises JobError."""
        return self.ask(lambda: self.connection.storagePoolLookupByName(name), what)

    def volume(self, name: Name) -> libvirt.virStorageVol:
        """Raises JobError."""
        found = self._find(self.pool(name.pool, f"{name}"), name, missing_ok=False)
        assert found is not None
        return found

    def exists(self, name: Name) -> bool:
        """Raises JobError when its pool does not answer."""
        return self._find(self.pool(name.pool, f"{name}"), name, missing_ok=True) is not None

    def _find(self, pool: libvirt.virStoragePool, name: Name, *, missing_ok: bool) -> libvirt.virStorageVol | None:
        import libvirt

        def look() -> libvirt.virStorageVol | None:
            try:
                return pool.storageVolLookupByName(name.volume)
            except libvirt.libvirtError as error:
                if missing_ok and error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                    return None
                raise

        return self.ask(look, f"{name}")

    def _path_of_new(self, pool: libvirt.virStoragePool, name: Name) -> str | None:
        xml = ElementTree.fromstring(self.ask(lambda: pool.XMLDesc(0), f"{name}"))
        directory = xml.findtext("target/path") or ""
        if xml.get("type") not in DIRECTORIES or not os.access(directory, os.W_OK | os.X_OK):
            return None
        # libvirtd may live in another mount namespace, where another filesystem is mounted there.
        room = os.statvfs(directory)
        capacity = self.ask(pool.info, f"{name}")[1]
        if capacity != room.f_blocks * room.f_frsize:
            return None
        assert name.volume
        return os.path.join(directory, name.volume)

    def is_driven(self, name: Name) -> bool:
        """True for a volume that is not there yet, and that its pool's driver can make as a block device here."""
        pool = self.pool(name.pool, f"{name}")
        kind = ElementTree.fromstring(self.ask(lambda: pool.XMLDesc(0), f"{name}")).get("type")
        return kind in DRIVEN and uris.is_local(self.uri) and self._find(pool, name, missing_ok=True) is None

    def _no_path(self, name: Name, job_type: str) -> NoReturn:
        raise JobError(
            f"cannot {job_type} {name}: {job_type} needs the file itself, and what {self.uri} says of it is no path "
            "here that you may use; run it where the file is, as a user who may open it"
        )

    # --- before and after the work ---------------------------------------------------------------------------

    def check(self, locks: Iterable[Lock]) -> None:
        """What is locked is what libvirtd means by that name, which may live in another mount namespace.

        Raises JobError.
        """
        for lock in locks:
            if lock.path in self._existing and not self._is_same(lock.fd, self.names[lock.path]):
                raise JobError(
                    f"cannot {self._doing} {self.names[lock.path]}: libvirt at {self.uri} sees another file at "
                    f"{lock.path} than this process; run it where libvirtd runs"
                )

    def _is_same(self, fd: int, name: Name) -> bool:
        volume = self.volume(name)
        for _ in range(LOOKS):
            xml = ElementTree.fromstring(self.ask(lambda: volume.XMLDesc(0), f"{name}"))
            changed = xml.findtext("target/timestamps/ctime") or ""
            seconds, _, fraction = changed.partition(".")
            if not seconds or int(seconds) * 10**9 + int(fraction.ljust(9, "0")) == os.fstat(fd).st_ctime_ns:
                return True
            time.sleep(0.02)
        return False

    @property
    def untold(self) -> str | None:
        """What is so as long as `refresh` was not called."""
        commands = [f"virsh -c {self.uri} pool-refresh {name}" for name in sorted(self.changed)]
        return f"virsh may not see it yet; then: {' && '.join(commands)}" if commands else None

    def refresh(self) -> list[str]:
        """Tell libvirtd of what changed in its pools; returns what is to be told to the user."""
        warnings = []
        for name in sorted(self.changed):
            try:
                self._refresh(name)
            except JobError as error:
                warnings.append(f"virsh may not see it yet: {error}; then: virsh -c {self.uri} pool-refresh {name}")
        return warnings

    def _refresh(self, name: str) -> None:
        import libvirt

        deadline = time.monotonic() + BUSY_TIME
        while True:
            pool = self.inactive_pool(name, str(Name(name)))
            try:
                pool.refresh(0)
                return
            except libvirt.libvirtError as error:
                if error.get_error_code() != BUSY or time.monotonic() > deadline:
                    raise self.problem(error, f"refresh pool {name}")
            time.sleep(BUSY_PAUSE)

    # --- the connection --------------------------------------------------------------------------------------

    @property
    def connection(self) -> libvirt.virConnect:
        """Open from its first use until `close`. Raises JobError."""
        if self._connection is None:
            module = load()
            try:
                self._connection = module.open(self.uri)
            except module.libvirtError as error:
                raise JobError(f"cannot {self._doing}: cannot reach libvirt at {self.uri}: {_words(error)}")
        return self._connection

    def close(self) -> None:
        """The next use opens another one."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        import libvirt

        try:
            connection.close()
        except libvirt.libvirtError:  # it was lost before
            pass

    def ask(self, question: Any, what: str) -> Any:
        """What a call of libvirt's answers. `what`: the resource of error messages. Raises JobError."""
        try:
            return question()
        except load().libvirtError as error:
            raise self.problem(error, f"{self._doing} {what}")

    def problem(self, error: libvirt.libvirtError, doing: str) -> JobError:
        """The sentence for what libvirtd refused."""
        import libvirt

        advice = ""
        if error.get_error_code() in (libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_NO_STORAGE_VOL):
            other = uris.SYSTEM if self.uri == uris.SESSION else None
            advice = f" (at {self.uri})" + (f"; if it is the system's, add -c {other}" if other else "")
        elif error.get_error_code() == libvirt.VIR_ERR_OPERATION_DENIED:
            advice = f" (at {self.uri})"
        elif error.get_error_domain() == libvirt.VIR_FROM_RPC:
            advice = f" (the connection to {self.uri} was lost)"
        return JobError(f"cannot {doing}: {_words(error)}{advice}")


def load() -> Any:
    """Libvirt's module, silenced: what it prints by itself is in its exceptions too. Raises JobError."""
    import urllib.parse  # noqa: F401 - for `uris`, before the worker is a user who may not read it

    try:
        import libvirt
    except ImportError:
        raise JobError(
            "cannot use vol:// and pool://: Python's module for libvirt is not installed; "
            "pip install 'jobvisor[libvirt]'"
        )
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


def _words(error: libvirt.libvirtError) -> str:
    return (error.get_error_message() or str(error)).rstrip(".").replace("\n", " ")
