"""The configuration: what a file may say, what of it is in effect, and limits at work."""

import os
import pwd
import stat
from pathlib import Path

import pytest

from jobvisor import ConfigError, Setting, State, Supervisor, config, disks
from jobvisor.face import Face
from support.gate_types import Gate  # noqa: F401 - makes the types of its module known

ME = pwd.getpwuid(os.getuid()).pw_name


def test_what_is_not_said_has_no_limit_and_what_comes_later_counts_more(tmp_path: Path) -> None:
    first, second, none = tmp_path / "first", tmp_path / "second", tmp_path / "none"
    first.write_text('[limits]\njobs = 3\nper_user = 2\n\n[limits.type]\n"wipe" = 1 # slow\n')
    second.write_text(f"limits.jobs = 5\nlimits.user.{ME} = 7\n[limits.pool]\ndefault=4\n")
    found = config.read([str(first), str(none), str(second)])
    me = f"user:{os.getuid()}"
    assert found.limits == {"jobs": 5, "user:*": 2, "type:wipe": 1, me: 7, "pool:default": 4}
    assert [setting for setting in found.settings if setting.value] == [
        Setting("limits.jobs", 5, f"{second}:1"),
        Setting("limits.per_user", 2, f"{first}:3"),
        Setting("limits.type.wipe", 1, f"{first}:6"),
        Setting(f"limits.user.{ME}", 7, f"{second}:2"),
        Setting("limits.pool.default", 4, f"{second}:4"),
    ]
    assert Setting("limits.per_device", None, "default") in found.settings


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("[limits]\njobs = \n", 2, "Invalid value"),
        ("[limits]\njobs = 1\njobs = 2\n", 3, "overwrite"),
        ("[limits\n", 1, "Expected"),
        ("\n[limit]\njobs = 1\n", 2, "nothing is called limit; there is"),
        ("[limits]\nper_users = 1\n", 2, "no limit is called per_users; there are jobs, per_user"),
        ("[limits]\njobs = -1\n", 2, "limits.jobs is a number of jobs, from 1 to 1000000, not -1"),
        ("[limits]\n\njobs = 0\n", 3, "there is jobvisor hold"),
        ("[limits]\njobs = true\n", 2, "not True"),
        ("[limits]\njobs = 1.5\n", 2, "not 1.5"),
        ("limits = 3\n", 1, "limits is a table"),
        ("[limits]\ntype = 3\n", 2, "limits.type is a table"),
        ("[limits.user]\nroot = 1\n'no such user' = 1\n", 3, "no user is called no such user"),
        ('[limits.device]\n"/nonexistent" = 1\n', 2, "/nonexistent is no block device"),
        ('# ü\n[limits.type]\nwipe = "1"\n', 3, "not '1'"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_reason(tmp_path: Path, text: str, line: int, why: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why) as caught:
        config.read([str(file)])
    assert (caught.value.path, caught.value.line) == (str(file), line)
    assert str(caught.value).startswith(f"{file}:{line}: ")


def test_disks_are_whole_ones(tmp_path: Path) -> None:
    here = disks.below(os.stat(tmp_path).st_dev)
    assert here
    for name in os.listdir(disks.SYS):
        found = disks.below(os.makedev(*map(int, name.split(":"))))
        assert found
        assert all(os.path.exists(f"/sys/block/{disk}") for disk in found)
    assert len(disks.below(os.stat("/proc").st_dev)) == 1
    assert disks.of_key("vol:0:qemu:///system:p/v") == []
    assert disks.of_key(f"file:{os.stat(tmp_path).st_dev}:1") == here
    assert disks.named("server:/export") == "server:/export"
    assert disks.named(str(tmp_path)) is None
    assert disks.named("nonsense") is None
    for name in here:
        if os.path.exists(f"/dev/{name}") and stat.S_ISBLK(os.stat(f"/dev/{name}").st_mode):
            assert disks.named(f"/dev/{name}") == name


def test_a_limit_lets_jobs_wait_in_their_order_until_it_is_raised(face: Face, gate: Path) -> None:
    file = Path(face.home, "config.toml")
    file.write_text("[limits]\njobs = 1\n")
    assert [each.source for each in face.reload() if each.value] == [f"{file}:2"]
    jobs = [face.start("test-gate", gate=str(gate)) for _ in range(3)]
    jobs[0].wait(10, until=State.RUNNING)
    assert [(job.info().state, job.info().place) for job in jobs[1:]] == [(State.QUEUED, 1), (State.QUEUED, 2)]
    assert jobs[2].info().reason == "the limit of 1 job at once is reached"
    file.write_text("[limits]\njobs = 2\nnonsense = 1\n")
    with pytest.raises(ConfigError) as caught:
        face.reload()
    assert (caught.value.line, str(caught.value)) == (
        3, f"{file}:3: no limit is called nonsense; there are {', '.join([*config.LIMITS, *config.KINDS])}"
    )  # fmt: skip
    assert [each.value for each in face.config()] == [1, None, None, None, None]
    file.write_text("[limits]\njobs = 2\n")
    face.reload()
    jobs[1].wait(10, until=State.RUNNING)
    assert jobs[2].info().reason == "the limit of 2 jobs at once is reached"
    gate.touch()
    assert jobs[2].wait(10).ok


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (f"[limits.user]\n{ME} = 1", f"the limit of 1 job of {ME} at once is reached"),
        ("[limits]\nper_type = 1", "the limit of 1 test-gate job at once is reached"),
        ("[limits.type]\ntest-gate = 1\n[limits]\nper_type = 9", "the limit of 1 test-gate job at once is reached"),
        ("[limits]\nper_device = 1", "the limit of 1 job at once on disk DISK is reached"),
    ],
)
def test_limits_of_each_kind(tmp_path: Path, gate: Path, image: Path, said: str, reason: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(said)
    other = image.with_name("other")
    other.write_bytes(b"x")
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        first = supervisor.start("test-gate", gate=str(gate), image=str(image))
        second = supervisor.start("test-gate", gate=str(gate), image=str(other))
        assert second.info().reason == reason.replace("DISK", disks.below(image.stat().st_dev)[0])
        first.wait(10, until=State.RUNNING)
    with Supervisor(home, types=["support.gate_types"]) as supervisor:
        assert supervisor.job(2).info().state is State.QUEUED, "what was adopted counts"
        gate.touch()
        assert supervisor.job(2).wait(10).ok


def test_no_supervisor_starts_with_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/config.toml").write_text("nonsense")
    for _ in range(2):
        with pytest.raises(ConfigError):
            Supervisor(tmp_path / "home")
