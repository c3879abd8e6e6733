"""The map of what is finished: whatever happens to the file, it says nothing that was not written into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobvisor_workers.finished import Begun, Finished, Left, Map, Taken
from jobvisor_workers.unchanged import Facts

FACTS = Facts(False, "boot", 1, 2, 1 << 40, 3, 4)
LINES = (
    Begun("0123456789abcdef", [FACTS, FACTS], FACTS, "/v/.jobvisor-1-abcdef01"),
    Taken(1),
    Finished(0, 4096, FACTS),
    Finished(1, 4096, FACTS),
    Left(FACTS),
    Taken(2),
    Finished(1, 8192, FACTS),
)

State = tuple[object, ...]


def state(known: Map) -> State:
    return known.begun, known.taken, known.finished, known.left, known.processed


@pytest.fixture
def written(tmp_path: Path) -> tuple[bytes, list[State]]:
    """A map's file, and what was true after each line."""
    states = [state(Map())]
    known = Map()
    with open(tmp_path / "map", "w+b") as file:
        for line in LINES:
            known.append(file.fileno(), line)
            states.append(state(known))
    return (tmp_path / "map").read_bytes(), states


def test_it_says_what_was_written(written: tuple[bytes, list[State]]) -> None:
    content, states = written
    assert state(Map(content)) == states[-1]
    assert states[-1] == (LINES[0], Taken(2), LINES[-1], None, (1 << 40) + 8192)
    assert states[5][3] == Left(FACTS)


def test_torn_anywhere_it_says_what_was_true_before(written: tuple[bytes, list[State]]) -> None:
    content, states = written
    for length in range(len(content)):
        assert state(Map(content[:length])) == states[content.count(b"\n", 0, length)]


@pytest.mark.parametrize("change", [lambda byte: byte ^ 1, lambda byte: 0x0A if byte != 0x0A else 0x20, lambda _: 0x99])
def test_a_garbled_byte_ends_it_at_the_line_before(
    written: tuple[bytes, list[State]], change: Callable[[int], int]
) -> None:
    content, states = written
    for at in range(len(content)):
        garbled = bytearray(content)
        garbled[at] = change(content[at])
        assert state(Map(bytes(garbled))) == states[content.count(b"\n", 0, at)]


def test_lines_of_another_map_or_order_do_not_count(written: tuple[bytes, list[State]], tmp_path: Path) -> None:
    content, states = written
    lines = content.splitlines(keepends=True)
    assert state(Map(b"".join(lines[1:]))) == states[0]
    assert state(Map(b"".join([lines[0], *lines[2:]]))) == states[1]
    assert state(Map(b"".join([*lines[:2], lines[3], lines[2]]))) == states[2]
    other = Map()
    with open(tmp_path / "other", "w+b") as file:
        for line in (Begun("another", [], FACTS, None), *LINES[1:]):
            other.append(file.fileno(), line)
    stale = (tmp_path / "other").read_bytes().splitlines(keepends=True)
    assert state(Map(b"".join([*lines[:3], *stale[3:]]))) == states[3]


def test_what_is_appended_takes_the_place_of_a_torn_line(written: tuple[bytes, list[State]], tmp_path: Path) -> None:
    content, _ = written
    (tmp_path / "map").write_bytes(content[:-5])
    known = Map(content[:-5])
    with open(tmp_path / "map", "r+b") as file:
        known.append(file.fileno(), Left(FACTS))
        assert state(Map((tmp_path / "map").read_bytes())) == state(known)
        os.truncate(tmp_path / "map", known.length)
    assert state(Map((tmp_path / "map").read_bytes())) == state(known)
    assert known.left == Left(FACTS)
