"""Images of random layout, cloned by real jobs: identical, sparse where the source was, chains kept."""

import filecmp
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobvisor import Supervisor
from support.images import identical, qemu_img

#: Real processes for each example: fewer of them, and no judgement by time.
REAL = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
MIB = 1 << 20
#: (offset, length) of what is written, anywhere in the image.
WRITES = st.lists(st.tuples(st.integers(0, 4 * MIB), st.integers(1, 200_000)), max_size=6)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """One supervisor for all examples."""
    with Supervisor(tmp_path_factory.mktemp("layouts") / "home") as supervisor:
        yield supervisor


def fresh(supervisor: Supervisor) -> Path:
    directory = Path(supervisor.home).parent / f"example-{os.urandom(6).hex()}"
    directory.mkdir()
    return directory


@REAL
@given(size=st.integers(0, 4 * MIB), writes=WRITES, zeros=st.booleans(), seed=st.integers(0, 1000))
def test_a_raw_clone_is_the_same_to_the_byte(
    shared: Supervisor, size: int, writes: list[tuple[int, int]], zeros: bool, seed: int
) -> None:
    """Holes at the ends, data at odd offsets, sizes that are no multiple of anything."""
    directory = fresh(shared)
    source, target = directory / "source", directory / "target"
    with open(source, "wb") as file:
        file.truncate(size)
        for offset, length in writes:
            file.seek(offset % max(1, size))
            length = min(length, size - file.tell())
            file.write(bytes(length) if zeros else random.Random(seed).randbytes(length))

    info = shared.start("clone", source=str(source), target=str(target)).wait(30, check=True)

    assert filecmp.cmp(source, target, shallow=False)
    assert target.stat().st_size == size
    assert target.stat().st_blocks <= source.stat().st_blocks + 16
    assert info.data_processed == info.data_total == size


@REAL
@given(
    sectors=st.integers(1, 8192),
    layers=st.lists(WRITES, min_size=1, max_size=3),
    elsewhere=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_qcow2_clone_shows_the_same_and_keeps_its_chain(
    shared: Supervisor, sectors: int, layers: list[list[tuple[int, int]]], elsewhere: bool, seed: int
) -> None:
    """Backing files by relative names, also when the clone stands in another directory."""
    directory = fresh(shared)
    size = sectors * 512
    chance = random.Random(seed)
    names: list[str] = []
    for number, writes in enumerate(layers):
        below = ["-b", names[-1], "-F", "qcow2"] if names else []
        names.append(f"layer{number}.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", *below, directory / names[-1], size)
        commands = []
        for offset, length in writes:
            offset = offset % size // 512 * 512
            length = max(512, min(length, size - offset) // 512 * 512)
            commands += ["-c", f"write -P {chance.randrange(256)} {offset} {length}"]
        if commands:
            subprocess.run(["qemu-io", *commands, directory / names[-1]], check=True, capture_output=True)
    source = directory / names[-1]
    target = directory / ("other" if elsewhere else "") / "clone.qcow2"
    target.parent.mkdir(exist_ok=True)

    shared.start("clone", source=str(source), target=str(target)).wait(60, check=True)

    assert identical(source, target)
    about = json.loads(qemu_img("info", "--output=json", target))
    assert about["virtual-size"] == size
    if len(names) > 1:
        backing = about["backing-filename"]
        assert not os.path.isabs(backing)
        assert os.path.samefile(target.parent / backing, directory / names[-2])
    else:
        assert "backing-filename" not in about
