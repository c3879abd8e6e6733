"""What a dry run says, and that the real run then does just that: all job types in one table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Supervisor
from support.images import MIB, everything_in, filled, overlay, qcow2
from support.lock_scenes import need


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


#: Bytes of data in s.raw, and its length.
DATA, SIZE = MIB, 8 * MIB
#: What the tables of a container of this size may take.
TABLES = 2 * MIB
Amounts = dict[str, int | None]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """s.raw with holes and s.qcow2 of it; top.qcow2 above base.qcow2 (2 MiB of data), 1 MiB of which it hides."""
    with open(filled(tmp_path / "s.raw", MIB), "r+b") as file:
        file.truncate(SIZE)
    qcow2(tmp_path / "s.qcow2", tmp_path / "s.raw")
    qcow2(tmp_path / "base.qcow2", filled(tmp_path / "base.raw", 2 * MIB))
    overlay(tmp_path / "top.qcow2", "base.qcow2", "qcow2", "-P 7 0 1M")
    return tmp_path


#: Type, arguments, what is read, what is written (None: something); and by how much what there is grows, or gives back
#: (None: not to be known; a pair: between the one and the other, since tables are counted at their largest).
CASES: list[tuple[str, dict[str, Any], Amounts, Amounts | str, int | tuple[int, int] | None]] = [
    ("checksum", {"volume": "s.raw"}, {"s.raw": DATA}, {}, None),
    ("checksum", {"volume": "top.qcow2", "content": True}, {"top.qcow2": MIB, "base.qcow2": MIB}, {}, None),
    ("compare", {"first": "s.raw", "second": "s.qcow2"}, {"s.raw": DATA, "s.qcow2": DATA}, {}, None),
    ("check", {"volume": "s.qcow2"}, {"s.qcow2": None}, {}, None),
    ("check", {"volume": "s.qcow2", "repair": "all"}, {"s.qcow2": None}, {"s.qcow2": None}, None),
    ("wipe", {"volume": "s.raw", "algorithm": "dod"}, {"s.raw": SIZE}, {"s.raw": 3 * SIZE}, SIZE - DATA),
    ("wipe", {"volume": "s.raw", "verify": True}, {"s.raw": SIZE}, {"s.raw": SIZE}, SIZE - DATA),
    ("wipe", {"volume": "s.qcow2", "content": True}, {}, {"s.qcow2": DATA}, 0),
    ("wipe", {"volume": "s.raw", "algorithm": "trim"}, {}, {"s.raw": 0}, -DATA),
    ("delete", {"volume": "s.raw"}, {}, {"s.raw": 0}, -DATA),
    ("delete", {"volume": "s.raw", "zeroed": True}, {}, {"s.raw": SIZE}, -DATA),
    ("resize", {"volume": "s.raw", "capacity": 9 * MIB}, {}, {"s.raw": 0}, 0),
    ("resize", {"volume": "s.raw", "capacity": 9 * MIB, "allocate": True}, {}, {"s.raw": 0}, 9 * MIB - DATA),
    ("resize", {"volume": "s.raw", "capacity": 8192, "shrink": True}, {}, {"s.raw": 0}, 8192 - DATA),
    ("resize", {"volume": "s.qcow2", "capacity": 9 * MIB}, {}, {"s.qcow2": None}, None),
    ("clone", {"source": "s.raw", "target": "new"}, {"s.raw": DATA}, {"new": DATA}, DATA),
    ("clone", {"source": "s.raw", "target": "new", "sparse": False}, {"s.raw": DATA}, {"new": DATA}, SIZE),
    ("clone", {"source": "s.raw", "target": "new", "sparse": True}, {"s.raw": DATA}, {"new": DATA}, (DATA, DATA)),
    ("clone", {"source": "top.qcow2", "target": "new"}, {"top.qcow2": MIB}, "new", (MIB, MIB + TABLES)),
    ("convert", {"source": "s.raw", "target": "new"}, {"s.raw": DATA}, {"new": DATA}, DATA),
    ("convert", {"source": "s.qcow2", "target": "new"}, {"s.qcow2": DATA}, {"new": DATA}, (DATA, DATA)),
    ("create", {"target": "new", "capacity": MIB, "prealloc": "falloc"}, {}, {"new": 0}, MIB),
    ("upload", {"volume": "s.raw", "source": "base.raw"}, {"base.raw": 2 * MIB}, {"s.raw": 2 * MIB}, 2 * MIB - DATA),
    ("download", {"volume": "s.raw", "target": "new"}, {"s.raw": DATA}, {"new": DATA}, DATA),
    ("commit", {"volume": "top.qcow2"}, {"top.qcow2": MIB}, "base.qcow2", (0, MIB + TABLES)),
    ("rebase", {"volume": "top.qcow2", "flatten": True}, {"base.qcow2": MIB}, "top.qcow2", (MIB, MIB + TABLES)),
    ("rebase", {"volume": "top.qcow2", "unsafe": True, "backing": "base.qcow2"}, {}, {"top.qcow2": None}, 0),
]
CASES += [
    (
        "convert",
        {"source": "top.qcow2", "target": "new", "output_format": kind},
        {"top.qcow2": MIB, "base.qcow2": MIB},
        "new",
        (2 * MIB, 2 * MIB + TABLES),
    )
    for kind in ("qcow2", "qed", "vdi", "vmdk", "vpc", "parallels")
]
PATHS = ("volume", "source", "target", "first", "second", "base", "backing")


@pytest.mark.parametrize(
    ("kind", "args", "reads", "writes", "grows"),
    CASES,
    ids=["-".join([case[0], *map(str, case[1].values())]) for case in CASES],
)
def test_the_real_run_does_what_the_dry_run_says(
    supervisor: Supervisor,
    there: Path,
    kind: str,
    args: dict[str, Any],
    reads: Amounts,
    writes: Amounts | str,
    grows: int | tuple[int, int] | None,
) -> None:
    given: dict[str, Any] = {name: str(there / value) if name in PATHS else value for name, value in args.items()}
    before, held, names = everything_in(there), allocated_in(there), os.listdir(there)
    dry = supervisor.start(kind, dry_run=True, **given).wait(60)
    assert dry.ok, dry.errmsg
    assert (everything_in(there), allocated_in(there)) == (before, held)
    said = dry.result or {}
    assert amounts(said["reads"]) == reads
    written = amounts(said["writes"])
    assert list(written) == [writes] if isinstance(writes, str) else written == writes
    locked = {os.path.basename(lock["path"]): lock["access"] for lock in said["locks"]}
    assert {*reads, *written} & {*names} <= {*locked}
    assert all(locked[name] == "write" for name in written if name in names)
    if isinstance(grows, tuple):
        assert (said["exact"], grows[0] <= said["space"] <= grows[1]) == (False, True), said
    else:
        assert (said["exact"], said["space"]) == (kind != "compare", grows)

    done = supervisor.start(kind, **given).wait(60)
    assert done.ok, done.errmsg
    grown = allocated_in(there) - held
    if isinstance(grows, int):
        assert grown == grows
    elif grows:
        assert grows[0] - TABLES <= grown <= said["space"]


def amounts(entries: list[dict[str, Any]]) -> Amounts:
    return {os.path.basename(entry["path"]): entry["bytes"] for entry in entries}


def allocated_in(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())
