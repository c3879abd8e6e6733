"""A job that is for another user runs as that user, with nothing of root's left to it."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import pytest

from jobvisor import JobInfo, State, Supervisor, Verb
from jobvisor.asking import Options
from jobvisor.core import Core
from jobvisor.testing import job_type, nothing_left, wait_until
from jobvisor_workers import READ, JobError, JobType, Worker, new_volume, volume
from jobvisor_workers.protocol import Requester

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

ANN = Requester(65533, 65531, [65531, 65530], "ann", "/home/of/ann")
BOB = Requester(65534, 65534, [65534], "bob", "/nonexistent")


@job_type
class Tell(JobType, tag="test-tell"):
    """Tell who and where this is, and what it may do."""

    look_at: str

    def run(self, worker: Worker) -> dict[str, Any]:
        child = worker.child(["id", "-u"])
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":\t") for line in lines if ":\t" in line)
        ways_back = []
        setters: list[Callable[[], None]] = [
            lambda: os.setuid(0),
            lambda: os.setresuid(0, 0, 0),
            lambda: os.setgid(0),
            lambda: os.setgroups([0]),
        ]
        for way in setters:
            try:
                way()
                ways_back.append(repr(way))
            except PermissionError:
                pass
        try:
            os.listdir(self.look_at)
            looked = True
        except PermissionError:
            looked = False
        return {
            "ids": [*os.getresuid(), *os.getresgid()],
            "groups": sorted(os.getgroups()),
            "capabilities": status["CapEff"] + status["CapPrm"] + status["CapInh"] + status["CapAmb"],
            "no_new_privs": status["NoNewPrivs"],
            "umask": status["Umask"],
            "environment": {name: value for name, value in os.environ.items() if not name.startswith("JOBVISOR_JOB")},
            "directory": os.getcwd(),
            "child": child.stdout.decode().strip(),
            "ways_back": ways_back,
            "looked": looked,
            "open": [os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) for fd in range(64) if _is_open(fd)],
            "comm": Path("/proc/self/comm").read_text().strip(),
        }


def _is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@job_type
class Make(JobType, tag="test-make"):
    """Make a file, after a gate was opened."""

    source: Annotated[str, volume("volume to read", READ)]
    target: Annotated[str, new_volume("where it goes")]
    gate: str | None = None
    replace: bool = False
    fail: bool = False

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("make", total=10)
        with worker.create(self.target, replace=self.replace) as output:
            os.pwrite(output.fd, b"content", 0)
            worker.advance(3)
            while self.gate and not os.path.exists(self.gate):
                time.sleep(0.002)
                worker.advance(0)
            if self.fail:
                raise JobError("told to")
        return {}


@job_type
class Late(JobType, tag="test-late"):
    """Needs something that only root can read."""

    path: str
    loaded: ClassVar[str] = ""

    def load(self) -> None:
        Late.loaded = Path(self.path).read_text()

    def run(self, worker: Worker) -> dict[str, Any]:
        return {"loaded": Late.loaded}


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory that ann can reach and has; pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="jobvisor-room-"))
    os.chown(path, ANN.uid, ANN.gid)
    path.chmod(0o755)
    (path / "source").write_bytes(b"source")
    os.chown(path / "source", ANN.uid, ANN.gid)
    yield path
    shutil.rmtree(path)


def start(core: Core, name: str, *, requester: Requester = ANN, umask: int = 0o027, **args: Any) -> int:
    options = Options(**{key: args.pop(key) for key in list(args) if key in Options.__struct_fields__})
    return core.seen_by(requester).start(name, options, args, umask=umask).result(10).id


def end(core: Core, job: int) -> JobInfo:
    return core.wait(job, None)[0].result(20)


def test_a_worker_is_its_requester_and_nobody_else(supervisor: Supervisor, tmp_path: Path, room: Path) -> None:
    os.environ["XDG_CONFIG_HOME"] = "/root/of-root"
    try:
        info = end(supervisor._core, start(supervisor._core, "test-tell", look_at=supervisor.home))
    finally:
        del os.environ["XDG_CONFIG_HOME"]
    assert info.ok, info.errmsg
    assert info.result
    told = info.result
    assert told["ids"] == [65533] * 3 + [65531] * 3
    assert told["groups"] == [65530, 65531]
    assert set(told["capabilities"]) == {"0"}
    assert (told["no_new_privs"], told["umask"]) == ("1", "0027")
    environment = told["environment"]
    assert (environment["HOME"], environment["USER"], environment["LOGNAME"]) == ("/home/of/ann", "ann", "ann")
    assert set(environment) <= {"HOME", "USER", "LOGNAME", "PATH", "LANG", "LANGUAGE", "TZ"} | {
        name for name in environment if name.startswith("LC_")
    }
    assert (told["directory"], told["child"], told["comm"]) == ("/", "65533", f"job:{info.id}")
    assert told["ways_back"] == []
    assert told["looked"] is False
    assert {name.partition(":")[0] for name in told["open"]} == {"null", "log", "pipe", "life", "result"}
    assert (info.owner_uid, info.args["look_at"]) == (ANN.uid, supervisor.home)


def test_a_requester_without_a_name_gets_that_of_the_user_database(supervisor: Supervisor, room: Path) -> None:
    core = supervisor._core
    nobody = pwd.getpwuid(65534)
    for uid, name, home in ((65534, nobody.pw_name, nobody.pw_dir), (65533, "65533", "/")):
        requester = Requester(uid, uid, [uid], "", "")
        info = end(core, start(core, "test-tell", requester=requester, look_at="/"))
        assert info.result
        environment = info.result["environment"]
        assert (environment["USER"], environment["LOGNAME"], environment["HOME"]) == (name, name, home)


def test_a_worker_that_cannot_become_its_requester_does_nothing(supervisor: Supervisor, room: Path) -> None:
    """More groups than the kernel takes; this is also a request that travels by memfd, and an errand that cannot."""
    crowd = msgspec.structs.replace(ANN, groups=list(range(1, 70_000)))
    core = supervisor._core
    job = start(core, "test-make", requester=crowd, source=str(room / "source"), target=str(room / "made"))
    info = end(core, job)
    assert (info.state, info.phase) == (State.FAILED, None)
    assert info.errmsg == "cannot run test-make as ann (uid 65533): too many groups"
    assert os.listdir(room) == ["source"]


def test_what_a_type_loads_it_loads_while_it_may(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "module").write_text("content")
    (tmp_path / "module").chmod(0o600)
    info = end(supervisor._core, start(supervisor._core, "test-late", path=str(tmp_path / "module")))
    assert info.result == {"loaded": "content"}
    info = end(supervisor._core, start(supervisor._core, "test-late", path="/missing"))
    assert info.result == {"loaded": ""}


def test_the_files_of_the_job_stay_roots(supervisor: Supervisor, room: Path) -> None:
    job = start(supervisor._core, "test-make", source=str(room / "source"), target=str(room / "made"))
    assert end(supervisor._core, job).ok
    directory = Path(supervisor._core.home.job(job))
    for path in (directory, *directory.iterdir()):
        assert path.stat().st_uid == 0, path
        assert path.stat().st_mode & 0o077 == 0, path


def test_nobody_else_can_look_into_a_worker(supervisor: Supervisor, room: Path) -> None:
    """Its memory came from a process that saw the requests of all users."""
    core = supervisor._core
    job = start(core, "test-make", source=str(room / "source"), target=str(room / "made"), gate=str(room / "gate"))
    pid = core.wait(job, State.RUNNING)[0].result(10).pid
    program = (
        f"import os; os.setgroups([]); os.setgid({ANN.gid}); os.setuid({ANN.uid})\n"
        f"for name in ('mem', 'environ', 'fd', 'maps'):\n"
        f"    try:\n"
        f"        os.listdir('/proc/{pid}/fd') if name == 'fd' else open(f'/proc/{pid}/{{name}}', 'rb').read(1)\n"
        f"        print(name)\n"
        f"    except PermissionError: pass\n"
    )
    seen = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert seen.stdout == ""
    (room / "gate").touch()
    assert end(core, job).ok


def test_outputs_are_the_requesters(supervisor: Supervisor, room: Path) -> None:
    core = supervisor._core
    (room / "source").chmod(0o666)
    job = start(core, "test-make", source=str(room / "source"), target=str(room / "made"))
    assert end(core, job).ok
    status = (room / "made").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (ANN.uid, ANN.gid, 0o640)
    job = start(core, "test-make", source=str(room / "source"), target=str(room / "made"), replace=True)
    assert end(core, job).ok
    assert sorted(os.listdir(room)) == ["made", "source"]


def test_what_the_requester_may_not_do_the_job_may_not(supervisor: Supervisor, room: Path) -> None:
    core = supervisor._core
    secret = room / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    cases: dict[str, dict[str, Any]] = {
        "open": {"source": str(secret), "target": str(room / "made")},
        "other": {"source": str(room / "source"), "target": "/etc/jobvisor-made"},
    }
    for args in cases.values():
        info = end(core, start(core, "test-make", **args))
        assert info.state is State.FAILED
        assert "ermission denied" in (info.errmsg or "")
    bobs = end(core, start(core, "test-make", requester=BOB, source=str(room / "source"), target=str(room / "made")))
    assert "ermission denied" in (bobs.errmsg or "")
    nice = end(core, start(core, "test-make", source=str(room / "source"), target=str(room / "made"), nice=-5))
    assert "only root" in (nice.errmsg or "")
    assert not (room / "made").exists()


def test_the_verbs_work_on_a_job_of_another_user(supervisor: Supervisor, room: Path) -> None:
    core = supervisor._core
    ann = core.seen_by(ANN)
    args: dict[str, Any] = {"source": str(room / "source"), "target": str(room / "made"), "gate": str(room / "gate")}
    job = start(core, "test-make", nice=5, ionice="idle", **args)
    wait_until(lambda: ann.info(job).result(5).data_processed == 3, 10)
    for verb, state in ((Verb.SUSPEND, State.SUSPENDED), (Verb.RESUME, State.RUNNING), (Verb.ABORT, State.ABORTED)):
        assert ann.verb(verb, job, wait=True).result(10).state is state
    assert os.listdir(room) == ["source"]


def test_an_outsiders_term_is_told_with_its_sender(supervisor: Supervisor, room: Path) -> None:
    core = supervisor._core
    args: dict[str, Any] = {"source": str(room / "source"), "target": str(room / "made"), "gate": str(room / "gate")}
    job = start(core, "test-make", **args)
    info = core.wait(job, State.RUNNING)[0].result(10)
    assert info.pid
    os.kill(info.pid, signal.SIGTERM)
    final = end(core, job)
    assert (final.state, final.cause) == (State.ABORTED, "outsider-signal")
    assert final.ended_by
    assert final.ended_by.pid == os.getpid()


@pytest.mark.parametrize("name", ["clone", "wipe", "checksum", "compare", "convert", "delete", "resize"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_the_built_in_types_work_for_a_user(supervisor: Supervisor, room: Path, name: str, format: str) -> None:
    core = supervisor._core
    image = room / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", format, image, "1M"], check=True)
    other = room / "other"
    shutil.copy(image, other)
    for path in (image, other):
        os.chown(path, ANN.uid, ANN.gid)
    cases: dict[str, dict[str, Any]] = {
        "clone": {"source": str(image), "target": str(room / "made")},
        "checksum": {"volume": str(image), "content": True},
        "wipe": {"volume": str(image)},
        "convert": {"source": str(image), "target": str(room / "made"), "output_format": "qcow2"},
        "delete": {"volume": str(image), "zeroed": True},
        "compare": {"first": str(image), "second": str(other)},
        "resize": {"volume": str(image), "capacity": 2 << 20},
    }
    args = cases[name]
    info = end(core, start(core, name, **args))
    assert info.ok, info.errmsg
    if name in ("clone", "convert"):
        assert (room / "made").stat().st_uid == ANN.uid


def test_a_job_of_another_user_is_adopted(tmp_path: Path, room: Path) -> None:
    """By a later supervisor, through its zygote; and after the zygote's death, with its progress."""
    home = tmp_path / "home"
    args: dict[str, Any] = {"source": str(room / "source"), "target": str(room / "made"), "gate": str(room / "gate")}
    with nothing_left(home, tmp_path):
        first = Supervisor(home, types=[__name__])
        job = start(first._core, "test-make", time_limit=60.0, **args)
        first._core.wait(job, State.RUNNING)[0].result(10)
        wait_until(lambda: first.job(job).info().data_processed == 3, 10)
        first.close()
        with Supervisor(home, types=[__name__]) as second:
            wait_until(lambda: second._core.info(job).result(5).data_processed == 3, 10)
            for zygote in second._core.zygotes().result(5):
                os.kill(zygote, signal.SIGKILL)
            wait_until(lambda: not second._core.zygotes().result(5), 10)
            core = second._core
            ann = core.seen_by(ANN)
            assert ann.verb(Verb.SUSPEND, job, wait=True).result(10).state is State.SUSPENDED
            assert ann.verb(Verb.RESUME, job, wait=True).result(10).state is State.RUNNING
            assert ann.info(job).result(5).data_processed == 3
            (room / "gate").touch()
            assert end(core, job).ok
    assert json.loads((home / "jobs" / str(job) / "request").read_text())["requester"]["uid"] == ANN.uid
