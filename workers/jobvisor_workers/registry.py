"""Which job types there are: built-in ones, modules named by the host, and entry points "jobvisor.jobtypes".

Nothing is imported before it is asked for by name: a command line that wipes does not load what clones.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import msgspec

from jobvisor_workers.jobtype import JobType

GROUP = "jobvisor.jobtypes"

#: name → (module and class, one line of help), so that a list can be shown without importing.
BUILT_IN = {
    "check": ("jobvisor_workers.jobs.check:Check", "Look through the tables of an image, and repair them."),
    "checksum": ("jobvisor_workers.jobs.checksum:Checksum", "Compute the digest of a volume."),
    "clone": ("jobvisor_workers.jobs.clone:Clone", "Copy a volume to a new one of the same format."),
    "compare": ("jobvisor_workers.jobs.compare:Compare", "Compare what a guest sees in two volumes."),
    "commit": ("jobvisor_workers.jobs.commit:Commit", "Write an overlay's data into its backing file."),
    "convert": ("jobvisor_workers.jobs.convert:Convert", "Copy a volume to a new one of another format."),
    "create": ("jobvisor_workers.jobs.create:Create", "Make a new, empty volume."),
    "delete": ("jobvisor_workers.jobs.delete:Delete", "Delete a volume."),
    "pool-build": ("jobvisor_workers.jobs.pool_build:PoolBuild", "Make what a pool consists of."),
    "pool-delete": ("jobvisor_workers.jobs.pool_delete:PoolDelete", "Delete what a pool consists of."),
    "pool-destroy": ("jobvisor_workers.jobs.pool_destroy:PoolDestroy", "Stop a pool, and delete nothing."),
    "pool-refresh": ("jobvisor_workers.jobs.pool_refresh:PoolRefresh", "Let libvirt look anew at a pool's volumes."),
    "pool-start": ("jobvisor_workers.jobs.pool_start:PoolStart", "Start a pool."),
    "download": ("jobvisor_workers.jobs.download:Download", "Copy the bytes of a volume to a file or a pipe."),
    "rebase": ("jobvisor_workers.jobs.rebase:Rebase", "Give an overlay another backing file, or none."),
    "resize": ("jobvisor_workers.jobs.resize:Resize", "Change the capacity of a volume."),
    "upload": ("jobvisor_workers.jobs.upload:Upload", "Write the bytes of a file or a pipe into a volume."),
    "wipe": ("jobvisor_workers.jobs.wipe:Wipe", "Overwrite a volume so that its data cannot be read back."),
}

_added: dict[str, type[JobType]] = {}


class UnknownType(LookupError):
    """No job type of this name. `known`: those that are."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, sorted(known)
        super().__init__(f"no job type is called {name!r}; there are {', '.join(self.known)}")


def add(job_type: type[JobType]) -> None:
    """Make a type known in this process."""
    _added[job_type.name()] = job_type


def add_modules(modules: Iterable[str]) -> None:
    """Import modules, by name or as .py files, and make the job types defined in them known."""
    for name in modules:
        module = load(name)
        for value in list(vars(module).values()):
            if isinstance(value, type) and issubclass(value, JobType) and value.__module__ == module.__name__:
                add(value)


def load(name: str) -> ModuleType:
    """The module of this name, or the one in this .py file; imported once. Raises ImportError."""
    return _from_file(name) if name.endswith(".py") else importlib.import_module(name)


def _from_file(path: str) -> ModuleType:
    name = "jobvisor_types_" + hashlib.sha256(path.encode()).hexdigest()[:12]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot import job types from {path}: it is no Python file")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def preload(modules: Iterable[str]) -> None:
    """In the zygote: import the built-in types and the named modules once, for all workers."""
    for target, _ in BUILT_IN.values():
        _load(target)
    add_modules(modules)


def get(name: str) -> type[JobType]:
    """The job type of this name. Raises UnknownType."""
    if name in _added:
        return _added[name]
    if name in BUILT_IN:
        return _load(BUILT_IN[name][0])
    for point in _entry_points():
        if point.name == name:
            loaded: type[JobType] = point.load()
            add(loaded)
            return loaded
    raise UnknownType(name, names())


def names() -> list[str]:
    """All names, sorted."""
    return sorted({*BUILT_IN, *_added, *(point.name for point in _entry_points())})


def convert(name: str, args: dict[str, Any]) -> JobType:
    """Validated arguments. Raises UnknownType, msgspec.ValidationError."""
    job_type = get(name)
    return msgspec.convert({"type": name, **args}, job_type)


def is_loaded(name: str) -> bool:
    """True when the type can be used without importing anything."""
    return name in _added or (name in BUILT_IN and BUILT_IN[name][0].partition(":")[0] in sys.modules)


def _load(target: str) -> type[JobType]:
    module, _, attribute = target.partition(":")
    loaded: type[JobType] = getattr(importlib.import_module(module), attribute)
    return loaded


def _entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)
