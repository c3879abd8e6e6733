"""The man page: as its generator makes it, and as man and groff take it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path

from jobvisor_cli.root import COMMANDS
from support.lock_scenes import need

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/jobvisor.1"


def rendered(*argv: str) -> tuple[str, str]:
    """What is shown, without bold and underlined, and what is complained of."""
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "MANWIDTH": "80", "MANPAGER": "cat"})
    assert done.returncode == 0, done.stderr
    return re.sub(r".\x08|\x1b\[[0-9;]*m", "", done.stdout), done.stderr


def test_it_is_up_to_date() -> None:
    generator = runpy.run_path(str(ROOT / "docs/generate_man.py"))
    assert PAGE.read_text() == generator["page"](), "run docs/generate_man.py"


def test_groff_renders_it_without_a_warning() -> None:
    need("groff")
    shown, complaints = rendered("groff", "-man", "-ww", "-Tutf8", str(PAGE))
    assert complaints == ""
    assert "\\" not in shown


def test_man_shows_every_command_and_its_options() -> None:
    need("man")
    shown, complaints = rendered("man", "--warnings", "-E", "UTF-8", "-l", str(PAGE))
    assert complaints == ""
    assert not [name for name in COMMANDS if f"\n   jobvisor {name} " not in shown]
    for words in ("--on-conflict", "--before TIME", "--socket-group GROUP", "clone SOURCE TARGET", "JOBVISOR_HOME"):
        assert words in shown, words
    assert 'bash  eval "$(jobvisor completion bash)"' in shown
    assert max(map(len, shown.splitlines())) <= 80
