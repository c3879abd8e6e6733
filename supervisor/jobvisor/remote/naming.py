"""What a caller wants to start, taken apart as far as this Python knows the job type."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from jobvisor.errors import UsageError
from jobvisor_workers import registry
from jobvisor_workers.jobtype import JobType, Resource


def named(job: JobType | str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any], Mapping[str, Resource] | None]:
    """(name, arguments, those of them that name resources; None when the type is not known here). Raises UsageError."""
    if isinstance(job, JobType):
        if args:
            raise UsageError(f"cannot start {job.name()}: give the arguments in the job or by name, not both")
        fields = {key: value for key, value in msgspec.to_builtins(job).items() if key != "type"}
        return job.name(), fields, job.resources()
    fields = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in args.items()}
    try:
        return job, fields, registry.get(job).resources()
    except Exception:  # not known, or its module is broken here: what counts is what the daemon knows
        return job, fields, None
