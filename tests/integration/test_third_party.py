"""docs/examples/jobvisor-xor, a package with a job type: installed by pip, and used as any other type is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import Cli

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "jobvisor-xor"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put it; what it builds on the way stays out of the example."""
    place = tmp_path_factory.mktemp("package")
    source, site = place / "source", place / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(site), str(source)],
        stdin=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return site


@pytest.fixture(scope="module")
def cli(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    cli = Cli(tmp_path_factory.mktemp("cli"))
    cli.env["PYTHONPATH"] = str(package)
    try:
        yield cli
        cli.nothing_left()
    finally:
        for pid in cli.everything():
            os.kill(pid, signal.SIGKILL)


def test_the_page_shows_its_files() -> None:
    page = (EXAMPLE.parents[1] / "third-party.md").read_text()
    for name, language in (("jobvisor_xor.py", "python"), ("pyproject.toml", "toml")):
        assert f"```{language}\n# {name}\n{(EXAMPLE / name).read_text()}```\n" in page, f"{name} was changed alone"


def test_its_own_tests_pass(package: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(EXAMPLE / "tests")],
        cwd=EXAMPLE, env={**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert "6 passed" in done.stdout, done.stdout


def test_it_is_listed_and_explained(cli: Cli) -> None:
    assert "xor-copy" in cli.run("types").stdout
    help_ = cli.run("run", "xor-copy", "--help").stdout
    assert "SOURCE TARGET" in help_
    for words in ("Copy a volume, every byte XORed with a key.", "--key", "the byte to XOR with", "--bandwidth"):
        assert words in help_


def test_it_runs(cli: Cli) -> None:
    done = cli.run("run", "xor-copy", "--key", "7", "img", "scrambled")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    content = Path(cli.path("img")).read_bytes()
    assert Path(cli.path("scrambled")).read_bytes() == bytes(byte ^ 7 for byte in content)


def test_an_abort_leaves_nothing(cli: Cli) -> None:
    id_ = cli.run("start", "xor-copy", "--bandwidth", "1MiB", "img", "half").stdout.strip()
    assert cli.run("wait", id_, "--for", "running").returncode == 0
    assert cli.run("abort", id_).returncode == 0
    assert '"state":"aborted"' in cli.run("info", id_, "--json").stdout.replace(" ", "")
    assert not os.path.exists(cli.path("half"))


def test_a_key_that_is_none_is_a_usage_error_and_no_job(cli: Cli) -> None:
    before = cli.run("list", "--all", "-q").stdout
    for key in ("0", "256", "seven"):
        done = cli.run("run", "xor-copy", "--key", key, "img", "none")
        assert (done.returncode, done.stdout) == (2, "")
        assert "key" in done.stderr
    assert cli.run("list", "--all", "-q").stdout == before
