"""docs/more-stories.md, each story typed at shells of its own: what it prints must come."""

from pathlib import Path

from support.desk import at_desk
from support.lock_scenes import need
from support.transcript import BAR, blocks_of

STORIES = blocks_of(Path(__file__).resolve().parents[2] / "docs/more-stories.md")


def tell(heading: str, directory: Path) -> None:
    with at_desk(directory) as desk, desk.shell(columns=120) as shell:
        for block in STORIES[heading]:
            desk.do(block, shell)


def test_jq(tmp_path: Path) -> None:
    need("jq")
    tell("jq", tmp_path)


def test_a_mistyped_id(tmp_path: Path) -> None:
    tell("A mistyped id", tmp_path)


def test_closing_the_terminal(tmp_path: Path) -> None:
    need("jq")
    attached, other = STORIES["Closing the terminal"]
    with at_desk(tmp_path) as desk:
        with desk.shell() as closed:
            closed.begin(next(attached.steps()))
            closed.terminal.expect(BAR)
            closed.terminal.hang_up()
            closed.terminal.process.wait(20)
        with desk.shell(columns=120) as shell:
            desk.do(other, shell)


def test_two_admins(tmp_path: Path) -> None:
    first, second = STORIES["Two admins"]
    with at_desk(tmp_path) as desk, desk.shell() as one, desk.shell() as other:
        desk.do(first, one)
        desk.do(second, other)


def test_80_columns(tmp_path: Path) -> None:
    with at_desk(tmp_path) as desk, desk.shell(columns=80) as shell:
        desk.do(STORIES["80 columns"][0], shell)
