"""A client and real daemons: started by it, shared by threads, killed under it."""

import asyncio
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor import Client, Event, EventStream, JobInfo, Unreachable, aio, autostart
from jobvisor.places import socket_of
from jobvisor.testing import nothing_left, wait_until

ROUNDS = int(os.environ.get("JOBVISOR_KILL_ROUNDS", "10"))

pytestmark = pytest.mark.timeout(120 + 3 * ROUNDS)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Its daemon is ended, and nothing is left of it."""
    home = tmp_path / "home"
    with nothing_left(home, tmp_path):
        yield home
        with Client(home=home) as client:
            client.close(abort=True)
        autostart.stop(socket_of(str(home)))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(1 << 16))
    return path


def kill_daemon(client: Client) -> None:
    daemon = os.pidfd_open(client.daemon().pid)
    try:
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
    except ProcessLookupError:  # another thread did it
        pass
    finally:
        os.close(daemon)


def test_the_first_call_starts_the_daemon_of_a_home(home: Path) -> None:
    with Client(home=home) as client:
        assert client.jobs() == []
        about = client.daemon()
        assert (about.home, about.socket, client.home) == (str(home), client.socket, str(home))
        with Client(home=home) as other, Client(client.socket) as third:
            assert other.daemon().pid == third.daemon().pid == about.pid


def test_a_home_and_a_socket_can_come_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBVISOR_HOME", str(home))
    with Client() as client:
        assert client.home == str(home)
    monkeypatch.setenv("JOBVISOR_SOCKET", str(home / "nowhere"))
    with Client() as client, pytest.raises(Unreachable, match="nowhere: there is no such socket"):
        client.jobs()


def test_threads_share_a_client(home: Path, image: Path) -> None:
    infos: list[JobInfo] = []

    def work(client: Client) -> None:
        jobs = [client.start("checksum", volume=str(image)) for _ in range(5)]
        infos.extend(job.wait(30, check=True) for job in jobs)

    with Client(home=home) as client:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(info.id for info in infos) == list(range(1, 41))


def test_coroutines_share_a_client(home: Path, image: Path) -> None:
    async def work(client: aio.Client) -> JobInfo:
        return await (await client.start("checksum", volume=str(image))).wait(30, check=True)

    async def main() -> None:
        async with aio.Client(home=home) as client:
            assert client.home == str(home)
            infos = await asyncio.gather(*(work(client) for _ in range(40)))
        assert sorted(info.id for info in infos) == list(range(1, 41))

    asyncio.run(main())


def test_a_cancelled_call_leaves_the_job_and_no_connection(home: Path, image: Path) -> None:
    async def main() -> None:
        async with aio.Client(home=home) as client:
            job = await client.start("wipe", volume=str(image), bandwidth=1024)
            waiting = asyncio.create_task(job.wait())
            await asyncio.sleep(0.05)
            waiting.cancel()
            assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await job.wait()
            assert client._exchange._open == set()
            assert not (await job.info()).final

    asyncio.run(main())


def test_a_wait_lives_through_a_restart_of_the_daemon(home: Path, image: Path) -> None:
    with Client(home=home) as client:
        job = client.start("wipe", volume=str(image), bandwidth=1 << 15)
        found: list[JobInfo] = []
        waiting = threading.Thread(target=lambda: found.append(job.wait(60)))
        waiting.start()
        job.wait(30, until="running")
        for end in (signal.SIGKILL, signal.SIGTERM):
            before = client.daemon().pid
            os.kill(before, end)
            wait_until(lambda: not os.path.exists(f"/proc/{before}"))  # noqa: B023
        waiting.join()
        assert (found[0].ok, found[0].adopted) == (True, True)


def test_kill_loop_of_the_daemon(home: Path, image: Path) -> None:
    """Whatever is lost on the way: a start is one job, a job has one end, and the stream tells each once."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    infos: list[JobInfo] = []
    done = threading.Event()

    def work(client: Client) -> None:
        while not done.is_set():
            infos.append(client.start("checksum", volume=str(image)).wait(60))

    with Client(home=home) as client, client.events() as events:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(ROUNDS):
            done.wait(rng.uniform(0.05, 0.4))
            kill_daemon(client)
        done.set()
        for thread in threads:
            thread.join()
        ids = [info.id for info in infos]
        assert len(set(ids)) == len(ids)
        listed = {info.id: info for info in client.jobs()}
        assert sorted(listed) == sorted(ids), "a start that was asked again was two jobs, or none"
        assert {info.state for info in listed.values()} == {"completed"}
        seen = _until_ended(events, set(ids))
        numbers = [event.number or 0 for event in seen]
        assert numbers == sorted(set(numbers))
        with client.events(since=numbers[0] - 1) as again:
            kept = [event.number for event in _until_ended(again, set(ids))]
        assert kept == numbers
        ends = [event.job.id for event in seen if event.job.final]
        assert sorted(ends) == sorted(ids)


def _until_ended(events: EventStream, ids: set[int]) -> list[Event]:
    seen = []
    left = set(ids)
    while left:
        event = events.next(30)
        assert event is not None, f"no end was told of {left}"
        if event.event == "state":
            seen.append(event)
            if event.job.final:
                left.discard(event.job.id)
    return seen
