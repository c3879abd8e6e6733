"""What is the client's own affair: daemons that are away, that die in mid-request, or that are none."""

import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobvisor import (
    Busy,
    Client,
    JobvisorError,
    JournalError,
    NoSuchJob,
    NotPermitted,
    Unreachable,
    UsageError,
    WaitTimeout,
    WrongState,
    aio,
)
from jobvisor.remote import exchange, sse
from jobvisor.testing import wait_until
from support.awaited import awaited
from support.fake_daemon import (
    BYE,
    Unheard,
    answer,
    begin,
    events,
    fake_daemon,
    info,
    problem,
    progress,
    state,
)

Asking = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture(params=["threads", "asyncio"])
def client_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Asking:
    """A client of either kind, not yet used."""

    @contextmanager
    def make(path: Path) -> Iterator[Any]:
        if request.param == "threads":
            with Client(path) as client:
                yield client
            return
        brother = aio.Client(path)
        monkeypatch.setattr(brother, "open", _opened(brother))
        with awaited(brother) as dressed:
            yield dressed

    return make


def _opened(client: aio.Client) -> Any:
    """Opening asks a question, which these tests do not count."""

    async def nothing() -> aio.Client:
        return client

    return nothing


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "AWAY_MAX", 0.3)
    monkeypatch.setattr(exchange, "SLACK", 0.1)


def test_a_socket_that_is_not_there(client_of: Asking, path: Path) -> None:
    with client_of(path) as client, pytest.raises(Unreachable, match=f"{path}.*there is no such socket") as caught:
        client.jobs()
    assert caught.value.exit_code == 9


def test_a_socket_that_its_daemon_left_behind(client_of: Asking, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with client_of(path) as client, pytest.raises(Unreachable, match=r"the one that made the socket is gone"):
        client.jobs()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_socket_that_is_not_ones_own(path: Path) -> None:
    program = f"""
import os
from jobvisor import Client, NotPermitted
client = Client({str(path)!r})
try:
    client.jobs
    os.setuid(65534)
    client.jobs()
except NotPermitted as error:
    print(error)
"""
    path.parent.chmod(0o755)
    with fake_daemon(path, answer({"jobs": []})):
        path.chmod(0o600)
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert f"not permitted to connect to {path}" in said or "permission denied" in said


def test_a_path_longer_than_an_address(client_of: Asking, tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 40)
    directory.mkdir()
    with fake_daemon(directory / "api.sock", answer({"jobs": []})), client_of(directory / "api.sock") as client:
        assert client.jobs() == []


HALVES = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"HTTP/1.1 201 Crea", id="half a status line"),
    pytest.param(answer(info())[:60], id="half a head"),
    pytest.param(answer(info())[:-5], id="half a body"),
    pytest.param(problem(503, "unreachable", "the daemon leaves"), id="a farewell"),
    pytest.param(
        lambda connection: connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"), id="reset"
    ),
]


@pytest.mark.parametrize("half", HALVES)
def test_a_start_whose_answer_was_lost_is_asked_again_as_the_same_start(
    client_of: Asking, path: Path, half: Any
) -> None:
    with fake_daemon(path, half, half, answer(info(), 201)) as daemon, client_of(path) as client:
        assert client.start("checksum", volume="x").id == 7
    keys = {asked.headers["idempotency-key"] for asked in daemon.asked}
    assert len(keys) == 1
    assert len(daemon.asked) == 3
    assert len({asked.body for asked in daemon.asked}) == 1


def test_two_starts_are_not_the_same(client_of: Asking, path: Path) -> None:
    with fake_daemon(path, answer(info(), 201), answer(info(), 201)) as daemon, client_of(path) as client:
        client.start("checksum", volume="x")
        client.start("checksum", volume="x")
    assert daemon.asked[0].headers["idempotency-key"] != daemon.asked[1].headers["idempotency-key"]


def refused(verb: str, now: str) -> bytes:
    return problem(409, "wrong-state", f"cannot {verb}", id=7, state=now, verb=verb, allowed=["forget"])


@pytest.mark.parametrize(
    ("verb", "state"),
    [("suspend", "suspended"), ("resume", "running"), ("abort", "aborted"), ("complete", "completed")],
)
def test_a_verb_that_was_heard_and_whose_answer_was_lost_is_done(
    client_of: Asking, path: Path, verb: str, state: str
) -> None:
    answers = [answer(info()), b"", refused(verb, state), answer(info(state=state))]
    with fake_daemon(path, *answers) as daemon, client_of(path) as client:
        assert getattr(client.job(7), verb)().state == state
    assert [asked.path for asked in daemon.asked[1:]] == [f"/v1/jobs/7/{verb}"] * 2 + ["/v1/jobs/7"]


@pytest.mark.parametrize(("verb", "state"), [("suspend", "failed"), ("abort", "completed"), ("resume", "aborted")])
def test_a_repeated_verb_that_was_not_done_is_refused(client_of: Asking, path: Path, verb: str, state: str) -> None:
    answers = [answer(info()), b"", refused(verb, state)]
    with fake_daemon(path, *answers), client_of(path) as client, pytest.raises(WrongState) as caught:
        getattr(client.job(7), verb)()
    assert (caught.value.id, caught.value.state, caught.value.verb, caught.value.allowed) == (
        7,
        state,
        verb,
        ["forget"],
    )


def test_a_verb_that_was_asked_once_is_refused(client_of: Asking, path: Path) -> None:
    with fake_daemon(path, answer(info()), refused("suspend", "suspended")), client_of(path) as client:
        job = client.job(7)
        with pytest.raises(WrongState):
            job.suspend()


def test_what_was_forgotten_already_is_forgotten(client_of: Asking, path: Path) -> None:
    gone = problem(404, "no-such-job", "there is no job 7", id=7)
    with fake_daemon(path, answer(info()), b"", gone, answer(info()), gone), client_of(path) as client:
        client.job(7).forget()
        job = client.job(7)
        with pytest.raises(NoSuchJob):
            job.forget()


def test_a_daemon_that_does_not_come_back(client_of: Asking, path: Path, impatient: None) -> None:
    with fake_daemon(path, answer(info()), b""), client_of(path) as client:
        job = client.job(7)
        with pytest.raises(Unreachable, match=r"did not come back within 0\.3 s"):
            job.suspend()


def test_a_daemon_that_dies_of_each_request(client_of: Asking, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "LOST_MAX", 3)
    with fake_daemon(path, b"", b"", b"", answer({"jobs": []})) as daemon, client_of(path) as client:
        with pytest.raises(Unreachable, match="was lost 3 times in the midst of this request: the daemon hung up"):
            client.jobs()
        assert len(daemon.asked) == 3


def test_a_daemon_that_comes_back_later(client_of: Asking, path: Path) -> None:
    def leave(connection: socket.socket) -> None:
        os.unlink(path)

    left: list[Any] = []
    with fake_daemon(path, answer(info()), leave) as first, client_of(path) as client:
        job = client.job(7)
        asking = threading.Thread(target=lambda: left.append(job.suspend()))
        asking.start()
        wait_until(lambda: not path.exists())
        first._thread.join()
        with fake_daemon(path, answer(info(state="suspended"))):
            asking.join(10)
    assert [each.state for each in left] == ["suspended"]


GARBAGE = [
    pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n\r\n", id="another protocol"),
    pytest.param(answer({"jobs": []}, version=""), id="another server"),
    pytest.param(answer(b"<html>"), id="no json"),
    pytest.param(answer(b"\xff\xfe"), id="no text"),
    pytest.param(answer(b"[" * 100_000), id="no end of brackets"),
    pytest.param(answer({"works": []}), id="other json"),
    pytest.param(answer({"jobs": [{"id": "seven"}]}), id="other fields"),
    pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, id="no end of headers"),
    pytest.param(answer(b"nothing here", 404, version=""), id="another server's error"),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_daemon_is_not_believed(client_of: Asking, path: Path, garbage: bytes) -> None:
    with fake_daemon(path, garbage), client_of(path) as client, pytest.raises(Unreachable) as caught:
        client.jobs()
    assert f"what answers on {path} is no jobvisor daemon, or a very different one" in str(caught.value)


PROBLEMS = [
    (400, UsageError("no such type")),
    (403, NotPermitted("somebody else's")),
    (404, NoSuchJob(7)),
    (409, Busy("/a/b", None)),
    (409, WrongState(7, "running", "resume", ["abort"])),
    (507, JournalError("/home/journal.sqlite", "disk full")),
]


@pytest.mark.parametrize(("status", "error"), PROBLEMS)
def test_a_problem_is_the_error_that_it_was(client_of: Asking, path: Path, status: int, error: JobvisorError) -> None:
    told = problem(status, error.code, str(error), **vars(error))
    with fake_daemon(path, told), client_of(path) as client, pytest.raises(type(error)) as caught:
        client.jobs()
    assert type(caught.value) is type(error)
    assert (str(caught.value), vars(caught.value)) == (str(error), vars(error))


def test_a_problem_that_is_not_known_here_is_told_as_it_is(client_of: Asking, path: Path) -> None:
    told = problem(418, "teapot", "short and stout")
    with fake_daemon(path, told), client_of(path) as client, pytest.raises(JobvisorError, match="short and stout"):
        client.jobs()


def test_who_answered_is_known(client_of: Asking, path: Path) -> None:
    with fake_daemon(path, answer({"jobs": []}, version="9.9")), client_of(path) as client:
        assert client.version == ""
        client.jobs()
        assert client.version == "9.9"


def test_fields_of_a_newer_daemon_are_ignored(client_of: Asking, path: Path) -> None:
    with fake_daemon(path, answer(info() | {"moon_phase": "full"})), client_of(path) as client:
        assert client.job(7).id == 7


def test_a_wait_is_over_in_time_though_the_daemon_is_deaf(client_of: Asking, path: Path, impatient: None) -> None:
    done = threading.Event()
    with fake_daemon(path, answer(info()), lambda _: done.wait(30)) as daemon, client_of(path) as client:
        job = client.job(7)
        with pytest.raises(WaitTimeout):
            job.wait(0.2)
        done.set()
    assert daemon.asked[1].path == "/v1/jobs/7/wait?timeout=0.200"


def test_a_wait_goes_on_where_an_answer_was_early_or_lost(client_of: Asking, path: Path) -> None:
    answers = [info(), info(), None, info(state="completed")]
    with fake_daemon(path, *(b"" if each is None else answer(each) for each in answers)), client_of(path) as client:
        assert client.job(7).wait(check=True).state == "completed"


def test_a_type_that_only_the_daemon_knows(
    client_of: Asking, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of its arguments are paths, and so to be made absolute, is asked first."""
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o027)
    arguments = [{"name": "disk", "resource": {"kind": "volume", "access": "read"}}, {"name": "word", "resource": None}]
    answers = [answer({"arguments": arguments}), answer(info(), 201)]
    with fake_daemon(path, *answers) as daemon, client_of(path) as client:
        client.start("test-far-away", disk=Path("a/b"), word="a/b", time_limit=2)
    os.umask(before)
    assert daemon.asked[0].path == "/v1/types/test-far-away"
    sent = daemon.asked[1].json
    assert sent["job"] == {"type": "test-far-away", "disk": f"{tmp_path}/a/b", "word": "a/b"}
    assert (sent["time_limit"], sent["on_conflict"]) == (2, "queue")
    assert sent["umask"] == 0o027


def test_a_type_that_nobody_knows(client_of: Asking, path: Path) -> None:
    answers = [problem(404, "not-found", "no such type"), problem(400, "usage", "no job type is called 'x'")]
    with fake_daemon(path, *answers), client_of(path) as client, pytest.raises(UsageError, match="is called"):
        client.start("test-nowhere")


def test_what_cannot_be_said_is_not_sent(client_of: Asking, path: Path) -> None:
    with client_of(path) as client:
        for wrong in ({"volume": "bad\udcff"}, {"volume": object()}):
            with pytest.raises(UsageError, match="cannot start checksum"):
                client.start("checksum", **wrong)
        with pytest.raises(NoSuchJob):
            client.job(1 << 70)
        with pytest.raises(UsageError):
            client.job("7")
        with pytest.raises(UsageError, match="states are"):
            client.jobs(state="sleeping")


def test_a_closed_client_says_so_also_to_those_who_wait(client_of: Asking, path: Path) -> None:
    done = threading.Event()
    with fake_daemon(path, answer(info()), lambda _: done.wait(30)) as daemon, client_of(path) as client:
        job = client.job(7)
        errors: list[JobvisorError] = []

        def wait() -> None:
            try:
                job.wait()
            except Unreachable as error:
                errors.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: len(daemon.asked) == 2)
        client.close()
        waiting.join(10)
        done.set()
        with pytest.raises(Unreachable, match="closed"):
            job.info()
        assert client.closed
    assert len(errors) == 1


# --- pipes ----------------------------------------------------------------------------------------------------------


def test_a_file_is_sent_in_pieces(client_of: Asking, path: Path) -> None:
    content = os.urandom(1_000_000)
    with fake_daemon(path, answer(info()), answer(b"", 204)) as daemon, client_of(path) as client:
        assert client.job(7).send(io.BytesIO(content)) == len(content)
    assert (daemon.asked[1].method, daemon.asked[1].path) == ("PUT", "/v1/jobs/7/stdin")
    assert daemon.asked[1].body == content


def test_what_is_refused_need_not_be_sent(client_of: Asking, path: Path) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.sendall(problem(400, "usage", "it reads nothing"))

    with fake_daemon(path, answer(info()), Unheard(refuse)), client_of(path) as client:
        job = client.job(7)
        with open("/dev/zero", "rb") as endless, pytest.raises(UsageError, match="it reads nothing"):
            job.send(endless)


def test_a_file_that_cannot_be_read_is_not_the_daemons_fault(client_of: Asking, path: Path, tmp_path: Path) -> None:
    with fake_daemon(path, answer(info()), Unheard(lambda connection: connection.recv(1))), client_of(path) as client:
        job = client.job(7)
        with open("/proc/self/mem", "rb") as unreadable, pytest.raises(OSError, match="Input/output"):
            job.send(unreadable)


def test_output_is_received_once(client_of: Asking, path: Path, tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    after = [answer(info()), answer(content)[:-1], answer(info(state="aborted"))]
    with fake_daemon(path, answer(info()), answer(content), answer(content)[:-1], *after), client_of(path) as client:
        job = client.job(7)
        with open(tmp_path / "out", "wb") as file:
            assert job.receive(file) == len(content)
        assert (tmp_path / "out").read_bytes() == content
        with open(tmp_path / "out", "wb") as file, pytest.raises(Unreachable, match="before all was received"):
            job.receive(file)
        with open(tmp_path / "out", "wb") as file:
            assert job.receive(file) == len(content) - 1


# --- events ------------------------------------------------------------------------------------------------------


def numbers(stream: Any, count: int) -> list[int | None]:
    found: list[int | None] = []
    while len(found) < count:
        event = stream.next(10)
        assert event is not None
        if event.event == "state":
            found.append(event.number)
    return found


def test_a_stream_that_was_cut_goes_on_without_gap_and_without_duplicate(client_of: Asking, path: Path) -> None:
    streams = [
        events(begin(4)),
        events(begin(4), state(5, info()), state(6, info(8)))[:-20],
        b"",
        events(begin(5), state(5, info()), state(6, info(8)), BYE),
        events(begin(6), b":\n\n", state(9, info(state="completed"))),
    ]
    with fake_daemon(path, *streams) as daemon, client_of(path) as client, client.events() as stream:
        assert numbers(stream, 3) == [5, 6, 9]
        wait_until(lambda: len(daemon.asked) == 5)
    assert [asked.path for asked in daemon.asked] == [
        "/v1/events?progress=2",
        *(f"/v1/events?since={since}&progress=2" for since in (4, 5, 5, 6)),
    ]


def test_a_stream_whose_daemon_does_not_come_back(client_of: Asking, path: Path, impatient: None) -> None:
    with fake_daemon(path, events(begin(4), state(5, info()))), client_of(path) as client, client.events() as stream:
        assert numbers(stream, 1) == [5]
        with pytest.raises(Unreachable, match="did not come back"):
            next(iter(stream))
        assert stream.closed


def test_a_stream_of_nobody(client_of: Asking, path: Path) -> None:
    with client_of(path) as client, pytest.raises(Unreachable, match="no such socket"), client.events():
        pass


def test_a_stream_that_talks_nonsense(client_of: Asking, path: Path) -> None:
    nonsense = events(begin(4), b"event: state\nid: 5\ndata: {\n\n")
    with fake_daemon(path, nonsense), client_of(path) as client, pytest.raises(Unreachable, match="not understood"):
        client.events().next(10)


def test_progress_is_told_as_a_whole_job(client_of: Asking, path: Path) -> None:
    held = threading.Event()

    def feed(connection: socket.socket) -> None:
        connection.sendall(events(begin(4), progress({"id": 7, "data_processed": 70})))
        held.wait(30)

    listed = answer({"jobs": [info(7, owner="ann"), info(8, owner="ann")]})
    with fake_daemon(path, feed, listed), client_of(path) as client, client.events() as stream:
        event = stream.next(10)
        held.set()
        assert event is not None
        assert (event.event, event.number, event.time) == ("progress", None, 2.0)
        assert (event.job.id, event.job.owner, event.job.data_processed) == (7, "ann", 70)


def test_a_stream_ends_with_its_client(path: Path) -> None:
    held = threading.Event()

    def feed(connection: socket.socket) -> None:
        connection.sendall(events(begin(4)))
        held.wait(30)

    with fake_daemon(path, feed), Client(path) as client:
        stream = client.events()
        client.close()
        assert list(stream) == []
        assert stream.closed
        held.set()


def test_a_reader_that_is_far_behind_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not read stays with the daemon, not in its memory."""
    count = 20_000
    sent = []

    def feed(connection: socket.socket) -> None:
        connection.sendall(events(begin(0)))
        for number in range(1, count + 1):
            text = state(number, info())
            connection.sendall(b"%x\r\n%b\r\n" % (len(text), text))
            sent.append(number)

    with fake_daemon(path, feed), Client(path) as client, client.events() as stream:
        while True:
            before = len(sent)
            time.sleep(0.2)
            if len(sent) == before:
                break
        assert len(sent) < count
        assert len(stream._pending) < 10_000
        assert numbers(stream, count) == list(range(1, count + 1))


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_messages_come_in_pieces_of_any_size(size: int) -> None:
    text = b"id: 4\nevent: start\ndata: {}\n\n:\n\nevent: state\r\nid:5\r\ndata: a\r\ndata: b\r\n\r\ndata\n\n"
    reader = sse.Reader()
    found = [each for at in range(0, len(text), size) for each in reader.feed(text[at : at + size])]
    assert found[:2] == [sse.Message("start", 4, b"{}"), sse.Message("state", 5, b"a\nb")]


# --- its weight ----------------------------------------------------------------------------------------------------

HEAVY = {
    "http.client",
    "email",
    "asyncio",
    "logging",
    "subprocess",
    "importlib.metadata",
    "pathlib",
    "ctypes",
    "sqlite3",
    "psutil",
    "concurrent.futures",
    "click",
    "rich",
    "uvicorn",
    "starlette",
    "urllib.parse",
    "jobvisor.core",
    "jobvisor_workers.jobtype",
}


def test_a_command_that_only_asks_loads_little(path: Path) -> None:
    program = f"""
import sys
from jobvisor import Client
Client({str(path)!r}).jobs()
print(*sys.modules)
"""
    with fake_daemon(path, answer({"jobs": [info()]})):
        loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    assert {*loaded.split()} & HEAVY - {*bare.stdout.split()} == set()
