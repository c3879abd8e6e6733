"""room.py: what fits is not refused, what cannot fit is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobvisor_workers import room
from jobvisor_workers.errors import NoSpace
from support.images import MIB, filesystem


def test_more_than_is_free_is_refused(tmp_path: Path) -> None:
    with filesystem(tmp_path, "tmpfs", 4 * MIB) as where:
        free = os.statvfs(where).f_bfree * os.statvfs(where).f_frsize
        room.check_free(str(where), free, "clone /a to /b")
        with pytest.raises(
            NoSpace, match=f"^cannot clone /a to /b: needs {free + 1} bytes, .* has {free} bytes free!$"
        ):
            room.check_free(str(where), free + 1, "clone /a to /b", "!")


def test_blocks_are_shared_within_a_filesystem_that_can(tmp_path: Path) -> None:
    with (
        filesystem(tmp_path, "xfs", 400 * MIB) as where,
        open(where / "a", "w+b") as inside,
        open(__file__, "rb") as other,
    ):
        assert room.may_share(inside.fileno(), str(where))
        assert not room.may_share(other.fileno(), str(where))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_as_people_read_them(count: int, text: str) -> None:
    assert room.human(count) == text
