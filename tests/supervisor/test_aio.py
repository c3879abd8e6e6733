import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import jobvisor
from jobvisor import aio
from jobvisor.events import LocalStream
from jobvisor.testing import nothing_left, processes_of, wait_until
from jobvisor_workers import JobError, JobType, Worker


class Nap(JobType, tag="nap"):
    """Sleep until a file is there; `last` is waited for before the end, however it comes."""

    until: str
    last: str = ""
    fail: bool = False

    def run(self, worker: Worker) -> dict[str, Any]:
        worker.phase("nap", total=1000)
        try:
            while not Path(self.until).exists():
                time.sleep(0.005)
                worker.advance(1)
        finally:
            while self.last and not Path(self.last).exists():
                time.sleep(0.005)
        if self.fail:
            raise JobError("bad dream")
        return {"slept": True}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Where nothing is left, whatever the test does there."""
    with nothing_left(tmp_path / "home", tmp_path):
        yield tmp_path / "home"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def supervise(home: Path) -> aio.Supervisor:
    return aio.Supervisor(home, types=[__name__], grace=5)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def slow_types(tmp_path: Path, gate: Path) -> tuple[Path, Path]:
    """A module whose import takes until there is a gate, and the file that it makes first."""
    ready, module = tmp_path / "ready", tmp_path / "slow_types.py"
    module.write_text(
        f"""
import os, time
open({str(ready)!r}, "w").close()
while not os.path.exists({str(gate)!r}):
    time.sleep(0.005)
"""
    )
    return module, ready


def waiters(supervisor: aio.Supervisor, job: aio.Job) -> int:
    core = supervisor._core
    return core._submit(lambda: len(core._engine.records[job.id].waiters)).result()


#: What is no coroutine in the asyncio classes either: it does not wait for anything.
PLAIN = {"EventStream.close", "Supervisor.events", "Supervisor.serve", "Client.events"}
#: What drives a stream without waiting for it.
FOR_THREADS = {"poll", "is_behind", "catch_up"}
CLASSES = ("Supervisor", "Client", "Job", "EventStream")


@pytest.mark.parametrize("name", CLASSES)
def test_the_two_faces_have_the_same_names_signatures_and_docs(name: str) -> None:
    blocking, face = getattr(jobvisor, name), getattr(aio, name)
    public = {each for each in dir(blocking) if not each.startswith("_")} - FOR_THREADS
    assert public <= {*dir(face)}
    for method in public:
        theirs, ours = getattr(blocking, method), getattr(face, method)
        assert inspect.getdoc(theirs), method
        assert inspect.getdoc(ours), method
        if callable(theirs):
            parameters = inspect.signature(theirs).parameters
            assert {key: (value.kind, value.default) for key, value in parameters.items()} == {
                key: (value.kind, value.default) for key, value in inspect.signature(ours).parameters.items()
            }
            assert inspect.iscoroutinefunction(ours) == (f"{name}.{method}" not in PLAIN)


def test_a_client_can_do_what_a_supervisor_can() -> None:
    for package in (jobvisor, aio):
        public = {each for each in dir(package.Supervisor) if not each.startswith("_")}
        assert public - {"serve"} <= {*dir(package.Client)}


def test_all_other_names_are_the_same() -> None:
    assert set(aio.__all__) == set(jobvisor.__all__)
    for name in {*aio.__all__} - {*CLASSES}:
        assert getattr(aio, name) is getattr(jobvisor, name)


def test_a_job_from_start_to_forget(home: Path, gate: Path) -> None:
    async def main() -> None:
        async with supervise(home) as supervisor:
            job = await supervisor.start(Nap(str(gate)))
            assert (job.id, await supervisor.current(), await supervisor.job(1)) == (1, job, job)
            info = await job.wait(until="running")
            assert await supervisor.pids() == {1: info.pid}
            assert (await job.suspend()).state == "suspended"
            assert repr(job) == "<Job 1 nap suspended>"
            assert [each.id for each in await supervisor.jobs(state="suspended", type="nap")] == [1]
            assert (await job.resume()).state == "running"
            gate.touch()
            assert (await job.wait(check=True)).result == {"slept": True}
            with pytest.raises(aio.WrongState):
                await job.suspend()
            failed = await supervisor.start("nap", until=str(gate), fail=True)
            with pytest.raises(aio.JobFailed, match="bad dream"):
                await failed.wait(check=True)
            await supervisor.set_current(1)
            assert await supervisor.current() == job
            with pytest.raises(aio.NoSuchJob):
                await supervisor.set_current(99)
            assert (await supervisor.mask(str(gate))).held_by == []
            await job.forget()
            with pytest.raises(aio.NoSuchJob):
                await job.info()
            assert await supervisor.forget() == 1
            with pytest.raises(aio.UsageError):
                await supervisor.start("dance")

    run(main())


def test_retry_is_refused_for_a_type_that_is_not_to_be_repeated(home: Path, gate: Path) -> None:
    async def main() -> None:
        async with supervise(home) as supervisor:
            job = await supervisor.start(Nap(str(gate)))
            assert (await job.abort(force=True)).state == "aborted"
            with pytest.raises(aio.UsageError, match="cannot retry job 1"):
                await job.retry()

    run(main())


def test_a_cancelled_wait_is_forgotten_and_the_job_goes_on(home: Path, gate: Path) -> None:
    async def main() -> None:
        async with supervise(home) as supervisor:
            job = await supervisor.start(Nap(str(gate)))
            await job.wait(until="running")
            waiting = [asyncio.create_task(job.wait()) for _ in range(10)]
            while waiters(supervisor, job) < 10:
                await asyncio.sleep(0.001)
            for each in waiting[1:]:
                each.cancel()
            assert [type(each) for each in await asyncio.gather(*waiting[1:], return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 9
            assert waiters(supervisor, job) == 1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await job.wait()
            with pytest.raises(aio.WaitTimeout) as late:
                await job.wait(0.01)
            assert (late.value.id, late.value.timeout) == (1, 0.01)
            assert waiters(supervisor, job) == 1
            assert (await job.info()).state == "running"
            gate.touch()
            assert (await waiting[0]).ok

    run(main())


def test_a_cancelled_verb_and_a_cancelled_set_current_disturb_nobody(
    home: Path, gate: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with supervise(home) as supervisor:
            job = await supervisor.start(Nap(str(gate)))
            await job.wait(until="running")
            for verb in (job.suspend(), supervisor.set_current(1), job.abort(), job.info()):
                asked = asyncio.create_task(verb)
                await asyncio.sleep(0)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            assert (await job.wait()).state == "aborted"

    run(main())
    assert capfd.readouterr().err == ""


def test_events_as_they_come(home: Path, gate: Path) -> None:
    async def main() -> None:
        async with supervise(home) as supervisor, supervisor.events() as everything:
            other = await supervisor.start(Nap(str(gate)))
            job = await supervisor.start(Nap(str(gate)))
            async with supervisor.events(job=job.id, since=0) as stream:
                seen = []
                async for event in stream:
                    seen.append(event)
                    if event.state == "running" and event.event == "progress":
                        gate.touch()
                    if event.job.final:
                        break
            await other.wait()
            assert {event.job.id for event in seen} == {job.id}
            states = [event.state for event in seen if event.event == "state"]
            assert (states[0], states[-1]) == ("queued", "completed")
            numbers = [event.number for event in seen if event.number]
            assert numbers == sorted(set(numbers))
            assert seen[-1].event == "state"
            assert stream.closed
            assert await stream.next() is None
            first = await everything.next()
            assert first is not None
            assert (first.job.id, first.state) == (other.id, "queued")
            while (more := await everything.next(0.01)) is not None:
                assert more.job.id in (1, 2)

    run(main())


def test_events_since_a_number_of_an_earlier_supervisor(home: Path, gate: Path) -> None:
    async def main() -> None:
        gate.touch()
        async with supervise(home) as supervisor:
            await (await supervisor.start(Nap(str(gate)))).wait()
        async with supervise(home) as supervisor, supervisor.events(since=0) as stream:
            read = 0
            local = stream._stream
            assert isinstance(local, LocalStream)
            older = local._older

            def counted(after: int, before: int) -> list[aio.Event]:
                nonlocal read
                read += 1
                return older(after, before)

            local._older = counted
            states = []
            while (event := await stream.next(0.05)) is not None:
                states.append((event.job.id, event.state))
            assert (states[0], states[-1]) == ((1, "queued"), (1, "completed"))
            assert read == 1
            job = await supervisor.start(Nap(str(gate)))
            fresh = await stream.next(10)
            assert fresh is not None
            assert (fresh.job.id, fresh.state) == (job.id, "queued")

    run(main())


def test_a_stream_ends_with_its_supervisor_and_by_close(home: Path, gate: Path) -> None:
    async def main() -> None:
        async with supervise(home) as supervisor:
            closed, left_open = supervisor.events(), supervisor.events()
            reading = [asyncio.create_task(stream.next()) for stream in (closed, left_open)]
            await asyncio.sleep(0)
            threading.Thread(target=closed.close).start()
            assert await reading[0] is None
            assert not reading[1].done()
        assert await reading[1] is None
        with pytest.raises(aio.Unreachable):
            supervisor.events()

    run(main())


def test_a_cancelled_next_loses_no_event(home: Path, gate: Path) -> None:
    async def main() -> None:
        gate.touch()
        async with supervise(home) as supervisor, supervisor.events() as stream:
            waiting = asyncio.create_task(stream.next())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
            job = await supervisor.start(Nap(str(gate)))
            event = await stream.next()
            assert event is not None
            assert (event.job.id, event.state) == (job.id, "queued")

    run(main())


def test_several_loops_in_several_threads_share_one_supervisor(home: Path, gate: Path) -> None:
    gate.touch()
    ids: list[int] = []

    async def work(supervisor: aio.Supervisor) -> None:
        async with supervisor.events() as stream:
            jobs = await asyncio.gather(*(supervisor.start(Nap(str(gate))) for _ in range(5)))
            infos = await asyncio.gather(*(job.wait(check=True) for job in jobs))
            ids.extend(info.id for info in infos)
            missing = {info.id for info in infos}
            async for event in stream:
                if event.job.final:
                    missing.discard(event.job.id)
                if not missing:
                    break

    async def main() -> None:
        async with supervise(home) as supervisor:
            threads = [threading.Thread(target=lambda: run(work(supervisor))) for _ in range(4)]
            for thread in threads:
                thread.start()
            await work(supervisor)
            for thread in threads:
                await asyncio.to_thread(thread.join)

    run(main())
    assert sorted(ids) == list(range(1, 26))


def test_neither_open_nor_close_blocks_the_loop(home: Path, gate: Path, tmp_path: Path) -> None:
    """Each of them waits for a file which only the loop can make."""
    slow, ready = slow_types(tmp_path, gate)

    async def main() -> None:
        supervisor = aio.Supervisor(home, types=[str(slow), __name__], grace=30)
        assert supervisor.closed
        with pytest.raises(aio.Unreachable, match="async with"):
            await supervisor.jobs()
        opening = asyncio.create_task(supervisor.open())
        while not ready.exists():
            await asyncio.sleep(0.001)
        assert not opening.done()
        gate.touch()
        assert await opening is supervisor
        job = await supervisor.start(Nap(str(tmp_path / "never"), last=str(tmp_path / "last")))
        await job.wait(until="running")
        closing = asyncio.create_task(supervisor.close(abort=True))
        while (await job.info()).state != "aborting":
            await asyncio.sleep(0.001)
        (tmp_path / "last").touch()
        await closing
        assert supervisor.closed
        await supervisor.close()

    run(main())


def test_a_cancelled_open_leaves_nothing_open(home: Path, gate: Path, tmp_path: Path) -> None:
    slow, ready = slow_types(tmp_path, gate)

    async def main() -> None:
        supervisor = aio.Supervisor(home, types=[str(slow)])
        opening = asyncio.create_task(supervisor.open())
        while not ready.exists():
            await asyncio.sleep(0.001)
        opening.cancel()
        await asyncio.sleep(0.01)
        gate.touch()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert supervisor.closed
        async with supervise(home):
            pass

    run(main())


def test_a_supervisor_answers_clients_of_its_own_process(home: Path, gate: Path) -> None:
    async def main() -> None:
        async with supervise(home) as supervisor, supervisor.serve() as path, aio.Client(path) as client:
            assert client.home == str(home)
            async with client.events() as events:
                job = await client.start(Nap(str(gate)))
                assert job.id == (await supervisor.job(job.id)).id
                gate.touch()
                assert (await job.wait(check=True)).result == {"slept": True}
                states = [event.state async for event in _until_final(events) if event.event == "state"]
                assert (states[0], states[-1]) == ("queued", "completed")
        assert not path.exists()
        assert client.closed

    run(main())


async def _until_final(events: aio.EventStream) -> AsyncIterator[aio.Event]:
    async for event in events:
        yield event
        if event.job.final:
            break


def test_a_home_in_use(home: Path) -> None:
    async def main() -> None:
        async with supervise(home):
            with pytest.raises(aio.HomeInUse):
                await supervise(home).open()

    run(main())


def test_closing_tells_those_who_wait_and_the_job_runs_on(home: Path, gate: Path) -> None:
    async def main() -> None:
        async with supervise(home) as supervisor:
            job = await supervisor.start(Nap(str(gate)))
            await job.wait(until="running")
            waiting = asyncio.create_task(job.wait())
            while not waiters(supervisor, job):
                await asyncio.sleep(0.001)
        with pytest.raises(aio.Unreachable, match="goes on"):
            await waiting
        with pytest.raises(aio.Unreachable):
            await job.info()
        assert {process.kind for process in processes_of(home)} == {"worker", "zygote"}
        async with supervise(home) as supervisor:
            again = await supervisor.job(job.id)
            assert (await again.info()).adopted
            gate.touch()
            assert (await again.wait()).ok

    run(main())


def test_a_loop_that_is_gone_disturbs_nobody(home: Path, gate: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its waits and streams were never ended."""
    opened: list[aio.Supervisor] = []

    async def leave() -> None:
        supervisor = await supervise(home).open()
        job = await supervisor.start(Nap(str(gate)))
        stream = supervisor.events()
        await asyncio.wait({asyncio.create_task(job.wait()), asyncio.create_task(stream.next())}, timeout=0.05)
        opened.append(supervisor)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    for unfinished in asyncio.all_tasks(loop):
        unfinished.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def main() -> None:
        job = await opened[0].job(1)
        gate.touch()
        assert (await job.wait()).ok
        await opened[0].close()

    run(main())
    wait_until(lambda: not processes_of(home))
    assert capfd.readouterr().err == ""
