"""Who may see and do what: one root supervisor as two plain users, root, and nobody else see it."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from jobvisor import JobvisorError, NoSuchJob, NotPermitted, State, Supervisor, UsageError, Verb
from jobvisor.asking import Options
from jobvisor.core import Core
from jobvisor.testing import job_type, wait_until
from jobvisor_workers import JobType, Worker
from jobvisor_workers.protocol import Requester

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have users besides itself")

ANN = Requester(65533, 65533, [65533], "ann", "/nonexistent")
BOB = Requester(65534, 65534, [65534], "bob", "/nonexistent")
ROOT = Requester(0, 0, [0], "root", "/root")


@job_type
class Stay(JobType, tag="test-stay"):
    """Work until a file is there."""

    until: str
    fail: bool = False
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("stay")
        while not os.path.exists(self.until):
            time.sleep(0.002)
        if self.fail:
            raise RuntimeError("told to")
        return {}


@pytest.fixture
def core(supervisor: Supervisor) -> Core:
    return supervisor._core


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Open to everybody: how a job of another user comes to it is not this module's affair."""
    tmp_path.chmod(0o755)
    return Path(os.environ.get("TMPDIR", "/tmp")) / f"jobvisor-gate-{os.urandom(6).hex()}"


@pytest.fixture(autouse=True)
def _closed(gate: Path) -> Any:
    yield
    gate.unlink(missing_ok=True)


def start(core: Core, gate: Path, key: str | None = None, **args: Any) -> int:
    return core.start("test-stay", Options(), {"until": str(gate), **args}, key=key).result(10).id


VERBS: dict[str, Callable[[Core, int], Future[Any]]] = {
    "info": lambda core, job: core.info(job),
    "wait": lambda core, job: core.wait(job, State.RUNNING)[0],
    "suspend": lambda core, job: core.verb(Verb.SUSPEND, job, wait=False),
    "resume": lambda core, job: core.verb(Verb.RESUME, job, wait=False),
    "complete": lambda core, job: core.verb(Verb.COMPLETE, job, wait=False),
    "abort": lambda core, job: core.verb(Verb.ABORT, job, wait=False),
    "retry": lambda core, job: core.retry(job),
    "forget": lambda core, job: core.forget(job),
    "set_current": lambda core, job: core.set_current(job),
}


def answer(future: Future[Any]) -> str:
    try:
        future.result(10)
    except JobvisorError as error:
        return error.code
    return "done"


@needs_root
@pytest.mark.parametrize("ended", [False, True], ids=["live", "ended"])
def test_other_peoples_jobs_do_not_exist(core: Core, gate: Path, ended: bool) -> None:
    """For each verb the answer is that for an id that was never given, to the word."""
    ann, bob, root = (core.seen_by(each) for each in (ANN, BOB, ROOT))
    job = start(ann, gate, fail=True)
    assert ann.wait(job, State.RUNNING)[0].result(10).owner_uid == ANN.uid
    if ended:
        gate.touch()
        ann.wait(job, None)[0].result(10)
        core._engine.recent.clear()  # as long after: only the journal knows
    for name, verb in VERBS.items():
        if name != "retry":  # made below: it succeeds
            assert answer(verb(bob, job)) == "no-such-job", name
            assert answer(verb(bob, 4711)) == "no-such-job", name
    with pytest.raises(NoSuchJob, match=f"^there is no job {job}$"):
        bob.retry(job).result(10)
    for seer in (ann, root, core):
        assert answer(VERBS["info"](seer, job)) == "done"
        assert answer(VERBS["wait"](seer, job)) == "done"
        assert answer(VERBS["complete"](seer, job)) == "wrong-state"
        assert answer(VERBS["set_current"](seer, job)) == "done"


@needs_root
def test_lists_current_job_pids_and_what_is_forgotten_are_ones_own(core: Core, gate: Path) -> None:
    ann, bob, root = (core.seen_by(each) for each in (ANN, BOB, ROOT))
    first, second, third = (start(each, gate) for each in (ann, bob, root))
    for each, job in ((ann, first), (bob, second), (root, third), (core, third)):
        assert [info.id for info in each.jobs().result(10)] == [job]
        assert each.current().result(10) == job
        core.wait(job, State.RUNNING)[0].result(10)
    assert [info.id for info in root.jobs(all_users=True).result(10)] == [third, second, first]
    with pytest.raises(NotPermitted):
        ann.jobs(all_users=True)
    with pytest.raises(NotPermitted):
        ann.events(None, None, all_users=True)
    assert list(ann.pids().result(10)) == [first]
    assert sorted(root.pids().result(10)) == [first, second, third]
    gate.touch()
    for job in (first, second, third):
        core.wait(job, None)[0].result(10)
    assert ann.ended_before(None).result(10) == [first]
    assert root.ended_before(None).result(10) == [third]
    assert [info.id for info in bob.jobs(state="completed").result(10)] == [second]


@needs_root
def test_events_are_of_ones_own_jobs(core: Core, gate: Path) -> None:
    ann, bob, root = (core.seen_by(each) for each in (ANN, BOB, ROOT))
    streams = [ann.events(None, None), bob.events(None, None), root.events(None, None, all_users=True)]
    mine, theirs = start(ann, gate), start(bob, gate)
    curious, allowed = bob.events(0, mine), root.events(0, mine)
    gate.touch()
    for job in (mine, theirs):
        core.wait(job, None)[0].result(10)
    seen = []
    for stream in (*streams, curious, allowed):
        stream.close()
        seen.append({event.job.id for event in stream})
    assert seen == [{mine}, {theirs}, {mine, theirs}, set(), {mine}]


@needs_root
def test_a_retry_by_root_is_for_the_user_whose_job_it_was(core: Core, gate: Path) -> None:
    ann, root = core.seen_by(ANN), core.seen_by(ROOT)
    job = start(ann, gate, fail=True)
    gate.touch()
    ann.wait(job, None)[0].result(10)
    again = root.retry(job).result(10)
    assert (again.owner_uid, again.retry_of) == (ANN.uid, job)


@needs_root
def test_requests_from_outside_name_everything_from_the_root(core: Core) -> None:
    ann = core.seen_by(ANN)
    with pytest.raises(UsageError, match="relative"):
        ann.start("checksum", Options(), {"volume": "a.raw"})
    with pytest.raises(UsageError, match="relative"):
        ann.jobs(resource="a.raw")
    with pytest.raises(UsageError, match="relative"):
        ann.mask("a.raw")


def test_a_start_with_a_key_is_one_start(supervisor: Supervisor, gate: Path) -> None:
    core = supervisor._core
    futures = [core.start("test-stay", Options(), {"until": str(gate)}, key="k1") for _ in range(20)]
    assert {future.result(10).id for future in futures} == {1}
    assert start(core, gate, "k1") == 1
    assert start(core, gate, "k2") == 2
    with pytest.raises(UsageError, match="another request"):
        start(core, gate, "k1", fail=True)
    with pytest.raises(UsageError, match="another request"):
        core.start("test-stay", Options(nice=5), {"until": str(gate)}, key="k1").result(10)
    gate.touch()
    assert core.wait(1, None)[0].result(10).ok
    assert start(core, gate, "k1") == 1
    core.forget(1).result(10)
    assert start(core, gate, "k1") == 3


def test_a_key_is_known_after_a_restart(tmp_path: Path, gate: Path) -> None:
    gate.touch()
    for _ in range(2):
        with Supervisor(tmp_path / "home", types=[__name__]) as supervisor:
            assert start(supervisor._core, gate, "k") == 1
            supervisor.job(1).wait(10)


def test_a_retry_with_a_key_is_one_retry(supervisor: Supervisor, gate: Path) -> None:
    core = supervisor._core
    gate.touch()
    job = start(core, gate, fail=True)
    supervisor.job(job).wait(10)
    futures = [core.retry(job, key="r") for _ in range(5)]
    assert {future.result(10).id for future in futures} == {2}
    with pytest.raises(UsageError, match="another request"):
        start(core, gate, "r")


@pytest.mark.parametrize("key", ["", "a" * 256, "a\n"])
def test_odd_keys_are_refused(supervisor: Supervisor, gate: Path, key: str) -> None:
    with pytest.raises(UsageError, match="key"):
        start(supervisor._core, gate, key)


@needs_root
def test_a_key_is_its_users_own(core: Core, gate: Path) -> None:
    assert [start(core.seen_by(each), gate, "same") for each in (ANN, BOB, ANN, BOB)] == [1, 2, 1, 2]


def test_jobs_since_are_those_that_were_not_over(supervisor: Supervisor, gate: Path) -> None:
    core = supervisor._core
    over = Path(f"{gate}.over")
    try:
        over.touch()
        start(core, over)
        ended = supervisor.job(1).wait(10).ended
        assert ended
        start(core, gate)
        assert [info.id for info in core.jobs(since=ended).result(10)] == [2, 1]
        assert [info.id for info in core.jobs(since=ended + 0.001).result(10)] == [2]
    finally:
        over.unlink()


def test_a_job_is_waited_for_until_its_checks_are_over(supervisor: Supervisor, gate: Path) -> None:
    job = start(supervisor._core, gate)
    info = supervisor.job(job).wait(10, until="checked")
    assert info.state is State.RUNNING
    assert info.phase in (None, "stay")
    wait_until(lambda: supervisor.job(job).info().phase == "stay", 10)
