"""docs/stories.md, each story typed at a shell of its own: what it prints must come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from support.desk import Desk, at_desk
from support.transcript import blocks_of

ROOT = Path(__file__).resolve().parents[2]
STORIES = {heading: blocks for heading, blocks in blocks_of(ROOT / "docs/stories.md").items() if heading}

#: Heading → what is there while the story is told.
AROUND: dict[str, Callable[[Desk], AbstractContextManager[object]]] = {}


@pytest.mark.parametrize("heading", STORIES)
def test_a_story_is_so(heading: str, tmp_path: Path) -> None:
    assert STORIES[heading], "no session"
    with at_desk(tmp_path) as desk, AROUND.get(heading, _nothing)(desk), desk.shell() as shell:
        for block in STORIES[heading]:
            desk.do(block, shell)


def test_no_story_is_left_out() -> None:
    assert AROUND.keys() <= STORIES.keys()


def _nothing(desk: Desk) -> AbstractContextManager[object]:
    return nullcontext()
