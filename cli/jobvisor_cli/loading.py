"""Job types for the command line, of which some come from other packages and may not load."""

from __future__ import annotations

import click

from jobvisor_workers import registry
from jobvisor_workers.jobtype import JobType, arguments


class BrokenType(click.ClickException):
    """The package that declares a job type cannot be imported, or the declaration makes no sense."""

    exit_code = 1

    def __init__(self, name: str, error: Exception) -> None:
        self.why = f"{type(error).__name__}: {error}"
        super().__init__(f"cannot load job type {name}: {self.why}")


def load(name: str) -> type[JobType]:
    """Raises registry.UnknownType, BrokenType."""
    try:
        job_type = registry.get(name)
        list(arguments(job_type))
    except registry.UnknownType:
        raise
    except Exception as error:  # whatever somebody else's module does while it is imported, or declares
        raise BrokenType(name, error)
    return job_type


def one_line(name: str) -> str:
    """What a type is for; types of other packages are imported to find out."""
    if name in registry.BUILT_IN:
        return registry.BUILT_IN[name][1]
    try:
        return load(name).summary()
    except BrokenType as error:
        return f"(cannot be loaded: {error.why})"
