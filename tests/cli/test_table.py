"""`jobvisor list` as it is drawn."""

from __future__ import annotations

from typing import Any

import pytest

from jobvisor.info import JobInfo
from jobvisor.states import State
from jobvisor_cli.render import subject
from jobvisor_cli.table import columns_of, cut, table
from jobvisor_workers import registry
from jobvisor_workers.protocol import Holder

MIB = 1 << 20
NOW = 1_800_000_000.0


def job(number: int, state: str, type: str = "clone", *, age: float = 0, **more: Any) -> JobInfo:
    return JobInfo(id=number, type=type, state=State(state), created=NOW - age, **more)


RUNNING = job(
    12, "running", age=58, resources=["/v/base.qcow2", "/v/vm1.qcow2"], data_total=1000 * MIB, data_processed=421 * MIB,
    disk_bps=512 * MIB, time_remaining=100_000,
)  # fmt: skip
WAITING = job(
    11, "waiting", "wipe", age=121, resources=["/v/old.img"], reason="/v/old.img is in use by QEMU pid 4 (VM web1)",
    holder=Holder("qemu", pid=4, vm="web1"),
)  # fmt: skip


def test_as_it_is_drawn_in_the_design() -> None:
    assert table([RUNNING, WAITING], NOW, 83) == (
        "  ID STATE      TYPE      DONE        RATE   LEFT    AGE  RESOURCE\n"
        "  12 running    clone    42.1%   512 MiB/s   1:40   0:58  vm1.qcow2\n"
        "  11 waiting    wipe         -           -      -   2:01  old.img (held by VM web1)\n"
    )


def test_columns_are_narrower_before_a_name_is_cut() -> None:
    assert table([RUNNING, WAITING], NOW, 80) == (
        "ID STATE   TYPE   DONE       RATE  LEFT   AGE  RESOURCE\n"
        "12 running clone 42.1%  512 MiB/s  1:40  0:58  vm1.qcow2\n"
        "11 waiting wipe      -          -     -  2:01  old.img (held by VM web1)\n"
    )


def test_off_a_terminal_names_are_whole() -> None:
    lines = table([RUNNING, WAITING], NOW, None).splitlines()
    assert lines[1].endswith("  /v/vm1.qcow2")
    assert lines[2].endswith("  /v/old.img (held by VM web1)")


@pytest.mark.parametrize("width", [60, 80, 81, 132])
def test_the_width_of_the_terminal_is_kept(width: int) -> None:
    long = job(
        123456, "suspended", "checksum", age=86399, resources=["/v/" + "全角 and a very long name " * 8 + ".qcow2"],
        data_total=MIB, data_processed=MIB - 1, disk_bps=1023 * MIB, time_remaining=86_000_000,
    )  # fmt: skip
    lines = table([RUNNING, WAITING, long], NOW, width).splitlines()
    assert max(map(columns_of, lines)) <= max(width, 75)
    assert max(map(columns_of, lines)) > width - 3, "what there is is used"
    assert "…" in lines[3]
    assert "99.9%" in lines[3], "100 is for what is done"


def test_what_has_ended_says_why() -> None:
    failed = job(7, "failed", resources=["/v/a"], cause="no-space", data_total=MIB, data_processed=MIB)
    done = job(6, "completed", resources=["/v/b"], data_total=MIB, data_processed=MIB, disk_bps=MIB, age=3 * 86400)
    lines = table([failed, done], NOW, 80).splitlines()
    assert lines[1].endswith("  a (no-space)")
    assert " 100% " in lines[2]
    assert "MiB/s" not in lines[2], "nothing moves any more"
    assert " 3d 0h  b" in lines[2]


def test_users_are_shown_when_everybody_is_listed() -> None:
    lines = table(
        [job(3, "queued", resources=["/v/x"], owner="alice", reason="held")], NOW, 80, users=True
    ).splitlines()
    assert lines[0].endswith("USER      RESOURCE")
    assert lines[1].endswith("  alice     x (held)")


def test_names_are_shown_as_one_line() -> None:
    assert table([job(3, "running", resources=["/v/a\n\x1b[31mb"])], NOW, None).count("\n") == 2


def test_cut() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"
    assert columns_of(cut("全角全角", 6)) <= 6


def test_what_a_job_is_about_is_said_in_words() -> None:
    about = {
        "clone": ({"source": "a", "target": "b"}, "clone of a to b"),
        "compare": ({"first": "a", "second": "b"}, "compare of a and b"),
        "create": ({"target": "b"}, "create of b"),
        "wipe": ({"volume": "a"}, "wipe of a"),
    }
    for name, (typed, words) in about.items():
        assert subject(registry.get(name), typed) == words
