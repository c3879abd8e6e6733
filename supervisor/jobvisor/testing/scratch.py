"""Job types that a test module declares for itself, and how a zygote comes to know them."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jobvisor_workers.jobtype import JobType

T = TypeVar("T", bound="type[JobType]")

HEAD = '''"""Job types that a test declared in its own body."""

from __future__ import annotations

from jobvisor_workers import registry

globals().update({{name: value for name, value in vars(registry.load({module!r})).items() if name[:2] != "__"}})
'''


def job_type(declared: T) -> T:
    """Declare a scratch job type, at the top level of a test module; checked at once.

    @job_type
    class Nap(JobType, tag="nap"):
        seconds: float = 1.0

        def run(self, worker): ...

    Workers are forked from a process that imported the test module; there the class must be found again. For a class
    in a test's body there is the fixture of the same name. TypeError when it is no job type.
    """
    if "<locals>" in declared.__qualname__:
        raise TypeError(f"{declared.__name__} is declared in a function: use the fixture job_type there")
    _check(declared)
    return declared


def modules_of(module: ModuleType) -> list[str]:
    """What a zygote must import for the job types that are visible in a module, as `types` of a Supervisor."""
    found: dict[str, None] = {}
    for value in vars(module).values():
        if _is_job_type(value) and value.__module__.partition(".")[0] != "jobvisor_workers":
            found[importable(sys.modules[value.__module__])] = None
    return list(found)


def importable(module: ModuleType) -> str:
    """Its name if a fresh interpreter with this sys.path finds the same file by it, else the file's path."""
    file = os.path.abspath(module.__file__ or "")
    path: list[str] | None = [entry for entry in sys.path if os.path.isabs(entry)]
    for depth in range(module.__name__.count(".") + 1):
        name = ".".join(module.__name__.split(".")[: depth + 1])
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return file
        path = list(spec.submodule_search_locations or [])
    assert spec is not None
    return module.__name__ if spec.origin and os.path.abspath(spec.origin) == file else file


class Scratch:
    """The fixture `job_type`: declares job types in a test's body, by way of a generated module."""

    def __init__(self, path: Path, module: ModuleType) -> None:
        self.path = path
        #: True once the process was started that workers are forked from, and that reads the generated module.
        self.is_late: Callable[[], bool] = lambda: False
        self._module = module
        path.write_text(HEAD.format(module=importable(module)))

    def __call__(self, declared: T) -> T:
        """Declare a job type. It sees what its module sees, but no local names of the test."""
        from jobvisor_workers import registry

        if self.is_late():
            raise RuntimeError(f"{declared.__name__} is to be declared before the test starts its first job")
        _check(declared)
        for value in vars(declared).values():
            _refuse_local_names(declared, value)
        tree = ast.parse(textwrap.dedent(inspect.getsource(declared)))
        statement = tree.body[0]
        assert isinstance(statement, ast.ClassDef)
        statement.decorator_list.clear()
        exec(compile(tree, str(self.path), "exec"), {**vars(self._module)})
        with open(self.path, "a") as file:
            file.write("\n\n" + ast.unparse(tree) + "\n")
        registry.add(declared)
        return declared


def _check(declared: Any) -> None:
    from jobvisor_workers.jobtype import JobType, arguments

    if not _is_job_type(declared) or declared.__struct_config__.tag is None:
        raise TypeError(f'{declared!r} is no job type: derive it from JobType, with tag="…"')
    if declared.run is JobType.run:
        raise TypeError(f"job type {declared.name()} has no run(worker)")
    list(arguments(declared))


def _is_job_type(value: Any) -> bool:
    from jobvisor_workers.jobtype import JobType

    return isinstance(value, type) and issubclass(value, JobType)


def _refuse_local_names(declared: type, value: Any) -> None:
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    if isinstance(function, FunctionType):
        names = sorted({*function.__code__.co_freevars} - {"__class__"})
        if names:
            raise TypeError(f"{declared.__name__} uses {', '.join(names)} of the test: hand it over as a field")
