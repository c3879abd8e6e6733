"""What is wrong with the arguments or the world: one line, the same from a dry run, and nothing is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import Cause, Supervisor
from support.images import MIB, everything_in, filesystem, filled, luks_header, overlay, qcow2
from support.lock_scenes import need, vm

ALL = "checksum", "check", "wipe", "delete", "resize", "commit", "rebase", "clone", "convert", "compare"
#: What names the volume that is worked on, and what else must be given.
FIELDS = {"clone": "source", "convert": "source", "compare": "first"}
MORE: dict[str, dict[str, Any]] = {
    "resize": {"capacity": 9 * MIB},
    "clone": {"target": "new"},
    "convert": {"target": "new"},
    "compare": {"second": "other.raw"},
    "rebase": {"flatten": True},
    "upload": {"source": "other.raw"},
    "download": {"target": "new"},
}
PATHS = ("volume", "source", "target", "first", "second", "base", "backing", "backing_vol", "secret_file")
Case = tuple[str, dict[str, Any], str]


def on(name: str, kinds: tuple[str, ...], words: str, **more: Any) -> list[Case]:
    """The same volume given to several types."""
    return [(kind, {FIELDS.get(kind, "volume"): name, **MORE.get(kind, {}), **more}, words) for kind in kinds]


SOME = "wipe", "clone", "upload"
MAKING = "clone", "convert", "download"
CHAINS = "clone", "convert", "compare", "commit", "resize", "rebase"
CASES: list[Case] = [
    *on("missing", (*ALL, "upload", "download"), "missing: no such file"),
    *on("directory", SOME, "is a directory"),
    *on("pipe", SOME, "is a pipe"),
    *on("a.raw/b", SOME, "a.raw/b"),
    *on("orphan.qcow2", CHAINS, "gone.raw, the backing file of"),
    *on("orphan.qcow2", ("checksum",), "gone.raw, the backing file of", content=True),
    *on("cut.qcow2", CHAINS[:3], "corrupt or cut off"),
    *on("cut.qcow2", ("wipe", "checksum"), "corrupt or cut off", content=True),
    *on("a.luks", ("convert", "compare"), "is encrypted; its content needs a key"),
    *on("a.luks", ("checksum", "wipe"), "is encrypted", content=True),
    *on("a.luks", ("resize",), "it is encrypted, and its size cannot be changed without its key"),
    *on("a.raw", ("commit",), "it has no backing file"),
    *on("a.raw", ("rebase",), "a raw has no backing file"),
    *on("a.raw", ("check",), "qemu-img check knows nothing of raw images"),
    *on("a.raw", (*CHAINS[:3], "resize"), "as qcow2", format="qcow2"),
    # Names of what is to be made.
    *on("a.raw", MAKING, "no such directory: {}/nowhere", target="nowhere/new"),
    *on("a.raw", MAKING, "other.raw/new", target="other.raw/new"),
    *on("a.raw", MAKING, "directory", target="directory"),
    *on("a.raw", MAKING, "it exists already; choose another name, or add --replace", target="other.raw"),
    *on("a.raw", MAKING, "is the same file as", target="a.raw"),
    *on("top.qcow2", ("clone", "convert"), "the source is based on it", target="base.raw", replace=True),
    ("create", {"target": "nowhere/new", "capacity": MIB}, "no such directory: {}/nowhere"),
    ("create", {"target": "other.raw", "capacity": MIB}, "it exists already"),
    # Room.
    *on("a.raw", MAKING, "needs 8.0 MiB, the filesystem has 4.0 MiB free", target="tmpfs here/new"),
    *on("a.qcow2", ("clone", "convert"), "the filesystem has 4.0 MiB free", target="tmpfs here/new"),
    *on("tmpfs here/small.raw", ("resize",), "the filesystem has", capacity=8 * MIB, allocate=True),
    ("create", {"target": "tmpfs here/new", "capacity": 8 * MIB, "prealloc": "falloc"}, "the filesystem has"),
    # Sizes.
    *on("a.raw", ("resize",), "it would lose 7.0 MiB of data (7340032 bytes) beyond byte 1048576", capacity=MIB),
    *on("a.qcow2", ("resize",), "it would lose 7.0 MiB of data (7340032 bytes) beyond byte 1048576", capacity=MIB),
    *on("a.raw", ("resize",), "nothing would be left of it", capacity=9 * MIB, delta=True, shrink=True),
    *on("tmpfs here/small.raw", ("upload",), "give it a larger capacity before (resize)", source="a.raw"),
    ("create", {"target": "new", "capacity": MIB, "format": "qcow2", "backing_vol": "gone.raw"}, "gone.raw"),
    # Whatever belongs together.
    *on("a.raw", ("clone",), "--reflink and --sparse", reflink=True, sparse=True),
    *on("a.raw", ("convert",), "--cluster-size is for qcow2 and qed", cluster_size=65536),
    *on("top.qcow2", ("rebase",), "it is the same file as", flatten=False, backing="top.qcow2"),
    *on("top.qcow2", ("commit",), "that is none of its backing files", base="other.raw"),
]  # fmt: skip


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    need("qemu-img", "qemu-io")
    with Supervisor(tmp_path_factory.mktemp("home")) as supervisor:
        yield supervisor


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    where = tmp_path_factory.mktemp("volumes")
    qcow2(where / "a.qcow2", filled(where / "a.raw", 8 * MIB))
    filled(where / "other.raw", MIB)
    luks_header(where / "a.luks", MIB)
    overlay(where / "top.qcow2", str(filled(where / "base.raw", MIB)), "raw", "-P 1 0 64k")
    overlay(where / "orphan.qcow2", str(filled(where / "gone.raw", MIB)), "raw")
    (where / "gone.raw").unlink()
    qcow2(where / "cut.qcow2", where / "other.raw")
    os.truncate(where / "cut.qcow2", 600_000)
    (where / "directory").mkdir()
    os.mkfifo(where / "pipe")
    with filesystem(where, "tmpfs", 4 * MIB):
        filled(where / "tmpfs here" / "small.raw", 4096)
        yield where


@pytest.mark.parametrize(
    ("kind", "args", "words"), CASES, ids=["-".join([case[0], *map(str, case[1].values())]) for case in CASES]
)
def test_refused_in_one_line(supervisor: Supervisor, there: Path, kind: str, args: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {name: str(there / value) if name in PATHS else value for name, value in args.items()}
    before = everything_in(there)
    dry, real = (supervisor.start(kind, dry_run=dry, **given).wait(60) for dry in (True, False))
    assert everything_in(there) == before
    no_room = "filesystem has" in words or "larger" in words
    assert (real.state, real.cause) == ("failed", Cause.NO_SPACE if no_room else Cause.ERROR), real.errmsg
    assert words.format(there) in (real.errmsg or ""), real.errmsg
    assert (real.errmsg or "").startswith("cannot ")
    assert (dry.state, dry.cause, dry.errmsg) == (real.state, real.cause, real.errmsg)


def test_in_use_by_a_vm(supervisor: Supervisor, there: Path) -> None:
    before = everything_in(there)
    with vm(there / "top.qcow2"):
        for kind in ("checksum", "wipe", "delete", "resize", "commit", "rebase", "clone", "upload"):
            args = {FIELDS.get(kind, "volume"): "top.qcow2", **MORE.get(kind, {})}
            given: dict[str, Any] = {name: str(there / word) if name in PATHS else word for name, word in args.items()}
            dry, real = (supervisor.start(kind, dry_run=dry, **given).wait(60) for dry in (True, False))
            assert (real.cause, dry.cause) == (Cause.BUSY, Cause.BUSY), (kind, real.errmsg)
            assert "in use by QEMU pid" in (real.errmsg or "")
            assert dry.errmsg == real.errmsg
    assert everything_in(there) == before
