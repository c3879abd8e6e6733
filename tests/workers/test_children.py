"""children.py: programs run by a worker."""

from __future__ import annotations

from jobvisor_workers import children


def test_a_child_that_ended_while_its_output_is_still_open_is_no_error() -> None:
    ticks: list[None] = []
    finished = children.run(["sh", "-c", "sleep 0.5 & echo done"], on_tick=lambda: ticks.append(None))
    assert (finished.status, finished.stdout) == (0, b"done\n")
    assert len(ticks) > 1
