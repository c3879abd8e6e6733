"""The HTTP API as a program in any language meets it: answers, problems, events, limits."""

import itertools
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest

import jobvisor
from jobvisor import Supervisor, UsageError
from jobvisor.testing import job_type, wait_until
from jobvisor_workers import WRITE, JobType, Worker, new_volume, volume
from support.http import Http, receive_all


@job_type
class Gated(JobType, tag="gated"):
    """Wait until a file is there."""

    gate: str
    image: Annotated[str, volume("volume to have alone", WRITE)] | None = None
    target: Annotated[str, new_volume("file to make")] | None = None
    fail: bool = False
    retry: ClassVar[Literal["never", "restart", "continue"]] = "restart"

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("wait", total=100)
        print("the worker speaks", flush=True)
        while not os.path.exists(self.gate):
            worker.advance(0)
            time.sleep(0.002)
        worker.advance(100)
        if self.fail:
            raise RuntimeError("told to fail")
        return {"gate": self.gate}


@pytest.fixture
def http(supervisor: Supervisor) -> Iterator[Http]:
    with supervisor.serve() as path:
        yield Http(path)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def start(http: Http, gate: Path, key: str | None = None, **fields: Any) -> dict[str, Any]:
    headers = {} if key is None else {"Idempotency_Key": key}
    answer = http("POST", "/v1/jobs", {"job": {"type": "gated", "gate": str(gate), **fields}}, **headers)
    assert answer.status == 201, answer.content
    info: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{info['id']}"
    return info


def is_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), answer
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code, problem
    assert problem["type"] == f"urn:jobvisor:{code}"
    assert problem["detail"]
    return problem


def test_a_job_from_start_to_end(http: Http, gate: Path) -> None:
    job = start(http, gate)
    one = f"/v1/jobs/{job['id']}"
    running = http("GET", f"{one}/wait?for=running").json()
    assert running["state"] == "running"
    assert http("POST", f"{one}/suspend").json()["state"] == "suspended"
    assert http("POST", f"{one}/resume").json()["state"] == "running"
    gate.touch()
    final = http("GET", f"{one}/wait").json()
    assert (final["state"], final["result"], final["success"]) == ("completed", {"gate": str(gate)}, True)
    assert [each["id"] for each in http("GET", "/v1/jobs").json()["jobs"]] == [job["id"]]
    assert http("GET", f"{one}/log").content == b"the worker speaks\n"
    assert http("GET", f"{one}/log?offset=4").content == b"worker speaks\n"
    assert http("DELETE", one).status == 204
    is_problem(http("GET", one), 404, "no-such-job")


def test_every_answer_names_the_version(http: Http) -> None:
    for answer in (
        http("GET", "/v1/daemon"),
        http("GET", "/v1/jobs/7"),
        http("GET", "/nowhere"),
        http("POST", "/v1/jobs"),
    ):
        assert answer.headers["jobvisor-version"] == jobvisor.__version__


def test_who_answers(http: Http, supervisor: Supervisor, gate: Path) -> None:
    start(http, gate)
    about = http("GET", "/v1/daemon").json()
    assert (about["pid"], about["home"], about["jobs"], about["uid"]) == (os.getpid(), supervisor.home, 1, os.geteuid())
    gate.touch()


def test_a_repeated_start_starts_no_second_job(http: Http, gate: Path) -> None:
    first = start(http, gate, key="k1")
    assert start(http, gate, key="k1")["id"] == first["id"]
    assert start(http, gate, key="k2")["id"] != first["id"]
    other = {"job": {"type": "gated", "gate": str(gate), "fail": True}}
    is_problem(http("POST", "/v1/jobs", other, Idempotency_Key="k1"), 409, "key-reused")
    is_problem(http("POST", "/v1/jobs", other, Idempotency_Key="a b"), 400, "usage")
    gate.touch()
    http("GET", f"/v1/jobs/{first['id']}/wait")
    assert start(http, gate, key="k1")["state"] == "completed"
    assert len(http("GET", "/v1/jobs").json()["jobs"]) == 2


def test_twenty_repetitions_at_once_are_one_job(http: Http, gate: Path) -> None:
    ids: list[int] = []
    threads = [threading.Thread(target=lambda: ids.append(start(http, gate, key="same")["id"])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 20
    assert len(set(ids)) == 1
    gate.touch()


def test_a_verb_that_does_not_fit_says_what_would(http: Http, gate: Path) -> None:
    job = start(http, gate)
    one = f"/v1/jobs/{job['id']}"
    http("GET", f"{one}/wait?for=running")
    problem = is_problem(http("POST", f"{one}/complete"), 409, "wrong-state")
    assert (problem["id"], problem["state"], problem["verb"], problem["allowed"]) == (
        job["id"],
        "running",
        "complete",
        ["abort", "suspend"],
    )
    is_problem(http("DELETE", one), 409, "wrong-state")
    assert http("POST", f"{one}/abort?wait=false").status == 202
    assert http("GET", f"{one}/wait").json()["state"] == "aborted"
    is_problem(http("POST", f"{one}/abort"), 409, "wrong-state")


def test_a_conflict_names_resource_and_holder(http: Http, gate: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 512)
    job = start(http, gate, image=str(image))
    body = {"job": {"type": "gated", "gate": str(gate), "image": str(image)}, "on_conflict": "fail"}
    problem = is_problem(http("POST", "/v1/jobs", body), 409, "busy")
    assert problem["resource"] == str(image)
    assert problem["holder"]["job"] == job["id"]
    mask = http("GET", f"/v1/mask?resource={image}").json()
    assert [holder["job"] for holder in mask["held_by"]] == [job["id"]]
    assert "checksum" not in mask["may_start"]
    gate.touch()


def test_retry_is_a_new_job(http: Http, gate: Path) -> None:
    job = start(http, gate, fail=True)
    gate.touch()
    assert http("GET", f"/v1/jobs/{job['id']}/wait").json()["state"] == "failed"
    again = [http("POST", f"/v1/jobs/{job['id']}/retry", Idempotency_Key="r") for _ in range(2)]
    assert [answer.status for answer in again] == [201, 201]
    assert again[0].json()["retry_of"] == job["id"]
    assert again[0].json()["id"] == again[1].json()["id"]


def test_waiting_ends_with_the_time_and_the_job_goes_on(http: Http, gate: Path) -> None:
    job = start(http, gate)
    assert http("GET", f"/v1/jobs/{job['id']}/wait?timeout=0.05").json()["state"] in ("starting", "running")
    assert http("GET", f"/v1/jobs/{job['id']}/wait?for=checked").json()["state"] == "running"
    gate.touch()


def test_the_current_job(http: Http, gate: Path) -> None:
    assert http("GET", "/v1/current").json() == {"id": None}
    first, second = start(http, gate), start(http, gate)
    assert http("GET", "/v1/current").json() == {"id": second["id"]}
    assert http("PUT", "/v1/current", {"id": first["id"]}).json() == {"id": first["id"]}
    is_problem(http("PUT", "/v1/current", {"id": 999}), 404, "no-such-job")
    gate.touch()


def test_lists_and_forgets(http: Http, gate: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    jobs = [start(http, gate), start(http, gate, target=str(target))]
    assert [each["id"] for each in http("GET", f"/v1/jobs?resource={target}").json()["jobs"]] == [jobs[1]["id"]]
    assert http("GET", "/v1/jobs?state=completed,failed").json() == {"jobs": []}
    gate.touch()
    for job in jobs:
        http("GET", f"/v1/jobs/{job['id']}/wait")
    assert [each["id"] for each in http("GET", "/v1/jobs?state=completed,failed&limit=1").json()["jobs"]] == [2]
    assert http("GET", f"/v1/jobs?since={time.time() + 60}").json() == {"jobs": []}
    assert http("DELETE", "/v1/jobs?before=1").json() == {"forgotten": 0}
    assert http("DELETE", "/v1/jobs").json() == {"forgotten": 2}


def test_types_are_described(http: Http) -> None:
    types = {each["type"]: each for each in http("GET", "/v1/types").json()["types"]}
    assert {"clone", "wipe", "checksum", "gated"} <= types.keys()
    assert http("GET", "/v1/types/clone").json() == types["clone"]
    is_problem(http("GET", "/v1/types/clown"), 404, "no-such-type")


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["0", "-1", "9" * 19, "9" * 4400, "1.0", "x", "%00", "1%0a", "٣", "999"])
def test_what_is_no_id_is_no_job(http: Http, job: str) -> None:
    target = job.encode().decode("latin1") if job.isascii() else "%D9%A3"
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/suspend"), ("GET", "/wait"), ("GET", "/log")):
        is_problem(http(method, f"/v1/jobs/{target}{path}"), 404, "no-such-job")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "the body is not what it is to be"),
        (b"", "the body is not what it is to be"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"job":{"type":"\xff"}}', "UTF-8"),
        (b'{"job":{"type":"checksum","volume":"/a"},"surprise":1}', "surprise"),
        (b'{"job":{"type":"checksum","volume":"/a","surprise":1}}', "surprise"),
        (b'{"job":{"type":"checksum","volume":7}}', "str"),
        (b'{"job":{"type":"checksum","volume":"a"}}', "relative"),
        (b'{"job":{"type":"checksum","volume":"/a\\u0000"}}', "volume"),
        (b'{"job":{"type":"chucksum","volume":"/a"}}', "chucksum"),
        (b'{"job":{"type":7}}', "type"),
        (b'{"job":{}}', "type"),
        (b'{"job":7}', "object"),
        (b"{}", "job"),
        (b'{"job":{"type":"checksum","volume":"/a"},"bandwidth":0}', "bandwidth"),
        (b'{"job":{"type":"checksum","volume":"/a"},"bandwidth":1e300}', "bandwidth"),
        (b'{"job":{"type":"checksum","volume":"/a"},"time_limit":"1"}', "time_limit"),
        (b'{"job":{"type":"checksum","volume":"/a"},"on_conflict":"maybe"}', "on_conflict"),
        (b'{"job":{"type":"checksum","volume":"/a"},"umask":4096}', "umask"),
        (b'{"job":{"type":"checksum","volume":"/\\ud800"}}', ""),
    ],
)
def test_a_bad_body_is_a_usage_error_and_starts_nothing(http: Http, body: bytes, words: str) -> None:
    problem = is_problem(http("POST", "/v1/jobs", body, Content_Type="application/json"), 400, "usage")
    assert words in problem["detail"]
    assert http("GET", "/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize(
    "query",
    [
        "state=flying",
        "state=",
        "limit=-1",
        "limit=x",
        "limit=1e400",
        "since=nan",
        "since=inf",
        "surprise=1",
        "limit=1&limit=2",
        "resource=a",
        "resource=/%00",
        "resource=/%ff",
    ],
)
def test_a_bad_query_is_a_usage_error(http: Http, query: str) -> None:
    is_problem(http("GET", f"/v1/jobs?{query}"), 400, "usage")


def test_http_has_its_own_problems(http: Http) -> None:
    is_problem(http("GET", "/"), 404, "not-found")
    is_problem(http("GET", "/v1/jobs/"), 404, "not-found")
    answer = http("PATCH", "/v1/jobs/1")
    is_problem(answer, 405, "no-such-method")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"}
    is_problem(http("POST", "/v1/jobs", b"{}", Content_Type="text/plain"), 415, "not-json")
    is_problem(http("POST", "/v1/jobs", b"x" * (2 << 20), Content_Type="application/json"), 413, "too-large")
    assert http("HEAD", "/v1/jobs").content == b""


def test_a_chunked_body_has_the_same_limit(http: Http) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(http.path)
        connection.settimeout(20)
        try:
            connection.sendall(head + chunk * 4)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert b"413" in receive_all(connection)[:20]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"BREW\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 500_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 20_000, b"431"),
    ],
)
def test_what_is_no_http_is_a_problem_too(http: Http, request_: bytes, status: bytes) -> None:
    head, _, body = http.raw(request_).partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "bad-request"


def test_a_request_that_never_ends_is_cut_off(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobvisor.api.peer.HEAD_TIME", 0.2)
    assert http.raw(b"") == b""
    assert http.raw(b"GET /v1/jobs HTTP/1.1\r\nHost") == b""
    kept = http.raw(b"GET /v1/current HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/jo")
    assert kept.count(b"HTTP/1.1 200") == 1


def test_connections_of_one_user_are_limited(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobvisor.api.peer.CONNECTIONS_MAX", 3)
    held = []
    try:
        for _ in range(3):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(http.path)
            connection.sendall(b"GET /v1/current HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100)
            held.append(connection)
        assert b"503" in http.raw(b"GET /v1/current HTTP/1.1\r\nHost: x\r\n\r\n")[:20]
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: b"200" in http.raw(b"GET /v1/current HTTP/1.0\r\n\r\n")[:20])


def test_streams_of_one_user_are_limited(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobvisor.api.context.STREAMS_MAX", 2)
    with http.events() as first, http.events() as second:
        assert next(first)[0] == next(second)[0] == "start"
        is_problem(http("GET", "/v1/events"), 429, "too-many-streams")
    with http.events() as third:
        assert next(third)[0] == "start"


# --- the socket --------------------------------------------------------------------------------------------------


def test_the_socket_is_the_owners_alone_from_its_first_instant(supervisor: Supervisor) -> None:
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        run = Path(supervisor.home, "run")
        while not over.is_set():
            for name in ("api.sock", "api.sock.new"):
                try:
                    seen.add(stat.S_IMODE(os.lstat(run / name).st_mode))
                except FileNotFoundError:
                    pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = os.umask(0)
    try:
        for _ in range(30):
            with supervisor.serve():
                pass
    finally:
        os.umask(before)
        over.set()
        watcher.join()
    assert seen == {0o600}


def test_a_group_may_be_let_in(supervisor: Supervisor, tmp_path: Path) -> None:
    group = os.getegid()
    with supervisor.serve(tmp_path / "new" / "api.sock", group=str(group)) as path:
        facts = os.lstat(path)
        assert (stat.S_IMODE(facts.st_mode), facts.st_gid) == (0o660, group)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
        assert Http(path)("GET", "/v1/daemon").status == 200
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_long_path_is_no_hindrance(supervisor: Supervisor, tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 200)
    directory.mkdir()
    path = directory / "api.sock"
    stale = socket.socket(socket.AF_UNIX)
    os.chdir(directory)
    stale.bind("api.sock")
    stale.close()
    with supervisor.serve(path):
        os.chdir(directory)
        assert Http("api.sock")("GET", "/v1/daemon").status == 200
    os.chdir(tmp_path)


# --- events ------------------------------------------------------------------------------------------------------


def test_events_from_any_number_have_no_gap(http: Http, gate: Path) -> None:
    with http.events() as live:
        assert next(live)[0] == "start"
        job = start(http, gate)
        heard: list[tuple[str, str | None, Any]] = []
        for event in live:
            if event[0] == "state":
                heard.append(event)
                if event[2]["job"]["state"] == "running":
                    gate.touch()
                if event[2]["job"]["success"] is not None:
                    break
    assert heard[-1][2]["job"]["id"] == job["id"]
    numbers = [int(number) for _, number, _ in heard if number]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    for since in numbers[:-1]:
        with http.events(Last_Event_ID=str(since)) as late:
            again = list(itertools.islice(late, numbers[-1] - since + 1))
        assert [event for event in again if event[0] == "state"] == [
            each for each in heard if int(each[1] or 0) > since
        ]


def test_progress_has_no_number_and_is_newest_only(http: Http, gate: Path) -> None:
    job = start(http, gate)
    http("GET", f"/v1/jobs/{job['id']}/wait?for=running")
    with http.events("?progress=10") as events:
        progress = next(event for event in events if event[0] == "progress")
    assert progress[1] is None
    (moved,) = progress[2]["jobs"]
    assert (moved["id"], moved["data_total"]) == (job["id"], 100)
    with http.events(f"?jobs={job['id']}&progress=0&since=0") as events:
        gate.touch()
        kinds = []
        for kind, _, content in events:
            kinds.append(kind)
            if kind == "state" and content["job"]["success"] is not None:
                break
    assert set(kinds) == {"start", "state"}


def test_a_client_that_never_reads_delays_nobody(http: Http, gate: Path) -> None:
    deaf = []
    for _ in range(20):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(http.path)
        connection.sendall(b"GET /v1/events?since=0&progress=10 HTTP/1.1\r\nHost: x\r\n\r\n")
        deaf.append(connection)
    try:
        job = start(http, gate)
        with http.events(f"?jobs={job['id']}&since=0") as events:
            for _ in range(100):
                http("POST", f"/v1/jobs/{job['id']}/suspend")
                http("POST", f"/v1/jobs/{job['id']}/resume")
            gate.touch()
            states = []
            for kind, _, content in events:
                if kind == "state":
                    states.append(content["job"]["state"])
                    if states[-1] == "completed":
                        break
        assert states.count("suspended") == 100
    finally:
        for connection in deaf:
            connection.close()


def test_when_the_daemon_leaves_streams_end_cleanly_and_waits_are_told(supervisor: Supervisor, gate: Path) -> None:
    with supervisor.serve() as path:
        http = Http(path)
        job = start(http, gate)
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(http("GET", f"/v1/jobs/{job['id']}/wait")))
        waiting.start()
        streaming = http.events("?since=0")
        events = streaming.__enter__()
        assert next(events)[0] == "start"
        time.sleep(0.1)
    assert [kind for kind, _, _ in events][-1] == "bye"
    streaming.__exit__(None, None, None)
    waiting.join()
    is_problem(answers[0], 503, "unreachable")
    gate.touch()


def test_requests_that_wait_for_files_are_each_users_own_affair(
    http: Http, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More starts than a user has turns, on a filesystem that does not answer, delay nothing that looks at no file."""
    release = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        release.wait()
        raise UsageError("now it answers")

    monkeypatch.setattr("jobvisor.core.build", hang)
    asking = [threading.Thread(target=lambda: http("POST", "/v1/jobs", {"job": {"type": "gated"}})) for _ in range(40)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(20):
            assert http("GET", "/v1/current").status == 200
        assert len([thread for thread in threading.enumerate() if thread.name == "jobvisor-api-call"]) <= 16
    finally:
        release.set()
        for thread in asking:
            thread.join()
