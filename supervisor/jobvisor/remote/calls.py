"""Each call of the API: how it is asked and how its answer is read. Whoever has bytes to send can make them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from jobvisor.asking import Options, check_options, checked_id, checked_reason, connect_of, states_of, umask
from jobvisor.errors import UsageError
from jobvisor.info import DaemonInfo, JobInfo, decode_info
from jobvisor.states import Goal, State, Verb

if TYPE_CHECKING:
    from jobvisor.config import Setting
    from jobvisor.hold import Hold
    from jobvisor.schedule import Mask

T = TypeVar("T")
#: What may stand in a URL as it is.
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/,")
#: Reports of progress per second, of one job that is looked at and of many.
CLOSELY, ROUGHLY = 10, 2


class Call(Struct, Generic[T], frozen=True):
    """One request. `key`: it may be sent again without doing it twice; `verb` and `job`: what it wants of which job."""

    method: str
    path: str
    decode: Callable[[bytes], T]
    body: bytes | None = None
    key: str | None = None
    verb: Verb | None = None
    job: int = 0
    streams: bool = False


def start(name: str, fields: Mapping[str, Any], options: Options) -> Call[JobInfo]:
    """Raises UsageError."""
    check_options(name, options)
    said = {key: value for key, value in msgspec.structs.asdict(options).items() if value is not None}
    try:
        body = msgspec.json.encode({"job": {**fields, "type": name}, **said, "umask": umask()})
    except UnicodeEncodeError:
        raise UsageError(f"cannot start {name}: an argument is not valid UTF-8; rename the file")
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"cannot start {name}: {error}")
    return Call("POST", "/v1/jobs", decode_info, body, _key())


def info(id: int) -> Call[JobInfo]:
    return Call("GET", _job(id), decode_info)


def jobs(
    *,
    state: State | str | Iterable[State | str] | None,
    type: str | None,
    resource: str | None,
    limit: int | None,
    since: float | None,
    all_users: bool,
) -> Call[list[JobInfo]]:
    """Raises UsageError."""
    query = {
        "state": ",".join(states_of(state)) or None,
        "type": type,
        "resource": None if resource is None else absolute(resource),
        "limit": limit,
        "since": since,
        "all_users": all_users or None,
    }
    return Call("GET", _with("/v1/jobs", query), _list)


def verb(verb: Verb, id: int, *, wait: bool, force: bool = False) -> Call[JobInfo]:
    query = {"wait": None if wait else False, "force": force or None}
    return Call("POST", _with(f"{_job(id)}/{verb}", query), decode_info, verb=verb, job=id)


def retry(id: int) -> Call[JobInfo]:
    return Call("POST", f"{_job(id)}/retry", decode_info, key=_key())


def forget(id: int) -> Call[None]:
    return Call("DELETE", _job(id), _nothing, verb=Verb.FORGET, job=id)


def forget_ended(before: float | None) -> Call[int]:
    return Call("DELETE", _with("/v1/jobs", {"before": before}), lambda body: int(_member(body, "forgotten")))


def wait(id: int, goal: Goal | None, seconds: float) -> Call[JobInfo]:
    """The answer is the job as it is when that is true, when it is final, or after so many seconds."""
    return Call("GET", _with(f"{_job(id)}/wait", {"for": goal, "timeout": f"{seconds:.3f}"}), decode_info)


def log(id: int, offset: int) -> Call[bytes]:
    return Call("GET", _with(f"{_job(id)}/log", {"offset": offset or None}), bytes)


def events(since: int | None, job: int | None, all_users: bool) -> Call[bytes]:
    """The answer does not end."""
    query = {
        "since": since,
        "jobs": None if job is None else checked_id(job),
        "progress": ROUGHLY if job is None else CLOSELY,
        "all_users": all_users or None,
    }
    return Call("GET", _with("/v1/events", query), bytes)


def send(id: int) -> Call[None]:
    """Its body comes in pieces."""
    return Call("PUT", f"{_job(id)}/stdin", _nothing, streams=True)


def receive(id: int) -> Call[bytes]:
    return Call("GET", f"{_job(id)}/stdout", bytes)


def current() -> Call[int | None]:
    return Call("GET", "/v1/current", lambda body: msgspec.convert(_member(body, "id"), int | None))


def set_current(id: int) -> Call[None]:
    return Call("PUT", "/v1/current", _nothing, msgspec.json.encode({"id": checked_id(id)}))


def pids() -> Call[dict[int, int]]:
    return Call("GET", "/v1/pids", lambda body: msgspec.json.decode(body, type=dict[str, dict[int, int]])["pids"])


def mask(resource: str, connect: str | None) -> Call[Mask]:
    def decode(body: bytes) -> Mask:
        from jobvisor.schedule import Mask  # loads what a list of jobs can do without

        return msgspec.json.decode(body, type=Mask)

    query = {"resource": absolute(resource), "connect": connect_of([resource], connect)}
    return Call("GET", _with("/v1/mask", query), decode)


def hold(reason: str, *, type: str | None, all_users: bool) -> Call[Hold]:
    """Raises UsageError."""
    body = msgspec.json.encode({"reason": checked_reason(reason), "type": type, "all_users": all_users})
    return Call("POST", "/v1/holds", _hold, body)


def release(*, type: str | None, all_users: bool) -> Call[None]:
    return Call("DELETE", _with("/v1/holds", {"type": type, "all_users": all_users or None}), _nothing)


def holds() -> Call[list[Hold]]:
    def decode(body: bytes) -> list[Hold]:
        from jobvisor.hold import Hold

        return msgspec.convert(_member(body, "holds"), list[Hold])

    return Call("GET", "/v1/holds", decode)


def config() -> Call[list[Setting]]:
    return Call("GET", "/v1/config", _settings)


def reload() -> Call[list[Setting]]:
    return Call("POST", "/v1/config/reload", _settings)


def _settings(body: bytes) -> list[Setting]:
    from jobvisor.config import Setting

    return msgspec.convert(_member(body, "settings"), list[Setting])


def _hold(body: bytes) -> Hold:
    from jobvisor.hold import Hold  # loads what a list of jobs can do without

    return msgspec.json.decode(body, type=Hold)


def job_type(name: str) -> Call[dict[str, Any]]:
    """Everything about a job type."""
    return Call("GET", f"/v1/types/{_quoted(name).replace('/', '%2F')}", _object)


def types() -> Call[list[dict[str, Any]]]:
    return Call("GET", "/v1/types", lambda body: msgspec.convert(_member(body, "types"), list[dict[str, Any]]))


def daemon() -> Call[DaemonInfo]:
    return Call("GET", "/v1/daemon", lambda body: msgspec.json.decode(body, type=DaemonInfo))


def absolute(path: str | os.PathLike[str]) -> str:
    """The daemon has another working directory; libvirt's names are the same everywhere."""
    from jobvisor_workers.resources import uri  # loads what a list of jobs can do without

    path = os.fspath(path)
    return path if uri.is_name(path) else os.path.join(os.getcwd(), path)


class _Jobs(Struct):
    jobs: list[JobInfo]


def _list(body: bytes) -> list[JobInfo]:
    return msgspec.json.decode(body, type=_Jobs).jobs


def _object(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(body, type=dict[str, Any])


def _member(body: bytes, name: str) -> Any:
    """Raises ValidationError."""
    content = _object(body)
    if name not in content:
        raise msgspec.ValidationError(f"it has no {name!r}")
    return content[name]


def _nothing(_body: bytes) -> None:
    return None


def _key() -> str:
    return os.urandom(16).hex()


def _job(id: int) -> str:
    return f"/v1/jobs/{checked_id(id)}"


def _with(path: str, query: Mapping[str, Any]) -> str:
    pairs = "&".join(f"{name}={_quoted(_word(value))}" for name, value in query.items() if value is not None)
    return f"{path}?{pairs}" if pairs else path


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    """By hand, since urllib.parse takes 5 ms to load."""
    content = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in content)
