"""What a dry run says, and that the real run then does just that: all job types in one table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Supervisor
from support.images import MIB, everything_in, filled, overlay, qcow2, scattered
from support.lock_scenes import need


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """a.raw, full; s.raw, with holes; a.qcow2 of s.raw; top.qcow2 above base.qcow2."""
    filled(tmp_path / "a.raw", 2 * MIB)
    qcow2(tmp_path / "a.qcow2", scattered(tmp_path / "s.raw", 8 * MIB))
    qcow2(tmp_path / "base.qcow2", filled(tmp_path / "b.raw", 2 * MIB))
    overlay(tmp_path / "top.qcow2", "base.qcow2", "qcow2", "-P 7 0 1M")
    return tmp_path


#: Type, arguments, what is read, what is written (None: all that is known is that something is).
CASES: list[tuple[str, dict[str, Any], dict[str, int | None], dict[str, int | None]]] = [
    ("checksum", {"volume": "a.raw"}, {"a.raw": 2 * MIB}, {}),
    ("checksum", {"volume": "top.qcow2", "content": True}, {"top.qcow2": MIB, "base.qcow2": MIB}, {}),
    ("wipe", {"volume": "a.raw", "algorithm": "dod"}, {"a.raw": 2 * MIB}, {"a.raw": 6 * MIB}),
    ("wipe", {"volume": "s.raw"}, {}, {"s.raw": 8 * MIB}),
    ("wipe", {"volume": "a.raw", "algorithm": "trim"}, {}, {"a.raw": 0}),
    ("delete", {"volume": "a.raw"}, {}, {"a.raw": 0}),
    ("delete", {"volume": "s.raw", "zeroed": True}, {}, {"s.raw": 8 * MIB}),
]
PATHS = ("volume", "source", "target", "first", "second", "base", "backing")


@pytest.mark.parametrize(
    ("kind", "args", "reads", "writes"), CASES, ids=["-".join([case[0], *map(str, case[1].values())]) for case in CASES]
)
def test_the_real_run_does_what_the_dry_run_says(
    supervisor: Supervisor,
    there: Path,
    kind: str,
    args: dict[str, Any],
    reads: dict[str, int | None],
    writes: dict[str, int | None],
) -> None:
    given: dict[str, Any] = {name: str(there / value) if name in PATHS else value for name, value in args.items()}
    before, held, names = everything_in(there), allocated_in(there), os.listdir(there)
    dry = supervisor.start(kind, dry_run=True, **given).wait(60)
    assert dry.ok, dry.errmsg
    assert everything_in(there) == before
    assert allocated_in(there) == held
    said = dry.result or {}
    assert {os.path.basename(entry["path"]): entry["bytes"] for entry in said["reads"]} == reads
    assert {os.path.basename(entry["path"]): entry["bytes"] for entry in said["writes"]} == writes
    locked = {lock["path"]: lock["access"] for lock in said["locks"]}
    written = [entry["path"] for entry in said["writes"] if os.path.basename(entry["path"]) in names]
    assert locked == {entry["path"]: "read" for entry in said["reads"]} | dict.fromkeys(written, "write")

    done = supervisor.start(kind, **given).wait(60)
    assert done.ok, done.errmsg
    if said["space"] is None:
        assert not writes or None in writes.values()
        return
    grown = allocated_in(there) - held
    if said["exact"]:
        assert grown == said["space"]
    else:
        assert grown <= said["space"]


def allocated_in(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())
