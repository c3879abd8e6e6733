"""The one implementation behind both faces: every method returns a future, resolved by the supervisor's own threads."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import msgspec

from jobvisor import closing, config, entering, holding, listing, once, startup, store, verbs
from jobvisor.asking import Options, checked_id, connect_of, states_of
from jobvisor.config import Setting
from jobvisor.engine import Engine
from jobvisor.errors import NoSuchJob, NotPermitted, UsageError, WrongState
from jobvisor.events import LocalStream
from jobvisor.feed import Feed
from jobvisor.hold import Hold
from jobvisor.home import Home
from jobvisor.info import JobInfo
from jobvisor.journal import Journal
from jobvisor.record import Waiter, user_name
from jobvisor.request import absolute, build, key_of_name, known_type
from jobvisor.schedule import Mask
from jobvisor.states import FINAL, Goal, State, Verb, is_met
from jobvisor.stream import Event
from jobvisor_workers import registry
from jobvisor_workers.errors import JobError
from jobvisor_workers.jobtype import JobType
from jobvisor_workers.protocol import Detach, Requester
from jobvisor_workers.resources import uri
from jobvisor_workers.resources.path import identify

#: Adopted workers are asked where they are; the first list is to be true, so their answers are waited for, seconds.
ADOPTED_ANSWER = 1.0
T = TypeVar("T")

_VERBS = {
    Verb.SUSPEND: verbs.suspend,
    Verb.RESUME: verbs.resume,
    Verb.COMPLETE: verbs.complete,
}


class Core:
    """A supervisor, by futures."""

    def __init__(
        self, home: str | os.PathLike[str] | None, types: Sequence[str], grace: float, *, tied: bool = False
    ) -> None:
        """`tied`: jobs share this process's fate (stop, death), and the home is removed at the end."""
        if not grace > 0:
            raise UsageError(f"grace is to be more than 0 seconds, not {grace:g}")
        self._requester: Requester | None = None
        self._tied = tied
        registry.add_modules(types)
        self.types = tuple(types)
        self.home = Home(home)
        self._closing = threading.Lock()
        try:
            settings = config.read(config.files(str(self.home.path)))
            journal = Journal(self.home.journal)
        except BaseException:
            self.home.release()
            raise
        self._engine = Engine(self.home, journal, list(types), grace, tied=tied)
        self._engine.pump.start()
        try:
            startup.load(self._engine)
            self._engine.config = settings
            self._engine.schedule.limit(settings.limits)
            self._engine.pump.submit(lambda: startup.resume(self._engine)).result()
            deadline = time.monotonic() + ADOPTED_ANSWER
            while self._submit(self._adopting).result() and time.monotonic() < deadline:
                time.sleep(0.002)
        except BaseException:
            self._end()
            raise

    def seen_by(self, requester: Requester) -> Core:
        """The same supervisor for somebody who asks from outside: what they start is theirs and runs as them.

        Other people's jobs do not exist for them, unless they are root or the user of the supervisor. One that is not
        root's can only act as its own user, and only root may ask it besides. Raises NotPermitted.
        """
        own = os.getuid()
        if own != 0:
            if requester.uid not in (0, own):
                raise NotPermitted(f"this supervisor is uid {own}'s; ask one of your own, or root's")
            requester = msgspec.structs.replace(requester, uid=own)
        view = copy.copy(self)
        view._requester = requester
        return view

    @property
    def uid(self) -> int:
        """Who asks."""
        return self._requester.uid if self._requester else os.getuid()

    @property
    def sees_all(self) -> bool:
        """True when everybody's jobs exist for who asks."""
        return self._whose is None

    @property
    def _whose(self) -> int | None:
        """The one user whose jobs exist for who asks; None: everybody's do."""
        return None if self._engine.may_see(-1, self.uid) else self.uid

    def _adopting(self) -> bool:
        return any(record.adopted and record.state is State.STARTING for record in self._engine.records.values())

    def start(
        self,
        job: JobType | str,
        options: Options,
        args: dict[str, Any],
        *,
        umask: int | None = None,
        key: str | None = None,
    ) -> Future[JobInfo]:
        """`key`: who asks calls this start so; the same key and request again answer with the same job.

        Blocks for as long as it takes to look at the named files. Raises UsageError.
        """
        request, notes = build(job, args, options, requester=self._requester, umask=umask)
        if self._tied and request.args.get("keep_partial"):
            raise UsageError(f"cannot start {request.type} with --keep-partial: without a daemon nobody can retry it")
        named = once.once(self.uid, key, request)
        engine = self._engine
        return self._submit(lambda: once.start(engine, named, lambda: entering.start(engine, request, notes, named)))

    def info(self, id: int) -> Future[JobInfo]:
        return self._on(id, lambda: self._engine.info(id))

    def jobs(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        type: str | None = None,
        resource: str | None = None,
        limit: int | None = None,
        all_users: bool = False,
        since: float | None = None,
    ) -> Future[list[JobInfo]]:
        """Newest first. Raises NotPermitted, UsageError.

        `since`: epoch seconds; jobs that were not over at that moment.
        """
        wanted = listing.Wanted(
            states=states_of(state),
            type=type,
            resource=None if resource is None else absolute(resource, self._requester, "list jobs"),
            owner=self._owner(all_users),
            since=since,
            limit=limit,
        )
        return self._submit(lambda: listing.jobs(self._engine, wanted))

    def wait(self, id: int, until: Goal | None) -> tuple[Future[JobInfo], Waiter]:
        """The future resolves when the job is where it is wanted, or final."""
        waiter = Waiter(lambda record: is_met(until, record.state, record.report.phase), lambda _: None)
        return self._on(id, lambda: self._engine.wait(id, waiter)), waiter

    def unwait(self, id: int, waiter: Waiter) -> None:
        self._engine.pump.call(lambda: self._engine.unwait(id, waiter))

    def verb(self, verb: Verb, id: int, *, wait: bool, force: bool = False) -> Future[JobInfo]:
        do = partial(verbs.abort, force=force) if verb is Verb.ABORT else _VERBS[verb]
        return self._on(id, lambda: do(self._engine, id, wait))

    def retry(self, id: int, *, key: str | None = None) -> Future[JobInfo]:
        """`key`: as for `start`."""
        named = once.once(self.uid, key, f"retry {id}")
        return self._on(id, lambda: verbs.retry(self._engine, id, self._requester, named))

    def forget(self, id: int) -> Future[None]:
        return self._on(id, lambda: verbs.forget(self._engine, id))

    def ended_before(self, before: datetime | None) -> Future[list[int]]:
        """The final jobs of who asks that `forget` is about."""
        moment, uid = before.timestamp() if before else float("inf"), self.uid
        return self._submit(lambda: self._engine.journal.post(lambda db: store.ended_before(db, moment, uid)))

    def current(self) -> Future[int | None]:
        return self._submit(lambda: self._engine.current.get(self.uid))

    def set_current(self, id: int) -> Future[None]:
        """Raises NoSuchJob."""
        return self._engine.pump.then(self.info(id), lambda _: self._engine.set_current(self.uid, id))

    def pids(self) -> Future[dict[int, int]]:
        def visible() -> dict[int, int]:
            found = self._engine.pool.pids()
            return {job: pid for job, pid in found.items() if self._whose in (None, self._engine.owner(job))}

        return self._submit(visible)

    def live(self) -> Future[int]:
        """How many jobs have not ended, whosever they are."""
        return self._submit(lambda: len(self._engine.records))

    def working(self) -> Future[int]:
        """How many jobs have a process, whosever they are."""
        return self._submit(lambda: len(self._engine.pool.pids()))

    def idle_since(self) -> Future[float | None]:
        """When the last job ended (monotonic seconds), or the supervisor began; None while there is a job."""
        return self._submit(lambda: None if self._engine.records else self._engine.last_end)

    def zygotes(self) -> Future[list[int]]:
        return self._submit(lambda: self._engine.pool.zygote_pids())

    def hold(self, reason: str, *, type: str | None = None, all_users: bool = False) -> Future[Hold]:
        """Blocks for as long as it takes to load the job types. Raises WrongHold, NotPermitted, UsageError."""
        self._owner(all_users)
        if type is not None:
            known_type(type)
        uid = self.uid
        return self._submit(lambda: holding.hold(self._engine, user_name(uid), uid, reason, type, all_users))

    def release(self, *, type: str | None = None, all_users: bool = False) -> Future[None]:
        """Raises WrongHold, NotPermitted."""
        self._owner(all_users)
        uid = self.uid
        return self._submit(lambda: holding.release(self._engine, user_name(uid), uid, type, all_users))

    def config(self) -> Future[list[Setting]]:
        return self._submit(lambda: self._engine.config.settings)

    def reload(self) -> Future[list[Setting]]:
        """Blocks while it reads the files. Raises ConfigError, NotPermitted."""
        if self._whose is not None:
            raise NotPermitted("only root and the daemon's own user may change its configuration")
        fresh = config.read(config.files(str(self.home.path)))

        def configure() -> list[Setting]:
            entering.configure(self._engine, fresh)
            return fresh.settings

        return self._submit(configure)

    def holds(self) -> Future[list[Hold]]:
        """Those that are about the jobs of who asks."""
        return self._submit(lambda: holding.visible(self._engine, self._whose))

    def mask(self, resource: str, connect: str | None = None) -> Future[Mask]:
        """Raises UsageError when there can be no such resource, NotPermitted when it is not theirs to open who asks."""
        path = absolute(resource, self._requester, "look at the mask")
        types = listing.declared_accesses(resource.startswith(uri.POOL))
        requester, engine = self._requester, self._engine
        if uri.is_name(path):
            at = connect_of([path], connect, requester.uid if requester else None)
            key = key_of_name(path, at, self.uid)
            return self._submit(lambda: listing.mask(engine, path, key, self.uid, types))
        if requester and requester.uid != os.getuid():
            return self._submit(lambda: listing.mask_for(engine, requester, path, types))
        try:
            key = identify(path, new=True)
        except JobError as error:
            raise UsageError(str(error))
        others = listing.lockers(path)
        return self._submit(lambda: listing.mask(engine, path, key, self.uid, types, others))

    def events(self, since: int | None, job: int | None, *, all_users: bool = False) -> LocalStream:
        """Of all own jobs, or of one that exists for who asks. Raises NotPermitted."""
        owner = self._whose if job is not None else self._owner(all_users)

        def older(after: int, before: int) -> list[Event]:
            return self._engine.journal.post(lambda db: store.events(db, after, before)).result()

        self._engine.check_open()
        return LocalStream(self._engine.hub, since=since, job=job, owner=owner, older=older)

    def feed(self) -> Feed:
        """What one API server needs for its event streams; to be closed before this supervisor is."""
        self._engine.check_open()
        return Feed(self._engine)

    def detach(self) -> None:
        """A tied supervisor's jobs are to go on without it."""
        self._submit(lambda: self._engine.pool.broadcast(Detach())).result()

    @property
    def closed(self) -> bool:
        return self._engine.closed

    def close(self, *, abort: bool = False) -> None:
        """Stop supervising; workers go on unless they are to be aborted, and idle zygotes end."""
        with self._closing:
            if not self.closed:
                if abort:
                    self._abort_all()
                idle = closing.idle_zygotes(self._engine)
                self._end()
                closing.await_ends(idle)

    def _abort_all(self) -> None:
        """All at the same time: each may take its grace period."""
        live = self.jobs(state=set(State) - FINAL, all_users=True).result()
        for ending in [self.verb(Verb.ABORT, info.id, wait=True) for info in live]:
            try:
                ending.result()
            except (WrongState, NoSuchJob):  # it ended by itself meanwhile
                pass

    def _end(self) -> None:
        self._engine.pump.submit(lambda: closing.let_go(self._engine)).result()
        self._engine.pump.stop()
        self._engine.journal.close()
        self.home.release()

    def _owner(self, all_users: bool) -> int | None:
        """Whose jobs a list is about; None: everybody's. Raises NotPermitted."""
        if not all_users:
            return self.uid
        if self._whose is not None:
            raise NotPermitted("only root may look at the jobs of all users")
        return None

    def _on(self, id: int, do: Callable[[], T | Future[T]]) -> Future[T]:
        """On the pump, if this job exists for who asks. Raises NoSuchJob."""

        def if_seen(owner: int) -> T | Future[T]:
            if self._whose in (None, owner):
                return do()
            raise NoSuchJob(id)

        def find() -> T | Future[T]:
            owner = self._engine.owner(checked_id(id))
            if owner is None and self._whose is not None:
                return self._engine.pump.then(self._engine.journal.post(lambda db: store.owner(db, id)), if_seen)
            return do() if owner is None else if_seen(owner)

        return self._submit(find)

    def _submit(self, function: Callable[[], T | Future[T]]) -> Future[T]:
        def checked() -> T | Future[T]:
            self._engine.check_open()
            return function()

        self._engine.check_open()
        return self._engine.pump.submit(checked)
