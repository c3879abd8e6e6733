"""Configuration: TOML, read at the start and when it is told to; what it does not say has its default."""

from __future__ import annotations

import os
import pwd
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from jobvisor import disks
from jobvisor.errors import ConfigError
from jobvisor.places import SYSTEM_HOME

NAME = "config.toml"
#: Of the system's daemon, beside the one in its home.
SYSTEM = "/etc/jobvisor/config.toml"
DEFAULT = "default"
#: A setting of [limits] → the class of jobs of which so many may be active at once; * is each by itself.
LIMITS = {"jobs": "jobs", "per_user": "user:*", "per_type": "type:*", "per_pool": "pool:*", "per_device": "device:*"}
#: Tables of [limits] with a limit for one of a kind.
KINDS = ("user", "type", "pool", "device")


class Setting(Struct, frozen=True):
    """One value, in effect. `value`: None where there is no limit; `source`: FILE:LINE, or "default"."""

    name: str
    value: int | None
    source: str = DEFAULT


class Config(Struct, frozen=True):
    """What is in effect. `limits`: class of jobs → how many at once."""

    settings: list[Setting]
    limits: dict[str, int]


def files(home: str) -> list[str]:
    """Where a supervisor's configuration may be; what comes later counts more."""
    own = os.path.join(home, NAME)
    return [SYSTEM, own] if os.path.realpath(home) == SYSTEM_HOME else [own]


def read(paths: Iterable[str]) -> Config:
    """Files that are not there say nothing. Raises ConfigError."""
    settings = {f"limits.{name}": Setting(f"limits.{name}", None) for name in LIMITS}
    limits: dict[str, int] = {}
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(path, 0, f"cannot be read: {getattr(error, 'strerror', None) or error}")
        for name, among, value, line in _limits(path, text):
            settings[name] = Setting(name, value, f"{path}:{line}")
            limits[among] = value
    return Config(list(settings.values()), limits)


def _limits(path: str, text: str) -> Iterator[tuple[str, str, int, int]]:
    """(setting, class, value, line) of each. Raises ConfigError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        raise ConfigError(path, line, re.sub(r" \(at .*\)$", "", str(error)))
    lines = _Lines(path, text)
    for word, table in tables.items():
        if word != "limits":
            raise lines.wrong([word], f"nothing is called {word}; there is [limits]")
        for name, value in _table(lines, ["limits"], table).items():
            if name in KINDS:
                for which, limit in _table(lines, ["limits", name], value).items():
                    key = ["limits", name, which]
                    yield ".".join(key), _one(lines, key), *_number(lines, key, limit)
            elif name in LIMITS:
                yield f"limits.{name}", LIMITS[name], *_number(lines, ["limits", name], value)
            else:
                known = ", ".join([*LIMITS, *KINDS])
                raise lines.wrong(["limits", name], f"no limit is called {name}; there are {known}")


def _table(lines: _Lines, key: list[str], value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise lines.wrong(key, f"{'.'.join(key)} is a table: [{'.'.join(key)}]")
    return value


def _number(lines: _Lines, key: list[str], value: object) -> tuple[int, int]:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        hint = "; to let nothing start there is jobvisor hold" if value == 0 and not isinstance(value, bool) else ""
        raise lines.wrong(key, f"{'.'.join(key)} is a number of jobs, from 1 to 1000000, not {value!r}{hint}")
    return value, lines.of(key)


def _one(lines: _Lines, key: list[str]) -> str:
    """The class of jobs on one user, type, pool or device. A type need not be installed yet."""
    _, kind, which = key
    if kind == "user":
        try:
            which = which if which.isdigit() else str(pwd.getpwnam(which).pw_uid)
        except KeyError:
            raise lines.wrong(key, f"no user is called {which}")
    elif kind == "device":
        found = disks.named(which)
        if found is None:
            raise lines.wrong(key, f"{which} is no block device, nor a filesystem of the network like server:/export")
        which = found
    return f"{kind}:{which}"


class _Lines:
    """Where in a file a key stands, as near as that can be told without another parser."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._found: dict[tuple[str, ...], int] = {}
        table: list[str] = []
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
                table = _words(header[1])
                self._found.setdefault(tuple(table), number)
            elif entry := re.match(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=""", line):
                key = [*table, *_words(entry[1])]
                for length in range(len(table) + 1, len(key) + 1):
                    self._found.setdefault(tuple(key[:length]), number)

    def of(self, key: list[str]) -> int:
        """0 when it is not found."""
        for length in range(len(key), 0, -1):
            if tuple(key[:length]) in self._found:
                return self._found[tuple(key[:length])]
        return 0

    def wrong(self, key: list[str], why: str) -> ConfigError:
        return ConfigError(self._path, self.of(key), why)


def _words(key: str) -> list[str]:
    """Of a dotted key."""
    return [bare or basic or literal for basic, literal, bare in re.findall(r""""([^"]*)"|'([^']*)'|([\w-]+)""", key)]
