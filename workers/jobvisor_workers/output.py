"""Outputs: nothing half-made is ever visible.

A new file has no name (O_TMPFILE in the target's directory) until the whole job is done; SIGKILL before leaves nothing,
with no cleanup code at all. Where a name is needed (no O_TMPFILE, --replace) `.jobvisor-<id>-…` is written into the
life file before it is made, so that recovery removes it whoever dies. With --keep-partial it has that name from the
beginning, and keeps it if the job does not complete (`keeping`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from jobvisor_workers.errors import JobError, from_os_error
from jobvisor_workers.protocol import Linked, Temporary

if TYPE_CHECKING:
    from jobvisor_workers.keeping import Keeping

NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


class Output:
    """A file in the making; `fd` is open for reading and writing, `path` names it for this process and its children."""

    def __init__(
        self,
        path: str,
        job: int,
        *,
        mode: int,
        replace: bool,
        record: Callable[[Temporary], None],
        keeping: Keeping | None = None,
    ) -> None:
        """`mode`: permission bits, already masked; `record` writes a name into the life file before it is made."""
        self.target = os.path.realpath(path) if replace else path
        self.replace = replace
        self.sealed = False
        self._record, self._mode, self._keeping = record, mode, keeping
        directory, self.name = os.path.split(self.target)
        self.directory_path = directory or "/"
        # Ids are unique in one home only; two homes may work in one directory.
        self._spare_name = f".jobvisor-{job}-{os.urandom(4).hex()}"
        self._temporary: str | None = None
        try:
            self.directory = os.open(self.directory_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(error, f"create {path} in {self.directory_path}")
        try:
            if not replace and self._exists():
                raise JobError(f"cannot create {path}: it exists already; choose another name")
            self.fd = self._open_kept(path, keeping) if keeping else self._open(path)
            if not keeping:  # a partial is nobody else's before it is complete
                os.fchmod(self.fd, mode)
        except BaseException:
            os.close(self.directory)
            raise

    @property
    def partial(self) -> str:
        """The path by which it is known before it has its name, if it has one."""
        return os.path.join(self.directory_path, self._spare_name)

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"

    def resize(self, size: int) -> None:
        """Set the length of the empty file, bytes. One ftruncate: truncate(0) on the way makes ext4 flush at exit."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise from_os_error(error, f"create {self.target} with {size} bytes")

    def _exists(self) -> bool:
        try:
            os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _open(self, path: str) -> int:
        try:
            return os.open(self.directory_path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in NO_TMPFILE:
                raise from_os_error(error, f"create {path} in {self.directory_path}")
        return self._open_named(path, os.O_CREAT | os.O_EXCL)

    def _open_kept(self, path: str, keeping: Keeping) -> int:
        if not keeping.partial:
            return self._open_named(path, os.O_CREAT | os.O_EXCL, kept=True)
        directory, self._spare_name = os.path.split(keeping.partial)
        if directory != self.directory_path:
            raise JobError(f"cannot continue with {keeping.partial}: {path} is in another directory now; start it anew")
        return self._open_named(path, os.O_NOFOLLOW, kept=True)

    def _open_named(self, path: str, flags: int, *, kept: bool = False) -> int:
        self._record(Temporary(self.directory_path, self._spare_name, kept))
        self._temporary = self._spare_name
        try:
            return os.open(self._spare_name, flags | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self.directory)
        except OSError as error:
            if flags & os.O_CREAT:
                raise from_os_error(error, f"create {path} in {self.directory_path}")
            partial = os.path.join(self.directory_path, self._spare_name)
            raise from_os_error(error, f"continue with {partial} (start it anew)")

    def seal(self) -> None:
        """The content is complete: make it durable. The name comes with the job's commit."""
        try:
            if self._keeping:
                os.fchmod(self.fd, self._mode)
            os.fsync(self.fd)
        except OSError as error:
            raise from_os_error(error, f"write {self.target} to the disk")
        self.sealed = True

    def intent(self) -> Linked:
        """What is written down before the name is made."""
        if self.replace and self._temporary is None:
            self._temporary = self._spare_name
        facts = os.fstat(self.fd)
        return Linked(self.directory_path, self.name, facts.st_dev, facts.st_ino, self._temporary, self.replace)

    def link(self) -> None:
        """Give the file its name. FileExistsError when somebody made that name meanwhile and --replace is not given."""
        if not self.replace:
            self._link_as(self.name)
            if self._temporary:
                os.unlink(self._temporary, dir_fd=self.directory)
        else:
            assert self._temporary is not None
            if os.fstat(self.fd).st_nlink == 0:
                self._link_as(self._temporary)
            os.rename(self._temporary, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self._temporary = None

    def _link_as(self, name: str) -> None:
        if os.fstat(self.fd).st_nlink:
            os.link(self._spare_name, name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            return
        # With dst_dir_fd and follow_symlinks Python calls linkat(AT_SYMLINK_FOLLOW); plain os.link gives EXDEV here.
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self.directory, follow_symlinks=True)

    def discard(self) -> None:
        """Leave nothing, but for a partial worth keeping. An unnamed file goes with its last descriptor."""
        if self.fd < 0:
            return
        if self._temporary and not (self._keeping and self._keeping.leave()):
            remove_if_same(self.directory, self._temporary, os.fstat(self.fd))
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            os.close(self.directory)
            self.fd = -1

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.seal()
        else:
            self.discard()


def remove_if_same(directory: int, name: str, facts: os.stat_result) -> None:
    """Unlink `name` if it is still that very file."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == (facts.st_dev, facts.st_ino):
            os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def sync_directory(path: str) -> None:
    """Make a new name durable; filesystems without fsync for directories are forgiven."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def target_mode(source: int | None, umask: int) -> int:
    """The permission bits of the source, file or device, & ~umask; 0666 & ~umask where there is no source."""
    mode = 0o666 if source is None else stat.S_IMODE(os.fstat(source).st_mode) & 0o777
    return mode & ~umask
