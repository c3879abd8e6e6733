"""Volumes and pools named vol:// and pool://, as far as the supervisor knows them: no libvirt is asked here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor import Supervisor, UsageError
from jobvisor.request import resolve
from jobvisor.testing import nothing_left

#: Nothing listens there: each job fails, and says so.
NOBODY = "qemu+unix:///system?socket=/nonexistent/libvirt-sock"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with nothing_left(tmp_path / "home", tmp_path), Supervisor(tmp_path / "home") as supervisor:
        yield supervisor


@pytest.mark.parametrize(
    ("resource", "said"),
    [
        ("vol://p", "has the form vol://POOL/VOLUME"),
        ("vol://p/a/b", "without a slash"),
        ("pool://p", "is a pool; give a volume"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_before_there_is_a_job(
    supervisor: Supervisor, resource: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        supervisor.start("wipe", volume=resource)
    assert not supervisor.jobs()


def test_a_job_says_where_its_names_are_looked_up(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", NOBODY)
    info = supervisor.start("wipe", volume="vol://p/v").wait()
    assert (info.connect, info.resources) == (NOBODY, ["vol://p/v"])
    assert info.state == "failed"
    assert info.errmsg
    assert info.errmsg.startswith(f"cannot wipe: cannot reach libvirt at {NOBODY}: ")
    assert supervisor.jobs(resource="vol://p/v") == [info]


def test_the_option_counts_more_than_the_environment_and_a_path_needs_neither(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///session")
    assert supervisor.start("wipe", volume="vol://p/v", connect=NOBODY).wait().connect == NOBODY
    (tmp_path / "a.img").write_bytes(b"x" * 4096)
    info = supervisor.start("wipe", volume=tmp_path / "a.img", connect=NOBODY).wait()
    assert (info.state, info.connect) == ("completed", None)


def test_who_uses_a_volume_reads_its_pool(tmp_path: Path) -> None:
    fields = {"source": "vol://p/v", "target": f"{tmp_path}/new"}
    keys = resolve("clone", fields, NOBODY, 1000)
    assert keys["vol://p/v"] == (f"vol:1000:{NOBODY}:p/v", "read")
    assert keys["pool://p"] == (f"pool:1000:{NOBODY}:p", "read")
    assert keys[f"{tmp_path}/new"][1] == "write"
