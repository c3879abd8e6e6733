"""The passes of each algorithm, against what libvirt and scrub document."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobvisor_workers.data.passes import PASSES
from support.images import filled
from support.lock_scenes import need

RANDOM = ["random"]

DOCUMENTED = {
    "zero": ["0x00"],
    "nnsa": [*RANDOM * 2, "0x00", "verify 0x00"],
    "dod": [*RANDOM, "0x00", "0xff", "verify 0xff"],
    "bsi": ["0xff", "0xfe", "0xfd", "0xfb", "0xf7", "0xef", "0xdf", "0xbf", "0x7f"],
    "gutmann": [
        *RANDOM * 4,
        *("0x55", "0xaa", "0x924924", "0x492492", "0x249249"),
        *(f"0x{digit}{digit}" for digit in "0123456789abcdef"),
        *("0x924924", "0x492492", "0x249249", "0x6db6db", "0xb6db6d", "0xdb6db6"),
        *RANDOM * 4,
    ],
    "schneier": ["0x00", "0xff", *RANDOM * 5],
    "pfitzner7": RANDOM * 7,
    "pfitzner33": RANDOM * 33,
    "random": RANDOM,
}


def test_names_and_order() -> None:
    assert {name: [step.name for step in passes] for name, passes in PASSES.items()} == DOCUMENTED


def test_numbers_of_passes() -> None:
    counts = {"zero": 1, "nnsa": 4, "dod": 4, "bsi": 9, "gutmann": 35, "schneier": 7, "pfitzner7": 7, "pfitzner33": 33}
    assert {name: len(passes) for name, passes in PASSES.items()} == {**counts, "random": 1}


@pytest.mark.parametrize("name", ["nnsa", "dod", "bsi", "gutmann", "schneier", "pfitzner7", "pfitzner33", "random"])
def test_scrub_makes_the_same_passes(tmp_path: Path, name: str) -> None:
    need("scrub")
    said = subprocess.run(
        ["scrub", "-f", "-S", "-p", name, filled(tmp_path / "a", 4096)], capture_output=True, text=True, check=True
    )
    output = said.stdout + said.stderr
    steps = [line.split("|")[0].split()[1] for line in output.splitlines() if line.endswith("|")]
    ours = [step.name.replace("verify 0x00", "verify").replace("verify 0xff", "verify") for step in PASSES[name]]
    assert steps == ours
