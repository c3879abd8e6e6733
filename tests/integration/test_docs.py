"""The documents say what is so: the page of states is what its generator makes, and all that is shown is run."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor import autostart, store
from jobvisor.api import call, context, peer, problems, server, sse
from support.desk import Desk, at_desk
from support.transcript import SIZES, VARIES, blocks_of

ROOT = Path(__file__).resolve().parents[2]
#: Those that show something to run; the sessions of a page are at one terminal.
NAMES = ("api", "job-types", "third-party", "library", "embedding", "locks", "queue", "testing")
PAGES = ["README.md", *(f"docs/{name}.md" for name in NAMES)]


def test_the_page_of_states_is_up_to_date() -> None:
    generator = runpy.run_path(str(ROOT / "docs/generate_states.py"))
    assert (ROOT / "docs/states.md").read_text() == generator["page"](), "run docs/generate_states.py"


def test_the_comparison_has_every_row_that_its_program_runs() -> None:
    """Running them takes half a minute: docs/compare.py."""
    rows = runpy.run_path(str(ROOT / "docs/compare.py"))["ROWS"]
    shown = re.findall(r"^\| ([^|\s][^|]*) \|", (ROOT / "docs/comparison.md").read_text(), re.MULTILINE)
    assert shown == ["---", *(title for title, _, _ in rows)]


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_so(page: str, desk: Desk) -> None:
    blocks = [block for each in blocks_of(ROOT / page).values() for block in each]
    assert blocks, "the fences are not found any more"
    with desk.shell(columns=200) as shell:
        shell.varies = [*VARIES, SIZES]
        for block in blocks:
            desk.do(block, shell)


def test_the_page_of_the_api_has_every_problem() -> None:
    in_library = {(kind.code, status) for kind, status in problems.STATUS.items()}
    source = "".join(path.read_text() for path in (ROOT / "supervisor/jobvisor/api").glob("*.py"))
    in_source = {(code, int(status)) for status, code in re.findall(r'\b([45]\d\d), "([a-z]+(?:-[a-z]+)*)"', source)}
    in_http = {("not-found", 404), ("bad-request", 400)}  # with the status that HTTP's own error has
    rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| (\d{3})", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    shown = {(code, int(status)) for codes, status in rows for code in re.findall("[a-z-]+", codes)}
    assert shown == in_library | in_source | in_http


def test_the_page_of_the_api_has_the_limits_that_there_are() -> None:
    page = " ".join((ROOT / "docs/api.md").read_text().split())
    for limit in (
        f"| head of a request | {peer.HEAD_MAX} bytes, within {peer.HEAD_TIME:g} s |",
        f"| JSON body | {call.BODY_MAX} bytes, within {call.BODY_TIME:g} s;",
        f"| idle connection | closed after {server.KEEP_ALIVE} s |",
        f"{peer.CONNECTIONS_MAX} connections, {context.STREAMS_MAX} event streams, {context.PIPES_MAX} inputs and",
        f"look at files {context.TURNS} are worked on at a time",
        f"a comment every {sse.COMMENT:g} s",
        f"leaves {autostart.IDLE:g} s after its last job",
        f"The last {store.EVENTS_KEPT:,} are kept",
    ):
        assert limit in page, limit


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with at_desk(tmp_path) as desk:
        yield desk
