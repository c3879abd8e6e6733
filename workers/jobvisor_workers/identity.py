"""Becoming the user for whom a job is, for good; and the environment that this user's programs expect."""

from __future__ import annotations

import ctypes
import os

from jobvisor_workers.protocol import Requester

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
#: What is of the machine, not of the user that the zygote runs as.
SHARED = ("LANG", "LANGUAGE", "TZ")
#: <linux/prctl.h>
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38


def become(requester: Requester) -> None:
    """Groups, group, user: in this order, all three ids of each, and no way back. Before any thread is started.

    Not to be traced or dumped afterwards: this memory came from a process that has the requests of all users. Raises
    OSError, and then nothing may be done any more.
    """
    uid, gid = requester.uid, requester.gid
    os.setgroups(requester.groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise PermissionError(0, "the kernel did not change all ids")
    if uid:
        _prove_no_way_back()


def environment(requester: Requester) -> dict[str, str]:
    """What a program run by this user finds; nothing of the zygote's own user."""
    kept = {name: value for name, value in os.environ.items() if name in SHARED or name.startswith("LC_")}
    return kept | {"HOME": requester.home, "USER": requester.user, "LOGNAME": requester.user, "PATH": PATH}


def _prove_no_way_back() -> None:
    try:
        os.setresuid(-1, 0, -1)
    except PermissionError:
        return
    raise PermissionError(0, "root's rights could be had back")


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
