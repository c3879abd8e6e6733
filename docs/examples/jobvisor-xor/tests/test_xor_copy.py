"""What comes of a copy, and what is left of one that is killed, aborted or wrongly asked for."""

from pathlib import Path

import pytest
from jobvisor_xor import XorCopy

from jobvisor import Supervisor, UsageError
from jobvisor.testing import halt_at, kill_at


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(bytes(range(256)) * 20_000)  # more than one piece
    return path


def test_twice_is_what_it_was(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert supervisor.start(XorCopy(str(source), str(once), key=7)).wait(check=True).result == {"key": 7}
    assert once.read_bytes()[:3] == bytes([7, 6, 5])
    supervisor.start(XorCopy(str(once), str(twice), key=7)).wait(check=True)
    assert twice.read_bytes() == source.read_bytes()


def test_a_killed_worker_leaves_nothing_and_the_job_can_be_retried(
    supervisor: Supervisor, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    with kill_at(supervisor, "copy", after=4 << 20) as death:
        supervisor.start(XorCopy(str(source), str(target)))
    assert death.info.cause == "killed"
    assert not target.exists()
    assert supervisor.job(death.info.id).retry().wait(check=True).data_processed == source.stat().st_size


def test_an_aborted_copy_leaves_nothing(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    with halt_at(supervisor, "copy") as halt:
        supervisor.start(XorCopy(str(source), str(tmp_path / "target")))
        assert halt.wait().abort().state == "aborted"
    assert not (tmp_path / "target").exists()


def test_a_dry_run_says_what_it_would_take(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    info = supervisor.start(XorCopy(str(source), str(tmp_path / "target")), dry_run=True).wait(check=True)
    assert (info.result or {})["space"] == source.stat().st_size
    assert not (tmp_path / "target").exists()


def test_nothing_to_copy_is_said(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    info = supervisor.start(XorCopy(str(tmp_path / "empty"), str(tmp_path / "target"))).wait()
    assert info.errmsg == f"cannot copy {tmp_path}/empty: it is empty; name a volume with data"


def test_a_key_that_is_none_is_refused_before_there_is_a_job(supervisor: Supervisor, source: Path) -> None:
    with pytest.raises(UsageError, match="key"):
        supervisor.start("xor-copy", source=str(source), target=f"{source}.xor", key=0)
    assert supervisor.jobs() == []
