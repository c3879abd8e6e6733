"""The API against its own OpenAPI document, as schemathesis reads it; and raw nonsense for what reads HTTP."""

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

from jobvisor import Supervisor
from jobvisor.testing import processes_of
from jobvisor_workers import registry
from jobvisor_workers.jobtype import JobType
from support.http import Http, receive_all

EXAMPLES = int(os.environ.get("JOBVISOR_API_EXAMPLES", "25"))
FUZZ = int(os.environ.get("JOBVISOR_FUZZ_REQUESTS", "2000"))
BASE = "http://localhost"
#: They answer as long as one listens.
ENDLESS = r"/v1/events|/v1/jobs/\{id\}/(stdin|stdout)"


class UnixConnection(HTTPConnection):
    path = ""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


class UnixAdapter(HTTPAdapter):
    """requests over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        connection = type("ToSocket", (UnixConnection,), {"path": str(path)})
        self._pool: HTTPConnectionPool = type("Pool", (HTTPConnectionPool,), {"ConnectionCls": connection})("localhost")

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[requests.Session]:
    """One daemon for all: what one example leaves behind is the next one's world."""
    home = tmp_path_factory.mktemp("schema") / "home"
    with Supervisor(home) as supervisor, supervisor.serve() as path, requests.Session() as session:
        session.mount("http://", UnixAdapter(path))
        yield session
        supervisor.close(abort=True)
    assert not processes_of(home)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_server_error_and_no_undocumented_answer(
    session: requests.Session, tmp_path: Path, mode: GenerationMode, subtests: pytest.Subtests
) -> None:
    document = session.get(f"{BASE}/v1/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document).exclude(path_regex=ENDLESS)
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert len(operations) > 15
    for operation in operations:
        with subtests.test(operation=operation.label):
            try:
                cases = operation.as_strategy(generation_mode=mode)
                _ask(cases, session, tmp_path)
            except Unsatisfiable:  # it takes nothing that could be wrong
                assert mode is GenerationMode.NEGATIVE


def _ask(cases: Any, session: requests.Session, directory: Path) -> None:
    @given(cases)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        _keep_below(case, directory)
        _name_once(case)
        # A valid path may lead to a directory, which can be no resource; a word may be no job type.
        excluded = [positive_data_acceptance] if case.path in ("/v1/mask", "/v1/holds") else []
        case.call_and_validate(session=session, base_url=BASE, excluded_checks=excluded)

    ask()


def _keep_below(case: Any, directory: Path) -> None:
    """Whatever is invented, no file outside of the test's directory is touched."""
    job = case.body.get("job") if isinstance(case.body, dict) else None
    if isinstance(job, dict):
        for name, value in job.items():
            if isinstance(value, str) and value.startswith("/"):
                job[name] = f"{directory}{value}"


def _name_once(case: Any) -> None:
    """A schema cannot say that a job is not to be named for two different ends."""
    after = case.body.get("after") if isinstance(case.body, dict) else None
    if isinstance(after, list) and all(isinstance(each, str) for each in after):
        case.body["after"] = list({each.rpartition(":")[2]: each for each in after}.values())


def test_the_document_names_every_job_type_and_endpoint(session: requests.Session) -> None:
    document = session.get(f"{BASE}/v1/openapi.json").json()
    named = document["components"]["schemas"]["Start"]["properties"]["job"]
    types = [each["type"] for each in session.get(f"{BASE}/v1/types").json()["types"]]
    assert sorted(named["discriminator"]["mapping"]) == sorted(types)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert "/v1/jobs/{id}/suspend" in document["paths"]


def test_packages_may_call_their_classes_alike(session: requests.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("test-first", "test-second"):
        job_type = type("Start", (JobType,), {"__annotations__": {"word": str}, "__module__": name}, tag=name)
        monkeypatch.setitem(registry._added, name, job_type)
    document = session.get(f"{BASE}/v1/openapi.json").json()
    mapping = document["components"]["schemas"]["Start"]["properties"]["job"]["discriminator"]["mapping"]
    assert len({mapping["test-first"], mapping["test-second"], mapping["clone"]}) == 3


def test_raw_nonsense_leaves_the_daemon_serving(supervisor: Supervisor, capfd: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("JOBVISOR_FUZZ_SEED", random.randrange(1 << 30)))
    print(f"JOBVISOR_FUZZ_SEED={seed}")
    chance = random.Random(seed)
    with supervisor.serve() as path:
        http = Http(path)
        http("GET", "/v1/daemon")
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(FUZZ):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(30)
                connection.connect(os.fspath(path))
                try:
                    connection.sendall(_mutated(chance))
                    connection.shutdown(socket.SHUT_WR)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                receive_all(connection)
        assert http("GET", "/v1/daemon").json()["pid"] == os.getpid()
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
    assert "Traceback" not in capfd.readouterr().err


JSON = b"Host: x\r\nContent-Type: application/json\r\n"
SEEDS = [
    b"GET /v1/jobs?state=running HTTP/1.1\r\nHost: x\r\n\r\n",
    b'POST /v1/jobs HTTP/1.1\r\n%bContent-Length: 29\r\n\r\n{"job":{"type":"x","a":"/a"}}' % JSON,
    b"POST /v1/jobs HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % JSON,
    b"POST /v1/jobs/1/abort?wait=false HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: y\r\n\r\n",
    b"GET /v1/events?since=1&progress=2 HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 4\r\n\r\n",
    b'PUT /v1/current HTTP/1.0\r\n%bContent-Length: 8\r\nExpect: 100-continue\r\n\r\n{"id":1}' % JSON,
]
PIECES = [
    b"\r\n",
    b"\0",
    b"\xff",
    b":",
    b" ",
    b"%00",
    b"%",
    b"9" * 30,
    b"-1",
    b"chunked",
    b"HTTP/1.1",
    b"{",
    b"[[",
    b"x" * 9000,
]


def _mutated(chance: random.Random) -> bytes:
    content = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(0, 6)):
        at = chance.randrange(len(content) + 1)
        match chance.randrange(5):
            case 0:
                content[at:at] = chance.choice(PIECES)
            case 1:
                del content[at : at + chance.randint(1, 20)]
            case 2:
                content[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
            case 3:
                content[at : at + 1] = bytes([chance.randrange(256)])
            case 4:
                content += chance.choice(SEEDS)
    return bytes(content)
