"""Files and block devices by path: what a name stands for, told by what it is.

Two names of one file (hard links, symbolic links, two device nodes) have one key:

    file:<st_dev>:<st_ino>      block:<major>:<minor>      new:<st_dev of the directory>:<st_ino>/<name>
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Literal, NamedTuple

from jobvisor_workers.data import libc
from jobvisor_workers.errors import JobError, from_os_error

Kind = Literal["file", "block"]
#: Symbolic links followed for the last part of a name; the kernel gives up at the same number.
LINKS = 40


class VolumeFacts(NamedTuple):
    """What an open volume is; size in bytes."""

    kind: Kind
    size: int


def facts(fd: int) -> VolumeFacts:
    """Kind and size of an open file or block device; the descriptor's offset stays where it was."""
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode):
        return VolumeFacts("file", status.st_size)
    offset = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        return VolumeFacts("block", os.lseek(fd, 0, os.SEEK_END))
    finally:
        os.lseek(fd, offset, os.SEEK_SET)


def identify(path: str, *, new: bool = False) -> str:
    """The key of what an absolute path stands for, seen with the rights of the calling process.

    new: the name may be free, and then its directory and name make the key. A name that exists has the key of what is
    there either way. Raises JobError when the path leads to nothing, or to something that is no volume.
    """
    doing = f"create {path}" if new else f"open {path}"
    try:
        key = key_of(os.stat(path), doing)
        if libc.leads_through_magic_link(path):
            raise JobError(f"cannot {doing}: it names what some process has open, not a file; give the file's own name")
        return key
    except FileNotFoundError as error:
        if not new:
            raise no_such(path, error, doing)
    except OSError as error:
        raise no_such(path, error, doing)
    return _key_of_new(path, doing)


def key_of(status: os.stat_result, doing: str) -> str:
    """The key of an existing volume; `doing` is like "open /v/a.raw". Raises JobError when it is no volume."""
    if kind_of(status, doing) == "block":
        return f"block:{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return f"file:{status.st_dev}:{status.st_ino}"


def kind_of(status: os.stat_result, doing: str) -> Kind:
    """Raises JobError for everything that is neither a regular file nor a block device."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISBLK(mode):
        return "block"
    names = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
    }
    what = names.get(stat.S_IFMT(mode), "an object of the kernel without a file")
    raise JobError(f"cannot {doing}: it is {what}, not a file or block device")


def no_such(path: str, error: OSError, doing: str) -> JobError:
    """The sentence for a path that cannot be followed, naming the part where it ends."""
    part = _stopped_at(path)
    above = os.path.dirname(part)
    match error.errno:
        case errno.ENOENT if os.path.islink(part):
            return JobError(f"cannot {doing}: {part} is a symbolic link to {os.readlink(part)}, which does not exist")
        case errno.ENOENT if part == path:
            return JobError(f"cannot {doing}: no such file")
        case errno.ENOENT:
            return JobError(f"cannot {doing}: no such directory: {part}")
        case errno.ENOTDIR:
            return JobError(f"cannot {doing}: {above} is not a directory")
        case errno.EACCES:
            return JobError(f"cannot {doing}: permission denied in the directory {above}")
        case errno.ELOOP:
            return JobError(f"cannot {doing}: {part} is a symbolic link that leads back to itself")
        case errno.ENAMETOOLONG:
            return JobError(f"cannot {doing}: the name is too long for the filesystem")
    return from_os_error(error, doing)


def _stopped_at(path: str) -> str:
    """The shortest beginning of a path that cannot be followed; the whole path when all of them can by now."""
    parts = path.rstrip("/").split("/")
    for count in range(2, len(parts)):
        beginning = "/".join(parts[:count])
        try:
            # With the slash: a file in the middle, and a directory that may not be searched, stop the next part.
            os.stat(beginning + "/.")
        except OSError as error:
            below = "/".join(parts[: count + 1])
            return below if error.errno in (errno.EACCES, errno.ENOTDIR) and _is_there(beginning) else beginning
    return path


def _is_there(path: str) -> bool:
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def _key_of_new(path: str, doing: str) -> str:
    """Directory and name of a file to be made; a dangling symbolic link stands for the name it points to."""
    name = path
    for _ in range(LINKS):
        if not os.path.islink(name):
            break
        name = os.path.join(os.path.dirname(name), os.readlink(name))
    directory, last = os.path.split(name)
    if last in ("", ".", ".."):
        raise JobError(f"cannot {doing}: that is the name of a directory, and none is there")
    try:
        status = os.stat(directory)
    except OSError as error:
        raise no_such(directory, error, doing) if error.errno != errno.ENOENT else _no_directory(directory, doing)
    return f"new:{status.st_dev}:{status.st_ino}/{last}"


def _no_directory(directory: str, doing: str) -> JobError:
    missing = _stopped_at(directory)
    if os.path.islink(missing):
        return no_such(directory, FileNotFoundError(errno.ENOENT, ""), doing)
    return JobError(f"cannot {doing}: no such directory: {missing}")
