"""Getting an answer: asked again when the daemon went away in the midst of it, never done twice.

The coroutines here need no event loop: with a transport that blocks they run to their end at once (`blocking.run`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from jobvisor.errors import JobvisorError, NoSuchJob, NotPermitted, Unreachable, UsageError, WrongHold, WrongState
from jobvisor.remote import calls
from jobvisor.remote.calls import Call
from jobvisor.remote.conversation import Conversation, Lost, NotUnderstood
from jobvisor.remote.problems import error_of
from jobvisor.states import Goal, State, Verb, is_met

if TYPE_CHECKING:
    from typing import IO, Protocol

    from jobvisor.asking import Options
    from jobvisor.info import JobInfo
    from jobvisor_workers.jobtype import JobType, Resource

T = TypeVar("T")
#: So long may a daemon be away that is restarted or replaced, seconds; and the pauses between two looks.
AWAY_MAX, PAUSE, PAUSE_MAX = 10.0, 0.01, 0.25
#: A request that so often was not answered may be what ends the daemon; one that was served so long, seconds, is not.
LOST_MAX, LIVED = 30, 5.0
#: A wait is asked in pieces of this many seconds, and its answer may come so much later.
POLL, SLACK = 50.0, 3.0
#: Where a verb brings a job: one that was asked again and is refused in this state has been done.
WANTED = {
    Verb.SUSPEND: {State.SUSPENDED},
    Verb.RESUME: {State.QUEUED, State.STARTING, State.WAITING, State.RUNNING, State.READY},
    Verb.ABORT: {State.ABORTED},
    Verb.COMPLETE: {State.RUNNING, State.COMPLETED},
}

if TYPE_CHECKING:  # making a Protocol takes as long as a whole request
    #: Sends what follows the head of a request.
    Body = Callable[["Connection", Conversation], Coroutine[Any, Any, None]]

    class Connection(Protocol):
        """A socket in the manner of its transport."""

        async def send(self, data: bytes) -> None:
            """Raises OSError."""

        async def receive(self, timeout: float | None) -> bytes:
            """Raises OSError, of which TimeoutError is one."""

        def interrupt(self) -> None:
            """From any thread: whoever receives gets the end."""

        def close(self) -> None: ...

    class Transport(Protocol):
        """Where connections come from."""

        async def connect(self) -> Connection:
            """Raises Unreachable, NotPermitted."""

        async def sleep(self, seconds: float) -> None: ...

        async def read(self, file: IO[bytes]) -> bytes: ...

        async def write(self, file: IO[bytes], piece: bytes) -> None: ...


class Reply:
    """An answer that is coming in."""

    def __init__(self, connection: Connection, conversation: Conversation) -> None:
        self._connection, self._conversation = connection, conversation
        self.interrupt, self.close = connection.interrupt, connection.close

    async def read(self, deadline: float | None = None) -> bytes:
        """The next piece of its body; none at its end. Raises Lost, NotUnderstood, TimeoutError."""
        while True:
            piece = self._conversation.take()
            if piece or self._conversation.done:
                return piece
            await receive(self._connection, self._conversation, deadline)

    async def read_all(self, deadline: float | None) -> bytes:
        pieces = []
        while piece := await self.read(deadline):
            pieces.append(piece)
        return b"".join(pieces)


class Outage:
    """A daemon is away, or is lost again and again; how much of that is bearable."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        #: True when an answer was lost, so that the daemon is given time to come back.
        self.begun = False
        self._seen = 0.0
        self._losses = 0
        self._pause = PAUSE

    def alive(self) -> None:
        """It does what it is asked."""
        self._losses, self._pause = 0, PAUSE

    async def lost(self, why: Lost, lived: float = 0.0, deadline: float | None = None) -> None:
        """Pause, after a connection of `lived` seconds. Raises Unreachable, or TimeoutError at the deadline."""
        if lived > LIVED:
            self.alive()
        self.begun = True
        self._seen = time.monotonic()
        self._losses += 1
        if self._losses >= LOST_MAX:
            raise Unreachable(f"the daemon was lost {LOST_MAX} times in the midst of this request: {why}")
        await self._rest(deadline)

    async def absent(self, why: Unreachable, deadline: float | None = None) -> None:
        """Pause, since nobody could be connected to. Raises Unreachable, or TimeoutError at the deadline."""
        now = time.monotonic()
        self._seen = self._seen or now
        if now >= self._seen + AWAY_MAX:
            raise Unreachable(f"the daemon went away and did not come back within {AWAY_MAX:g} s: {why}")
        await self._rest(deadline)

    async def _rest(self, deadline: float | None) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError
        await self._transport.sleep(self._pause)
        self._pause = min(2 * self._pause, PAUSE_MAX)


class Exchange:
    """A daemon, as far as it answers."""

    def __init__(self, transport: Transport, name: str) -> None:
        """`name`: of the daemon, in messages."""
        self.transport, self.name = transport, name
        #: The version of the daemon that answered last.
        self.version = ""
        self.closed = False
        self._open: set[Reply | Connection] = set()

    async def perform(self, call: Call[T], deadline: float | None = None, *, known: bool = False) -> T:
        """The answer. Raises what the daemon says is wrong, Unreachable, and TimeoutError at the deadline.

        `known`: a daemon was there a moment ago, so that one that is absent may be about to come back.
        """
        outage = Outage(self.transport)
        while True:
            began = time.monotonic()
            try:
                return await self._perform(call, deadline)
            except Lost as error:
                self.check_open()
                await outage.lost(error, time.monotonic() - began, deadline)
            except Absent as error:
                if not outage.begun and not known:
                    raise error.why from None
                await outage.absent(error.why, deadline)
            except NoSuchJob:
                if not outage.begun or call.verb is not Verb.FORGET:
                    raise
                return call.decode(b"")
            except WrongState as error:
                if not outage.begun or call.verb is None or error.state not in WANTED.get(call.verb, ()):
                    raise
                call = Call("GET", f"/v1/jobs/{call.job}", call.decode)
            except WrongHold as error:
                if not outage.begun or not _was_done(call, error):
                    raise
                return call.decode(msgspec.json.encode(error.hold))

    async def start(self, job: JobType | str, options: Options, args: dict[str, Any]) -> JobInfo:
        """Raises UsageError and what the daemon says is wrong."""
        from jobvisor.asking import connect_of
        from jobvisor.remote.naming import named

        name, fields, resources = named(job, args)
        if resources is None:
            resources = await self._resources(name)
        for field, resource in resources.items():
            value = fields.get(field)
            if isinstance(value, str) and value and not resource.is_pipe(value):
                fields[field] = calls.absolute(value)
        connect = connect_of((fields.get(field) for field in resources), options.connect)
        options = msgspec.structs.replace(options, connect=connect)
        return await self.perform(calls.start(name, fields, options))

    async def wait(self, id: int, timeout: float | None, goal: Goal | None) -> JobInfo | None:
        """None when the time was over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        answered = False
        while True:
            left = POLL if deadline is None else min(POLL, max(0.0, deadline - time.monotonic()))
            call = calls.wait(id, goal, left)
            try:
                late = None if deadline is None else deadline + SLACK
                info = await self.perform(call, late, known=answered)
                answered = True
            except TimeoutError as error:
                if isinstance(error, JobvisorError):
                    raise
                return None
            if is_met(goal, info.state, info.phase):
                return info
            if deadline is not None and time.monotonic() >= deadline:
                return None

    async def send(self, id: int, file: IO[bytes]) -> int:
        """Not asked again: what was heard of a file cannot be said twice."""
        total = 0

        async def pieces(connection: Connection, conversation: Conversation) -> None:
            nonlocal total
            while piece := await self.transport.read(file):
                if not await sent(connection, conversation.piece(piece)):
                    return
                total += len(piece)
            await sent(connection, conversation.piece(b""))

        with _never_again("sent"):
            reply = await self.open(calls.send(id), body=pieces)
            self.close(reply)
        return total

    async def receive(self, id: int, file: IO[bytes]) -> int:
        """Not asked again: what was told of a job's output is told no second time."""
        total = 0
        try:
            with _never_again("received"):
                reply = await self.open(calls.receive(id))
                try:
                    while piece := await reply.read():
                        await self.transport.write(file, piece)
                        total += len(piece)
                finally:
                    self.close(reply)
        except (NoSuchJob, NotPermitted, UsageError, WrongState):
            raise
        except JobvisorError:  # an answer does not end well when the job does not, of which its state tells more
            if (await self.perform(calls.info(id), known=total > 0)).state not in (State.FAILED, State.ABORTED):
                raise
        return total

    async def open(self, call: Call[Any], deadline: float | None = None, body: Body | None = None) -> Reply:
        """The beginning of an answer, which is to be closed. Raises Absent, Lost, and what the daemon says is wrong."""
        self.check_open()
        try:
            connection = await self.transport.connect()
        except Unreachable as error:
            raise Absent(error)
        conversation = Conversation(call)
        reply = Reply(connection, conversation)
        self._open.add(reply)
        try:
            self.check_open()
            if await sent(connection, conversation.asks) and body is not None:
                await body(connection, conversation)
            while not conversation.status:
                await receive(connection, conversation, deadline)
            if conversation.status >= 300:
                await self._refuse(reply, conversation, deadline)
            self._check(conversation)
        except NotUnderstood as error:
            self.close(reply)
            raise self._strange(str(error))
        except BaseException:
            self.close(reply)
            raise
        return reply

    def close(self, reply: Reply) -> None:
        self._open.discard(reply)
        reply.close()

    def close_all(self) -> None:
        """From any thread: whoever waits for an answer is told that there will be none."""
        self.closed = True
        for reply in list(self._open):
            reply.interrupt()

    def check_open(self) -> None:
        """Raises Unreachable."""
        if self.closed:
            raise Unreachable("this client was closed; jobs go on")

    async def _perform(self, call: Call[T], deadline: float | None) -> T:
        reply = await self.open(call, deadline)
        try:
            return call.decode(await reply.read_all(deadline))
        except (NotUnderstood, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._strange(str(error))
        finally:
            self.close(reply)

    async def _refuse(self, reply: Reply, conversation: Conversation, deadline: float | None) -> None:
        error = error_of(conversation.status, await reply.read_all(deadline))
        if conversation.status == 503:  # it leaves, or has too much to do
            raise Lost(str(error))
        self._check(conversation)
        raise error

    def _check(self, conversation: Conversation) -> None:
        if not conversation.version:
            raise self._strange("the answer has no Jobvisor-Version")
        self.version = conversation.version

    def _strange(self, why: str) -> Unreachable:
        return Unreachable(f"what answers on {self.name} is no jobvisor daemon, or a very different one: {why}")

    async def _resources(self, name: str) -> dict[str, Resource]:
        """The fields that name resources, of a type that this Python does not know."""
        from jobvisor_workers.jobtype import Resource

        try:
            arguments = (await self.perform(calls.job_type(name))).get("arguments", [])
        except Unreachable:
            raise
        except JobvisorError:  # there is none: the daemon says so better when it is to start one
            return {}
        named = {argument["name"]: argument.get("resource") for argument in arguments}
        return {name: msgspec.convert(resource, Resource) for name, resource in named.items() if resource}


def _was_done(call: Call[Any], error: WrongHold) -> bool:
    """True when a hold, or a release, that was asked for again had been heard before."""
    if call.body is None or error.hold is None:
        return call.body is None and error.hold is None
    return bool(msgspec.json.decode(call.body)["reason"] == error.hold.reason)


@contextmanager
def _never_again(done: str) -> Iterator[None]:
    """Raises Unreachable."""
    try:
        yield
    except Absent as error:
        raise error.why from None
    except Lost as error:
        raise Unreachable(f"the daemon went away before all was {done}: {error}")


class Absent(Exception):
    """Nobody could be connected to, so that nothing was asked."""

    def __init__(self, why: Unreachable) -> None:
        self.why = why


async def sent(connection: Connection, data: bytes) -> bool:
    """False when the daemon hears no more; it may have answered before it heard all."""
    try:
        await connection.send(data)
    except OSError:
        return False
    return True


async def receive(connection: Connection, conversation: Conversation, deadline: float | None) -> None:
    """Feed what comes next. Raises Lost, NotUnderstood, TimeoutError."""
    timeout = None if deadline is None else max(0.001, deadline - time.monotonic())
    try:
        data = await connection.receive(timeout)
    except TimeoutError:
        raise
    except OSError as error:
        raise Lost(f"the connection was lost: {error.strerror or error}")
    conversation.feed(data)
