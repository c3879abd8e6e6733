"""What a root supervisor finds out about a user's paths, it finds out with the rights of that user."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from jobvisor import Busy, JobInfo, NotPermitted, State, Supervisor, Unreachable, UsageError, Verb, ending
from jobvisor.asking import Options
from jobvisor.core import Core
from jobvisor.testing import job_type, kill_processes_of, nothing_left, wait_until
from jobvisor_workers import READ, WRITE, JobError, JobType, Worker, new_volume, volume
from jobvisor_workers.control import MARK
from jobvisor_workers.errand import look
from jobvisor_workers.protocol import Commit, Life, Linked, Named, Requester, Temporary, encode
from jobvisor_workers.resources.path import identify

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for somebody else")

ANN = Requester(65533, 65533, [65533], "ann", "/nonexistent")
BOB = Requester(65534, 65534, [65534], "bob", "/nonexistent")


@job_type
class Keep(JobType, tag="test-keep"):
    """Have a volume until a file is there."""

    volume: Annotated[str, volume("volume to have", WRITE)]
    until: str
    source: Annotated[str, volume("volume to read", READ)] | None = None
    target: Annotated[str, new_volume("a new one")] | None = None

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("keep")
        while not os.path.exists(self.until):
            time.sleep(0.002)
        return {}


@pytest.fixture
def room() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="jobvisor-room-"))
    path.chmod(0o755)
    (path / "shared").touch()
    (path / "shared").chmod(0o666)
    (path / "anns").touch(0o600)
    os.chown(path / "anns", ANN.uid, ANN.gid)
    yield path
    shutil.rmtree(path)


def keep(core: Core, requester: Requester | None, room: Path, volume: str = "shared", **options: Any) -> int:
    seen = core.seen_by(requester) if requester else core
    args = {"volume": str(room / volume), "until": str(room / "gate")}
    return seen.start("test-keep", Options(**options), args, umask=0o77).result(10).id


@needs_root
def test_jobs_of_several_users_on_one_volume_are_one_queue(supervisor: Supervisor, room: Path) -> None:
    core = supervisor._core
    first, second, third = keep(core, ANN, room), keep(core, BOB, room), keep(core, None, room)
    core.wait(first, State.RUNNING)[0].result(10)
    states = [core.info(job).result(5).state for job in (first, second, third)]
    assert states == [State.RUNNING, State.QUEUED, State.QUEUED]
    (room / "gate").touch()
    assert [core.wait(job, None)[0].result(10).state for job in (first, second, third)] == [State.COMPLETED] * 3


@needs_root
def test_who_may_not_open_a_volume_is_in_nobodys_way_and_learns_nothing(supervisor: Supervisor, room: Path) -> None:
    core = supervisor._core
    path = str(room / "anns")
    bobs = keep(core, BOB, room, "anns", on_conflict="wait")
    info = core.wait(bobs, None)[0].result(10)
    assert "ermission denied" in (info.errmsg or "")
    anns = keep(core, ANN, room, "anns")
    core.wait(anns, State.RUNNING)[0].result(10)
    refused = core.wait(keep(core, BOB, room, "anns", on_conflict="fail"), None)[0].result(10)
    assert "ermission denied" in (refused.errmsg or "")
    with pytest.raises(NotPermitted):
        core.seen_by(BOB).mask(path).result(10)
    (held,) = core.seen_by(ANN).mask(path).result(10).held_by
    assert (held.job, held.type, held.user, bool(held.pid)) == (anns, "test-keep", "65533", True)
    (room / "gate").touch()


@needs_root
def test_of_other_peoples_jobs_on_a_shared_volume_only_id_type_and_user_are_told(
    supervisor: Supervisor, room: Path
) -> None:
    core = supervisor._core
    job = keep(core, ANN, room)
    core.wait(job, State.RUNNING)[0].result(10)
    (held,) = core.seen_by(BOB).mask(str(room / "shared")).result(10).held_by
    assert held.pid is None
    assert str(held) == f"job {job} (test-keep, of 65533)"
    with pytest.raises(Busy, match=rf"in use by job {job} \(test-keep, of 65533\);"):
        keep(core, BOB, room, on_conflict="fail")
    (room / "gate").touch()


@needs_root
def test_a_directory_that_is_closed_to_the_user_stays_closed(supervisor: Supervisor, room: Path) -> None:
    """The answer for what is there and what is not is the same."""
    closed = room / "closed"
    closed.mkdir(0o700)
    (closed / "there").touch(0o666)
    core = supervisor._core
    answers = []
    for name in ("there", "missing"):
        with pytest.raises((UsageError, NotPermitted)) as refused:
            core.seen_by(ANN).mask(str(closed / name)).result(10)
        answers.append(str(refused.value).replace(name, "NAME"))
    assert answers[0] == answers[1]
    assert "permission denied in the directory" in answers[0]


@pytest.fixture
def hung(room: Path) -> Iterator[Path]:
    """A directory whose filesystem has stopped to answer."""
    if shutil.which("bindfs") is None or not os.path.exists("/dev/fuse"):
        pytest.skip("needs bindfs and /dev/fuse")
    (room / "below").mkdir(0o755)
    (room / "below" / "file").touch()
    (room / "hung").mkdir()
    command: list[str | Path] = [
        "bindfs",
        "-f",
        "-o",
        "allow_other,attr_timeout=0,entry_timeout=0",
        room / "below",
        room / "hung",
    ]
    with subprocess.Popen(command) as server:
        wait_until(lambda: (room / "hung").is_mount() or server.poll() is not None, 10)
        assert server.poll() is None
        server.send_signal(signal.SIGSTOP)
        try:
            yield room / "hung"
        finally:
            server.kill()
            server.wait()
            subprocess.run(["umount", "-l", room / "hung"], check=True)


@needs_root
def test_an_answer_that_does_not_come_is_not_waited_for(supervisor: Supervisor, room: Path, hung: Path) -> None:
    """A filesystem that hangs delays who named it, for a while, and nobody else."""
    core = supervisor._core
    core.wait(keep(core, None, room, "anns"), State.RUNNING)[0].result(10)
    zygotes = core.zygotes().result(5)
    args = {"volume": str(hung / "file"), "until": str(room / "gate")}
    stuck = core.seen_by(ANN).start("test-keep", Options(), args)
    assert core.wait(keep(core, BOB, room), State.RUNNING)[0].result(10)
    assert not stuck.done()
    job = stuck.result(10).id
    with pytest.raises(Unreachable, match="does not answer"):
        core.seen_by(ANN).mask(args["volume"]).result(10)
    assert core.zygotes().result(5) == zygotes
    left = Path(f"/proc/{zygotes[0]}/task/{zygotes[0]}/children")
    wait_until(lambda: len(left.read_text().split()) == 3, 10)  # the workers
    assert core.verb(Verb.ABORT, job, wait=True, force=True).result(10).state is State.ABORTED
    (room / "gate").touch()


def killed(core: Core, room: Path, *life: Life) -> JobInfo:
    """How a job of ann's ends that wrote these lines into its life before it was killed."""
    job = keep(core, ANN, room)
    pid = core.wait(job, State.RUNNING)[0].result(10).pid
    assert pid
    with open(os.path.join(core.home.job(job), "life"), "ab") as file:
        file.writelines(encode(line) + b"\n" for line in life)
    os.kill(pid, signal.SIGKILL)
    return core.wait(job, None)[0].result(30)


@needs_root
def test_what_a_dead_worker_left_is_removed_with_its_users_rights(supervisor: Supervisor, room: Path) -> None:
    """Else who puts a link in the place of a directory would have root remove any file."""
    os.chown(room, ANN.uid, ANN.gid)
    (room / "roots").mkdir(0o755)
    (room / "link").symlink_to("roots")
    for name in ("mine", "roots/file"):
        (room / name).touch()
    info = killed(supervisor._core, room, Temporary(str(room), "mine"), Temporary(str(room / "link"), "file"))
    assert (info.state, info.cause, info.warnings) == (State.FAILED, "killed", [])
    assert not (room / "mine").exists()
    assert (room / "roots" / "file").exists()


@needs_root
def test_a_commit_of_another_user_that_stands_is_done_and_one_that_does_not_is_undone(
    supervisor: Supervisor, room: Path
) -> None:
    os.chown(room, ANN.uid, ANN.gid)
    facts = (room / "anns").stat()
    stands = Linked(str(room), "anns", facts.st_dev, facts.st_ino)
    info = killed(supervisor._core, room, Commit([stands], {"n": 1}))
    assert (info.state, info.result) == (State.COMPLETED, {"n": 1})
    missing = Linked(str(room), "missing", facts.st_dev, facts.st_ino + 1)
    assert killed(supervisor._core, room, Commit([stands, missing], None)).cause == "killed"
    assert not (room / "anns").exists()


@needs_root
def test_what_cannot_be_looked_at_is_said(
    supervisor: Supervisor, room: Path, hung: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "SETTLE_TRIES", 2)
    info = killed(supervisor._core, room, Temporary(str(hung), ".jobvisor-1-x"))
    assert info.cause == "killed"
    assert info.warnings == [f"it could not be looked whether these are left: {hung}/.jobvisor-1-x"]


@needs_root
def test_a_mark_in_the_environment_gets_nobody_elses_process_killed(supervisor: Supervisor, room: Path) -> None:
    """A user can start a program with any environment, also one that becomes root (sudo)."""
    core = supervisor._core
    job = keep(core, ANN, room)
    pid = core.wait(job, State.RUNNING)[0].result(10).pid
    assert pid
    environment = {**os.environ, MARK: core.home.job(job)}
    ours = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
    anns = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True, user=ANN.uid, cwd="/")
    with ours, anns:
        try:
            (zygote,) = core.zygotes().result(5)
            os.kill(zygote, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            assert core.wait(job, None)[0].result(10).state is State.FAILED
            assert anns.wait(10) == -signal.SIGKILL
            assert ours.poll() is None
        finally:
            ours.kill()
            anns.kill()


@needs_root
def test_a_dead_job_of_another_user_is_settled_also_when_the_journal_was_lost(tmp_path: Path, room: Path) -> None:
    os.chown(room, ANN.uid, ANN.gid)
    home = tmp_path / "home"
    with nothing_left(home, tmp_path):
        with Supervisor(home, types=[__name__]) as supervisor:
            job = keep(supervisor._core, ANN, room)
            supervisor.job(job).wait(10, until=State.RUNNING)
        kill_processes_of(home)
        (room / "mine").touch()
        with open(home / "jobs" / str(job) / "life", "ab") as file:
            file.write(encode(Temporary(str(room), "mine")) + b"\n")
        for path in home.glob("journal.sqlite*"):
            path.unlink()
        with Supervisor(home, types=[__name__]) as supervisor:
            info = supervisor.job(job).wait(10)
            assert (info.state, info.cause, info.owner_uid) == (State.FAILED, "worker-lost", ANN.uid)
            assert not (room / "mine").exists()


@needs_root
def test_nothing_of_an_errand_is_left(supervisor: Supervisor, room: Path) -> None:
    core = supervisor._core
    for _ in range(20):
        core.seen_by(ANN).mask(str(room / "shared")).result(10)
    (zygote,) = core.zygotes().result(5)
    children = Path(f"/proc/{zygote}/task/{zygote}/children")
    wait_until(lambda: children.read_text() == "", 5)
    assert len(os.listdir(f"/proc/{zygote}/fd")) < 15


def test_what_a_process_has_open_is_no_name(tmp_path: Path) -> None:
    """/dev/stdin would be the worker's own, not that of the user who named it."""
    (tmp_path / "plain").touch()
    with open(tmp_path / "plain") as file:
        (tmp_path / "stdin").symlink_to(f"/proc/self/fd/{file.fileno()}")
        for path in (f"/proc/self/fd/{file.fileno()}", str(tmp_path / "stdin"), "/proc/self/root/etc/passwd"):
            with pytest.raises(JobError, match="what some process has open"):
                identify(path)
    (tmp_path / "link").symlink_to("plain")
    assert identify(str(tmp_path / "link")) == identify(str(tmp_path / "plain"))


def test_a_look_tells_what_may_be_used_and_how(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    path, missing = str(tmp_path / "a"), str(tmp_path / "b")
    seen = look([Named(path, "write"), Named(missing, "any", new=True)])
    assert (seen[path].key, seen[missing].key) == (identify(path), identify(missing, new=True))
    assert "no such file" in look([Named(missing, "read")])[missing].error
    if os.geteuid():
        (tmp_path / "a").chmod(0o400)
        assert look([Named(path, "read")])[path].key
        assert look([Named(path, "write")])[path].denied
