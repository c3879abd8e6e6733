"""From what a caller wrote to what a worker is told: validated, absolute, resolved."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from jobvisor.asking import Options, check_options, connect_of
from jobvisor.asking import umask as process_umask
from jobvisor.errors import NotPermitted, UsageError
from jobvisor.home import boot_id
from jobvisor.record import Notes
from jobvisor_workers import registry
from jobvisor_workers.errors import JobError
from jobvisor_workers.jobtype import READ, JobType
from jobvisor_workers.protocol import Named, Request, Requester
from jobvisor_workers.resources import uri
from jobvisor_workers.resources.path import identify
from jobvisor_workers.resources.uri import Name


def build(
    job: JobType | str,
    args: Mapping[str, Any],
    options: Options,
    *,
    requester: Requester | None = None,
    umask: int | None = None,
) -> tuple[Request, Notes]:
    """A request without an id yet. Raises UsageError; what is wrong with the world is left to the worker.

    `requester`: whom the job is for, in whose name and with whose rights it runs. Their working directory is not ours,
    so paths are to be absolute, and another user's are not looked at here: `entering` resolves them with their rights.
    By default the job is for the user of this process, and has its umask.
    """
    if isinstance(job, JobType):
        name = job.name()
        if args:
            raise UsageError(f"cannot start {name}: give the arguments in the job or by name, not both")
        fields = {key: value for key, value in msgspec.to_builtins(job).items() if key != "type"}
    else:
        name, fields = job, dict(args)
    job_type = known_type(name)
    check_options(name, options)
    for field, resource in job_type.resources().items():
        value = fields.get(field)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, str) and value and not resource.is_pipe(value):
            fields[field] = absolute(value, requester, f"start {name}")
            check_kind(value, resource.kind, f"start {name}")
    uid = requester.uid if requester else os.getuid()
    if options.priority > 0 and uid not in (0, os.getuid()):
        raise NotPermitted(f"a priority above 0, like {options.priority}, is root's to give")
    connect = connect_of(
        (fields.get(field) for field in job_type.resources()), options.connect, requester.uid if requester else None
    )
    options = msgspec.structs.replace(options, connect=connect)
    try:
        fields = msgspec.to_builtins(registry.convert(name, fields))
        fields.pop("type")
        foreign = named(requester) if requester and requester.uid != os.getuid() else None
        keys = {} if foreign else resolve(name, fields, connect, uid)
        request = msgspec.convert(
            {
                "id": 0,
                "type": name,
                "args": fields,
                "created": time.time(),
                "umask": process_umask() if umask is None else umask,
                "resolved": {path: key for path, (key, _) in keys.items()},
                **msgspec.structs.asdict(options),
            },
            Request,
        )
        request = msgspec.structs.replace(request, requester=foreign)
        msgspec.json.encode(request)
    except msgspec.ValidationError as error:
        raise UsageError(f"cannot start {name}: {error}")
    except UnicodeEncodeError:
        raise UsageError(f"cannot start {name}: an argument is not valid UTF-8; rename the file")
    if not 0 <= request.umask <= 0o777:
        raise UsageError(f"umask is to be from 0 to 0777, not {request.umask:#o}")
    paths = [
        fields[field]
        for field, resource in job_type.resources().items()
        if fields.get(field) and not resource.is_pipe(fields[field])
    ]
    return request, Notes(boot=boot_id(), owner_uid=uid, keys=keys, resources=paths)


def known_type(name: str) -> type[JobType]:
    """Raises UsageError."""
    try:
        return registry.get(name)
    except registry.UnknownType as error:
        raise UsageError(str(error))


def named(requester: Requester) -> Requester:
    """With the names that the user database has, if who let the requester in has not looked: that may be slow."""
    if requester.home:
        return requester
    try:
        known = pwd.getpwuid(requester.uid)
    except KeyError:
        return msgspec.structs.replace(requester, user=str(requester.uid), home="/")
    return msgspec.structs.replace(requester, user=known.pw_name, home=known.pw_dir)


def absolute(path: str, requester: Requester | None, doing: str) -> str:
    """Libvirt's names stay as they are. Raises UsageError."""
    if uri.is_name(path):
        return path
    if requester is None:
        return os.path.join(os.getcwd(), path)
    if not os.path.isabs(path):
        raise UsageError(f"cannot {doing}: {path} is a relative path; give it from the root")
    return path


def check_kind(resource: str, kind: Literal["volume", "pool"], doing: str) -> None:
    """What is named is a pool where there is to be one, and nowhere else. Raises UsageError."""
    if uri.is_name(resource):
        try:
            name = uri.parse(resource)
        except JobError as error:
            raise UsageError(str(error))
        if kind == "volume" and name.volume is None:
            raise UsageError(f"cannot {doing}: {resource} is a pool; give a volume in it: vol://POOL/VOLUME")
    if kind == "pool" and not resource.startswith(uri.POOL):
        raise UsageError(f"cannot {doing}: {resource} is no pool; one is named like this: pool://default")


def resolve(name: str, fields: Mapping[str, Any], connect: str | None, uid: int) -> dict[str, tuple[str, str]]:
    """Resource → (key, access) of each that is declared and can be identified now, for this user."""
    keys: dict[str, tuple[str, str]] = {}
    for each in declared(name, fields):
        try:
            known = key_of_name(each.path, connect, uid) or identify(each.path, new=each.new)
            keys[each.path] = (known, each.access)
        except JobError:  # missing, or not ours to see: the worker says so as the job's error
            pass
    return keys


def key_of_name(resource: str, connect: str | None, uid: int) -> str:
    """The key of what has a name of libvirt's; empty for a path. Raises UsageError."""
    if not uri.is_name(resource):
        return ""
    try:
        return uri.key(uri.parse(resource), connect or uri.default_uri(uid), uid)
    except JobError as error:
        raise UsageError(str(error))


def declared(name: str, fields: Mapping[str, Any]) -> list[Named]:
    """The resources that a request names, and the pools of those that are volumes of libvirt's. Raises UnknownType."""
    resources = registry.get(name).resources().items()
    found = [
        Named(fields[field], each.access_with(fields).value, each.new)
        for field, each in resources
        if fields.get(field) and not each.is_pipe(fields[field])
    ]
    pools = {str(Name(uri.parse(each.path).pool)) for each in found if each.path.startswith(uri.VOLUME)}
    return found + [Named(pool, READ.value) for pool in sorted(pools)]
