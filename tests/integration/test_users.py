"""Who may do what: two users and root against one daemon of root's, for everything that can be asked."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobvisor import autostart
from jobvisor.testing import kill_processes_of, nothing_left
from support.daemons import run_daemon
from support.users import GROUP, OTHER, OWN, ROOT, STRANGER, User, room

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A daemon of root's, which a group may use, and a directory for each user."""
    with room() as place, nothing_left(place / "home", place):
        for user in (OWN, OTHER, ROOT):
            (place / user.name).mkdir(mode=0o700)
            os.chown(place / user.name, user.uid, user.uid)
        types = ["support.kill_types", "support.gate_types"]
        said = run_daemon(place / "home", socket=str(place / "run" / "api.sock"), group=str(GROUP), types=types)
        assert said == b"ready"
        yield place
        (place / "gate").touch()
        for job in ROOT.ask(place / "run" / "api.sock", "GET", "/v1/jobs?all_users=true")[1]["jobs"]:
            if job["success"] is None:
                ROOT.ask(place / "run" / "api.sock", "POST", f"/v1/jobs/{job['id']}/abort")
        autostart.stop(str(place / "run" / "api.sock"))
        kill_processes_of(place / "home")


@pytest.fixture
def api(place: Path) -> Path:
    return place / "run" / "api.sock"


def start(api: Path, user: User, **job: Any) -> dict[str, Any]:
    status, info = user.ask(api, "POST", "/v1/jobs", {"job": job})
    assert status == 201, info
    assert isinstance(info, dict)
    return info


@pytest.fixture
def image(place: Path) -> Iterator[Path]:
    """A volume of one user's, where others may look."""
    path = place / "image"
    path.write_bytes(b"i" * 4096)
    os.chown(path, OWN.uid, OWN.uid)
    yield path
    path.unlink()


@pytest.fixture
def job(api: Path, place: Path, image: Path) -> Iterator[str]:
    """A running job of OWN's."""
    (place / "gate").unlink(missing_ok=True)
    info = start(api, OWN, type="test-gate", gate=str(place / "gate"), image=str(image))
    one = f"/v1/jobs/{info['id']}"
    assert OWN.ask(api, "GET", f"{one}/wait?for=running")[1]["state"] == "running"
    yield one
    (place / "gate").touch()
    ROOT.ask(api, "POST", f"{one}/abort")


#: Request for a running job of OWN's → status for OWN, for OTHER, for ROOT. `{}`: /v1/jobs/ID.
MATRIX = {
    ("GET", "{}"): (200, 404, 200),
    ("GET", "{}/wait?timeout=0"): (200, 404, 200),
    ("GET", "{}/log"): (200, 404, 200),
    ("GET", "{}/stdout"): (400, 404, 400),
    ("PUT", "{}/stdin"): (400, 404, 400),
    ("POST", "{}/suspend"): (200, 404, 200),
    ("POST", "{}/resume"): (409, 404, 409),
    ("POST", "{}/complete"): (409, 404, 409),
    ("POST", "{}/retry"): (409, 404, 409),
    ("DELETE", "{}"): (409, 404, 409),
    ("POST", "{}/abort"): (200, 404, 200),
    ("PUT", "/v1/current"): (200, 404, 200),
    ("GET", "/v1/jobs"): (200, 200, 200),
    ("GET", "/v1/jobs?all_users=true"): (403, 403, 200),
    ("DELETE", "/v1/jobs"): (200, 200, 200),
    ("GET", "/v1/events?all_users=true&progress=0"): (403, 403, None),
    ("GET", "/v1/pids"): (200, 200, 200),
    ("GET", "/v1/mask?resource=IMAGE"): (200, 200, 200),
    ("GET", "/v1/config"): (200, 200, 200),
    ("POST", "/v1/config/reload"): (403, 403, 200),
    ("GET", "/v1/holds"): (200, 200, 200),
    ("POST", "/v1/holds"): (400, 400, 400),
    ("DELETE", "/v1/holds"): (409, 409, 409),
    ("DELETE", "/v1/holds?all_users=true"): (403, 403, 409),
    ("GET", "/v1/current"): (200, 200, 200),
    ("GET", "/v1/types"): (200, 200, 200),
    ("GET", "/v1/types/clone"): (200, 200, 200),
    ("GET", "/v1/daemon"): (200, 200, 200),
    ("POST", "/v1/jobs"): (400, 400, 400),
}


#: All cells but one, whose answer has no end: the tests of events below have it.
CELLS = [
    pytest.param(user, method, target, expected, id=f"{user.name}-{method}-{target}")
    for (method, target), row in MATRIX.items()
    for user, expected in zip((OWN, OTHER, ROOT), row, strict=True)
    if expected is not None
]


@pytest.mark.parametrize(("user", "method", "target", "expected"), CELLS)
def test_who_may_do_what(api: Path, job: str, image: Path, user: User, method: str, target: str, expected: int) -> None:
    body: Any = {"id": int(job.rpartition("/")[2])} if target == "/v1/current" and method == "PUT" else None
    if target == "/v1/jobs" and method == "POST":
        body = {"job": {}}
    if target == "/v1/holds" and method == "POST":
        body = {"reason": ""}
    status, content = user.ask(api, method, target.format(job).replace("IMAGE", str(image)), body)
    assert status == expected, content
    if expected == 404:
        assert content["code"] == "no-such-job"
        other: Any = {"id": 999999} if body else None
        unknown = user.ask(api, method, target.format("/v1/jobs/999999"), other)
        assert str(unknown[1]).replace("999999", job.rpartition("/")[2]) == str(content), "it tells that there is one"


def test_the_matrix_has_every_endpoint(api: Path) -> None:
    _, document = ROOT.ask(api, "GET", "/v1/openapi.json")
    asked = {(method, target.partition("?")[0].format("/v1/jobs/{id}")) for method, target in MATRIX}
    asked = {(method, target.replace("types/clone", "types/{type}")) for method, target in asked}
    there = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    # What events a user hears is tested below, with streams that have an end.
    assert asked == there


def test_lists_and_pids_have_ones_own_jobs(api: Path, job: str) -> None:
    number = int(job.rpartition("/")[2])
    for user, target, sees in (
        (OWN, "/v1/jobs", True),
        (OTHER, "/v1/jobs", False),
        (ROOT, "/v1/jobs", False),
        (ROOT, "/v1/jobs?all_users=true", True),
    ):
        _, content = user.ask(api, "GET", target)
        assert (number in [info["id"] for info in content["jobs"]]) is sees, (user, target)
    for user, sees in ((OWN, True), (OTHER, False), (ROOT, True)):
        assert (str(number) in user.ask(api, "GET", "/v1/pids")[1]["pids"]) is sees, user


def test_events_are_of_ones_own_jobs(api: Path, place: Path, job: str) -> None:
    number = int(job.rpartition("/")[2])
    others = start(api, OTHER, type="test-gate", gate=str(place / "other" / "gate"))["id"]
    ROOT.ask(api, "POST", f"/v1/jobs/{others}/abort")
    assert set(OTHER.hears(api, "?since=0&progress=0", 2)) <= {others, *range(others)} - {number}
    assert OTHER.hears(api, f"?since=0&progress=0&jobs={number},{others}", 1) == [others]
    assert OWN.hears(api, f"?since=0&progress=0&jobs={number},{others}", 1) == [number]
    assert ROOT.hears(api, f"?since=0&progress=0&jobs={number}", 1) == [number]
    # The other one begins later: what comes of it is behind whatever came of this one before its begin.
    heard = ROOT.hears(api, f"?since=0&progress=0&all_users=true&jobs={others}", 1)
    heard += ROOT.hears(api, f"?since=0&progress=0&all_users=true&jobs={number}", 1)
    assert heard == [others, number]


def test_the_current_job_is_each_users_own(api: Path, place: Path, job: str) -> None:
    mine = start(api, OTHER, type="test-gate", gate=str(place / "gate"))["id"]
    assert OWN.ask(api, "GET", "/v1/current")[1] == {"id": int(job.rpartition("/")[2])}
    assert OTHER.ask(api, "GET", "/v1/current")[1] == {"id": mine}


def test_of_the_one_in_the_way_id_type_and_user_are_told_and_no_more(api: Path, image: Path, job: str) -> None:
    image.chmod(0o666)
    body = {"job": {"type": "checksum", "volume": str(image)}, "on_conflict": "fail"}
    status, problem = OTHER.ask(api, "POST", "/v1/jobs", body)
    assert (status, problem["code"]) == (409, "busy")
    number = int(job.rpartition("/")[2])
    assert problem["holder"] == {"kind": "job", "job": number, "type": "test-gate", "user": str(OWN.uid)}
    _, mask = OTHER.ask(api, "GET", f"/v1/mask?resource={image}")
    assert mask["held_by"] == [problem["holder"]]
    image.chmod(0o600)
    status, closed = OTHER.ask(api, "GET", f"/v1/mask?resource={image}")
    assert str(number) not in str(closed.get("held_by", "")), closed


def test_a_users_job_is_the_users_process_and_makes_the_users_files(api: Path, place: Path, image: Path) -> None:
    target = place / "own" / "copy"
    info = start(api, OWN, type="clone", source=str(image), target=str(target))
    final = OWN.ask(api, "GET", f"/v1/jobs/{info['id']}/wait")[1]
    assert final["state"] == "completed", final["errmsg"]
    assert (final["owner_uid"], target.stat().st_uid, target.stat().st_gid) == (OWN.uid, OWN.uid, OWN.uid)


@pytest.mark.parametrize("secret", ["root", "other"])
def test_a_users_job_reads_nothing_that_the_user_may_not_read(api: Path, place: Path, secret: str) -> None:
    hidden = place / secret / "secret"
    hidden.write_bytes(b"secret")
    info = start(api, OWN, type="checksum", volume=str(hidden))
    final = OWN.ask(api, "GET", f"/v1/jobs/{info['id']}/wait")[1]
    assert (final["state"], final["cause"]) == ("failed", "error")
    assert "permission denied" in final["errmsg"].lower()
    assert str(os.stat(hidden).st_ino) not in str(final)


def test_a_users_job_writes_nothing_that_the_user_may_not_write(api: Path, place: Path, image: Path) -> None:
    for target in (place / "root" / "copy", place / "copy"):
        info = start(api, OWN, type="clone", source=str(image), target=str(target))
        final = OWN.ask(api, "GET", f"/v1/jobs/{info['id']}/wait")[1]
        assert final["state"] == "failed", final
        assert not target.exists()


def test_who_is_not_in_the_group_does_not_get_in(api: Path) -> None:
    def connect() -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(api))
            except PermissionError:
                return "refused"
            return "let in"

    assert STRANGER.do(connect) == "refused"
    assert OTHER.do(connect) == "let in"


def test_nothing_of_the_state_is_open_to_anybody_else(place: Path, job: str) -> None:
    opened = []
    for directory, names, files in os.walk(place / "home"):
        for name in [*names, *files]:
            path = Path(directory, name)
            facts = path.lstat()
            if stat.S_IMODE(facts.st_mode) & 0o077 or facts.st_uid != 0:
                opened.append((str(path), oct(facts.st_mode), facts.st_uid))
    assert not opened
    assert stat.S_IMODE((place / "home").stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "run").stat().st_mode) == 0o750
    assert stat.S_IMODE((place / "run" / "api.sock").stat().st_mode) == 0o660


def test_a_secret_is_read_by_whom_the_job_is_for(api: Path, place: Path) -> None:
    made = {"type": "create", "target": str(place / "own" / "new"), "capacity": 1 << 20, "encrypt": "luks"}
    errors = []
    for owner in (OWN, ROOT):
        secret = place / f"secret of {owner.name}"
        secret.write_text("sesame")
        secret.chmod(0o600)
        os.chown(secret, owner.uid, owner.uid)
        body = {"job": made | {"secret_file": str(secret)}, "dry_run": True}
        status, info = OWN.ask(api, "POST", "/v1/jobs", body)
        assert status == 201, info
        errors.append(OWN.ask(api, "GET", f"/v1/jobs/{info['id']}/wait")[1]["errmsg"])
    assert errors == [None, f"cannot open {secret} for reading: Permission denied"]


def test_a_user_holds_their_own_jobs_and_root_everybodys(api: Path, place: Path) -> None:
    assert OWN.ask(api, "POST", "/v1/holds", {"reason": "mine", "all_users": True})[0] == 403
    assert OWN.ask(api, "POST", "/v1/holds", {"reason": "mine"})[0] == 201
    gate = place / "held-gate"
    gate.touch()
    try:
        queued = start(api, OWN, type="test-gate", gate=str(gate))
        other = start(api, OTHER, type="test-gate", gate=str(gate))
        assert OTHER.ask(api, "GET", f"/v1/jobs/{other['id']}/wait")[1]["state"] == "completed"
        assert OTHER.ask(api, "GET", "/v1/holds")[1] == {"holds": []}
        assert ROOT.ask(api, "POST", "/v1/holds", {"reason": "all", "all_users": True})[0] == 201
        try:
            assert [each["reason"] for each in OTHER.ask(api, "GET", "/v1/holds")[1]["holds"]] == ["all"]
            waits = start(api, OTHER, type="test-gate", gate=str(gate))
            assert OTHER.ask(api, "GET", f"/v1/jobs/{waits['id']}")[1]["reason"] == "held by root: all"
        finally:
            assert ROOT.ask(api, "DELETE", "/v1/holds?all_users=true")[0] == 204
        assert OTHER.ask(api, "GET", f"/v1/jobs/{waits['id']}/wait")[1]["state"] == "completed"
        assert OWN.ask(api, "GET", f"/v1/jobs/{queued['id']}")[1]["state"] == "queued"
    finally:
        assert OWN.ask(api, "DELETE", "/v1/holds")[0] == 204
    assert OWN.ask(api, "GET", f"/v1/jobs/{queued['id']}/wait")[1]["state"] == "completed"
