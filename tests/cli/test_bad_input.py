"""What is wrong is said in one line, with its own exit code and cause, and nothing was touched."""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support.command import Cli
from support.images import MIB, everything_in, filesystem, filled, overlay, qcow2, scattered
from support.lock_scenes import loop_device, mounted, need

#: name → (prepare in the work directory, arguments, exit status, cause, words of the error)
Case = tuple[Callable[[Path], object], list[str], int, str, str]


def nothing(_: Path) -> None:
    """The directory as it is, with a volume called img."""


def cut_off(work: Path) -> None:
    with open(qcow2(work / "cut", scattered(work / "raw", 8 * MIB)), "r+b") as file:
        file.truncate(300_000)


def corrupt(work: Path) -> None:
    with open(qcow2(work / "corrupt", filled(work / "raw", 4 * MIB)), "r+b") as file:
        file.seek(0x30)
        file.write(b"\xff" * 16)


def no_backing(work: Path) -> None:
    overlay(qcow2(work / "base", filled(work / "raw", MIB)).with_name("top"), "base", "qcow2")
    (work / "base").unlink()


CASES: dict[str, Case] = {
    "missing source": (nothing, ["clone", "nowhere", "copy"], 1, "error", "cannot open .*/nowhere: no such file"),
    "missing directory": (nothing, ["clone", "img", "no/where/copy"], 1, "error", "directory"),
    "directory as source": (lambda work: (work / "dir").mkdir(), ["clone", "dir", "copy"], 1, "error", "directory"),
    "directory as target": (lambda work: (work / "dir").mkdir(), ["clone", "img", "dir"], 1, "error", "directory"),
    "fifo as source": (lambda work: os.mkfifo(work / "fifo"), ["wipe", "fifo"], 1, "error", "fifo"),
    "device as source": (nothing, ["checksum", "/dev/null"], 1, "error", "character device"),
    "loop of links": (lambda work: (work / "a").symlink_to("a"), ["clone", "a", "b"], 1, "error", "link"),
    "target exists": (lambda work: (work / "copy").touch(), ["clone", "img", "copy"], 1, "error", "exists already"),
    "target is the source": (nothing, ["clone", "img", "img"], 1, "error", "same file"),
    "target links to the source": (
        lambda work: (work / "alias").symlink_to("img"), ["clone", "img", "alias", "--replace"], 1, "error", "same",
    ),
    "target is a hard link of the source": (
        lambda work: os.link(work / "img", work / "alias"), ["clone", "--replace", "img", "alias"], 1, "error", "same",
    ),
    "cut off qcow2": (cut_off, ["clone", "cut", "copy"], 1, "error", "cut off|corrupt"),
    "corrupt qcow2": (corrupt, ["clone", "corrupt", "copy"], 1, "error", "corrupt"),
    "no backing file": (no_backing, ["clone", "top", "copy"], 1, "error", "base"),
    "not of the format": (nothing, ["clone", "img", "copy", "--format", "qcow2"], 1, "error", "qcow2"),
    "unknown format": (nothing, ["clone", "img", "copy", "--format", "zip"], 2, "", "zip"),
    "unknown algorithm": (nothing, ["wipe", "img", "--algorithm", "rot13"], 2, "", "rot13"),
    "unknown type": (nothing, ["clown", "img", "copy"], 2, "", "no job type is called 'clown'.*clone"),
    "unknown option": (nothing, ["clone", "img", "copy", "--sparce"], 2, "", "--sparce"),
    "missing argument": (nothing, ["clone", "img"], 2, "", "TARGET"),
    "one argument too many": (nothing, ["wipe", "img", "img"], 2, "", "img"),
    "size without a unit": (nothing, ["wipe", "img", "--bandwidth", "50"], 2, "", "unit"),
    "size without sense": (nothing, ["wipe", "img", "--bandwidth", "-5MiB"], 2, "", "bandwidth"),
    "time without sense": (nothing, ["wipe", "img", "--time-limit", "soon"], 2, "", "time-limit"),
    "empty name": (nothing, ["wipe", ""], 2, "", "VOLUME"),
    "name too long": (nothing, ["clone", "img", "x" * 300], 1, "error", "too long"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_one_line_says_it_and_nothing_was_touched(cli: Cli, name: str) -> None:
    prepare, arguments, status, cause, words = CASES[name]
    prepare(cli.directory)
    refused(cli, arguments, status, cause, words)


def test_a_target_in_a_directory_that_cannot_be_written(cli: Cli) -> None:
    """Root is not stopped by mode bits; a read-only mount stops everybody."""
    need("mount")
    where = cli.directory / "ro"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", where], check=True)
    try:
        refused(cli, ["clone", "img", "ro/copy"], 1, "error", "read-only")
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_file_that_cannot_be_read(cli: Cli) -> None:
    """pytest's own directories are closed to other users: this one is not."""
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*become, "sh", "-c", 'exec "$0" -c pass', sys.executable], stderr=subprocess.DEVNULL).returncode:
        pytest.skip(f"another user cannot run {sys.executable}")
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        secret, home = Path(open_to_all, "secret"), Path(open_to_all, "home")
        secret.write_bytes(b"x")
        secret.chmod(0o600)
        home.mkdir()
        os.chown(home, 65534, 65534)
        done = subprocess.run(
            [*become, cli.program, "run", "checksum", secret],
            cwd="/", env={**cli.env, "JOBVISOR_HOME": str(home), "PYTHONPATH": ""}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert os.listdir(home / "private") == []

    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: cannot open {secret}" in done.stderr
    assert "ermission denied" in done.stderr


def test_no_space_is_known_before_the_first_byte(cli: Cli) -> None:
    with filesystem(cli.directory, "tmpfs", 2 * MIB) as small:
        refused(cli, ["clone", "img", str(small / "copy")], 1, "no-space", "needs 3.* MiB.* free")


def test_no_space_midway(cli: Cli) -> None:
    """Where allocation cannot be foreseen: a sparse target of a source that says to be sparse."""
    with filesystem(cli.directory, "tmpfs", 4 * MIB) as small:
        filled(small / "other", 2 * MIB)
        refused(cli, ["clone", "img", str(small / "copy"), "--sparse"], 1, "no-space", "space|needs")


def test_a_file_size_limit(cli: Cli) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))

    before = everything_in(cli.directory)
    done = subprocess.run(
        [cli.program, "run", "clone", "img", "copy"],
        cwd=cli.directory, env=cli.env, capture_output=True, text=True, preexec_fn=limit, timeout=60,
    )  # fmt: skip

    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert everything_in(cli.directory) == before


def test_a_mounted_device_and_the_file_behind_it(cli: Cli) -> None:
    need("mkfs.ext4", "losetup")
    path = cli.directory / "disk"
    with open(path, "wb") as file:
        file.truncate(4 * MIB)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    with loop_device(path) as device, mounted(device) as where:
        for name in (str(device), "disk"):
            done = cli.run("run", "wipe", name)
            assert done.returncode == 6
            assert "mounted" in done.stderr
            assert str(where) in done.stderr
        assert cli.run("run", "clone", "img", str(device)).returncode == 1


def refused(cli: Cli, arguments: list[str], status: int, cause: str, words: str) -> None:
    """In one line on stderr, with the exit status; with --json the cause; and the directory is as it was."""
    before = everything_in(cli.directory)

    done = cli.run("run", *arguments)

    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr
    assert re.search(words, said[0]), said[0]
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    if cause:
        ended = json.loads(cli.run("run", *arguments, "--json").stdout.splitlines()[-1])
        assert (ended["event"], ended["job"]["state"], ended["job"]["cause"]) == ("ended", "failed", cause)
        assert f"error: {ended['job']['errmsg']}" == said[0]
    assert everything_in(cli.directory) == before
