"""Job types: one msgspec Struct each, whose tag is its name and whose fields are its arguments.

    class XorCopy(JobType, tag="xor-copy"):
        '''Copy a volume, every byte XORed with a key.'''

        source: Annotated[str, volume("volume to read", READ)]
        target: Annotated[str, new_volume("where the copy goes")]
        key: Annotated[int, Meta(ge=1, le=255, description="the byte to XOR with")] = 255
        retry: ClassVar = "restart"

        def run(self, worker: Worker) -> dict[str, Any]: ...

The fields validate a request and become the command line, the JSON schema and `jobvisor types`: a required field is a
positional argument, one with a default is an option, a Literal a choice, a bool a pair --x/--no-x.
"""

from __future__ import annotations

import enum
import functools
import inspect as pyinspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
from msgspec import NODEFAULT, Meta, Struct
from msgspec import inspect as msginspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jobvisor_workers.worker import Worker


class Access(enum.StrEnum):
    """How a job uses a resource: READ shares it with other readers, WRITE has it alone."""

    READ = "read"
    WRITE = "write"


READ, WRITE = Access.READ, Access.WRITE


#: Where a field says that it may be one: the job's standard input, or its standard output.
PIPE = "-"


class Resource(Struct, frozen=True):
    """What a field names. `new`: the name must be free, or be given up by --replace.

    `written_if`: another field; when that has a value, READ becomes WRITE. `piped`: "-" is no path but a pipe.
    """

    kind: Literal["volume", "pool"]
    access: Access
    new: bool = False
    written_if: str | None = None
    piped: bool = False

    def is_pipe(self, value: object) -> bool:
        """Whether this value of the field is a pipe and no path."""
        return self.piped and value == PIPE

    def access_with(self, fields: Mapping[str, Any]) -> Access:
        """The access that a job with these arguments needs."""
        return WRITE if self.written_if and fields.get(self.written_if) else self.access


def volume(description: str, access: Access, *, written_if: str | None = None, piped: bool = False) -> Meta:
    """A field that names an existing file, block device or volume of libvirt's; the others: see Resource."""
    return Meta(
        description=description,
        min_length=1,
        pattern=r"^[^\x00]+$",
        extra={"resource": Resource("volume", access, written_if=written_if, piped=piped)},
    )


def new_volume(description: str, *, piped: bool = False) -> Meta:
    """A field that names a file, or a volume of libvirt's, to be created (alone in use from its first byte).

    `piped`: see Resource.
    """
    return Meta(
        description=description,
        min_length=1,
        pattern=r"^[^\x00]+$",
        extra={"resource": Resource("volume", WRITE, new=True, piped=piped)},
    )


def pool(description: str, access: Access) -> Meta:
    """A field that names a pool of libvirt's."""
    return Meta(
        description=description,
        min_length=1,
        pattern=r"^[^\x00]+$",
        extra={"resource": Resource("pool", access)},
    )


def byte_size(description: str, *, least: int = 0) -> Meta:
    """An int field that is a number of bytes: the command line takes 10G or 512MiB for it."""
    return Meta(description=description, ge=least, extra={"unit": "bytes"})


class JobType(Struct, forbid_unknown_fields=True, tag_field="type"):
    """Base of all job types; subclass with `tag="name"`, a docstring and `run`."""

    #: What may happen to a job of this type that failed: never | restart (from the beginning) | continue.
    retry: ClassVar[Literal["never", "restart", "continue"]] = "never"
    #: False when a stop would do harm, so that suspend answers that it cannot.
    can_suspend: ClassVar[bool] = True
    #: The work is done inside another program (libvirtd, QEMU); signals to the worker alone would not reach it.
    delegated: ClassVar[bool] = False
    #: It also works on volumes of libvirt's that have no path here (`worker.pools`); other types refuse those.
    remote: ClassVar[bool] = False
    #: It can fill a new volume that only a pool's driver can make, a partition (`making.make`); other types refuse it.
    fills: ClassVar[bool] = False
    #: Each job of the type reads what its user sends it (worker.stdin), or writes what its user reads (worker.stdout).
    reads_stdin: ClassVar[bool] = False
    writes_stdout: ClassVar[bool] = False

    @property
    def has_stdin(self) -> bool:
        """Whether this job reads what its user sends: as its type says, or because a volume to read is "-"."""
        return self.reads_stdin or any(not resource.new for resource in self._pipes())

    @property
    def has_stdout(self) -> bool:
        """Whether this job writes what its user reads: as its type says, or because a new volume is "-"."""
        return self.writes_stdout or any(resource.new for resource in self._pipes())

    def _pipes(self) -> Iterator[Resource]:
        return (each for field, each in self.resources().items() if each.is_pipe(getattr(self, field)))

    def load(self) -> None:
        """Import what `run` would import only when it comes to it.

        Called before a worker becomes another user, who may not be able to read the files of those modules.
        """

    def plan(self, worker: Worker) -> None:
        """Look before anything is touched: raise JobError, or lock further resources (a backing chain).

        Runs after the declared resources are locked. A dry run ends after it, and says what `worker.expect` was told.
        """

    def run(self, worker: Worker) -> dict[str, Any] | None:
        """Do the work; what is returned becomes the job's `result`."""
        raise NotImplementedError

    @classmethod
    def name(cls) -> str:
        """The job type's name: its tag."""
        return str(cls.__struct_config__.tag)

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().split("\n")[0]

    @classmethod
    def resources(cls) -> dict[str, Resource]:
        """The fields that name resources, in the order of declaration."""
        return _resources(cls)


@functools.cache  # reading the declaration costs as much as a fork
def _resources(job_type: type[JobType]) -> dict[str, Resource]:
    return {argument.name: argument.resource for argument in arguments(job_type) if argument.resource is not None}


class Argument(Struct, frozen=True):
    """One field of a job type, as command line, documentation and schema need it."""

    name: str
    description: str
    required: bool
    default: Any
    choices: tuple[str, ...]
    #: size: an int that counts bytes.
    kind: Literal["str", "int", "float", "bool", "size"]
    resource: Resource | None


def arguments(job_type: type[JobType]) -> Iterator[Argument]:
    """The declared fields of a job type, required ones first as they stand."""
    info = msginspect.type_info(job_type)
    assert isinstance(info, msginspect.StructType)
    for field in info.fields:
        description, resource, unit, bare = "", None, None, field.type
        # Of `Annotated[X | None, …]` and `Annotated[X, …] | None` alike (a pattern fits only the second).
        while isinstance(bare, msginspect.Metadata | msginspect.UnionType):
            if isinstance(bare, msginspect.UnionType):
                bare = next(option for option in bare.types if not isinstance(option, msginspect.NoneType))
                continue
            description = (bare.extra_json_schema or {}).get("description", description)
            resource = (bare.extra or {}).get("resource", resource)
            unit = (bare.extra or {}).get("unit", unit)
            bare = bare.type
        choices: tuple[str, ...] = ()
        kind: Literal["str", "int", "float", "bool", "size"] = "str"
        match bare:
            case msginspect.LiteralType(values=values):
                choices = tuple(str(value) for value in values)
            case msginspect.BoolType():
                kind = "bool"
            case msginspect.IntType():
                kind = "size" if unit == "bytes" else "int"
            case msginspect.FloatType():
                kind = "float"
        default = None if field.default is NODEFAULT else field.default
        yield Argument(field.name, description, field.required, default, choices, kind, resource)


def schema(job_type: type[JobType]) -> dict[str, Any]:
    """The JSON schema of a job type's arguments."""
    return msgspec.json.schema(job_type)


def describe(job_type: type[JobType]) -> dict[str, Any]:
    """All that is declared of a job type, for those who do not import it."""
    return {
        "type": job_type.name(),
        "summary": job_type.summary(),
        "description": pyinspect.getdoc(job_type) or "",
        "arguments": [msgspec.to_builtins(argument) for argument in arguments(job_type)],
        "schema": schema(job_type),
        "retry": job_type.retry,
        "can_suspend": job_type.can_suspend,
        "delegated": job_type.delegated,
    }
