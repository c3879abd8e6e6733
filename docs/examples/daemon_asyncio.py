"""A small daemon on asyncio that embeds a Supervisor. It takes commands, one a line, on a Unix socket.

    python daemon_asyncio.py DIRECTORY
    nc -U DIRECTORY/socket

The loop keeps its signals and children. SIGTERM ends the daemon; the jobs run on, and its next start finds them.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys

from jobvisor import aio

HELP = "clone SOURCE TARGET [BYTES-PER-SECOND] · list · suspend|resume|abort|wait ID · children"


async def answer(supervisor: aio.Supervisor, line: str) -> str:
    try:
        match shlex.split(line):
            case ["clone", source, target, *rate]:
                limit = int(rate[0]) if rate else None
                job = await supervisor.start("clone", source=source, target=target, bandwidth=limit)
                return f"job {job.id}"
            case ["list"]:
                found = [
                    f"{info.id} {info.type} {info.state} {info.data_processed}" for info in await supervisor.jobs()
                ]
                return "; ".join(found) or "no jobs"
            case ["suspend" | "resume" | "abort" | "wait" as verb, id]:
                job = await supervisor.job(int(id))
                info = await getattr(job, verb)()
                return f"{info.id} {info.state}" + (f": {info.errmsg}" if info.errmsg else "")
            case ["children"]:
                own = await asyncio.create_subprocess_exec("true")
                return f"{own.pid} ended with {await own.wait()}"
        return HELP
    except (aio.JobvisorError, ValueError) as error:
        return f"error: {error}"


async def report(events: aio.EventStream) -> None:
    """Tell of every change; it ends with the supervisor."""
    async for event in events:
        if event.event == "state":
            print(f"job {event.job.id} is {event.state}", flush=True)


async def main(directory: str) -> None:
    path = os.path.join(directory, "socket")
    over = asyncio.Event()
    clients: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(asyncio.current_task())
        try:
            async for line in reader:
                writer.write((await answer(supervisor, line.decode()) + "\n").encode())
                await writer.drain()
        except asyncio.CancelledError:  # a client that waits for a job when the daemon ends: the job goes on
            pass
        finally:
            clients.discard(asyncio.current_task())
            writer.close()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with aio.Supervisor(os.path.join(directory, "jobs")) as supervisor:
        reporter = asyncio.create_task(report(supervisor.events()))
        if os.path.exists(path):  # of a daemon that was killed: the supervisor has made sure that none is alive
            os.unlink(path)
        server = await asyncio.start_unix_server(serve, path)
        await over.wait()
        server.close()
        for client in clients:
            if client:
                client.cancel()
    await reporter
    if os.path.exists(path):
        os.unlink(path)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
