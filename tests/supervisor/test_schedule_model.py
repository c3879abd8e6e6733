"""The schedule against its definition: hypothesis lets jobs come, wait, be held, start and end in any order."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from msgspec import Struct

from jobvisor.schedule import Schedule
from jobvisor_workers import READ, WRITE
from jobvisor_workers.jobtype import Access

NEEDS = st.dictionaries(st.sampled_from("ab"), st.sampled_from([READ, WRITE]), max_size=2)
KINDS = st.lists(st.sampled_from(["jobs", "type:x", "type:y", "user:1"]), unique=True, max_size=3)
LIMITS = st.dictionaries(st.sampled_from(["jobs", "type:x", "type:*", "user:1"]), st.integers(1, 2))


class Model(Struct):
    """A job as the documents describe it."""

    needs: dict[str, Access]
    priority: int
    kinds: list[str]
    released: bool = False
    aside: bool = False
    active: bool = False


class ScheduleMachine(RuleBasedStateMachine):
    jobs: Bundle[int] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()
        self.model: dict[int, Model] = {}
        self.limits: dict[str, int] = {}
        self.last = 0

    def line(self) -> Iterator[tuple[int, Model]]:
        """Those that wait, in their order."""
        waiting = [(job, each) for job, each in self.model.items() if not each.active]
        return iter(sorted(waiting, key=lambda pair: (-pair[1].priority, pair[0])))

    def in_the_way(self, job: int) -> set[tuple[str, int]]:
        """Whom it waits for, on which resource."""
        found = set()
        mine = self.model[job]
        before = [other for other, each in self.line() if not each.aside]
        earlier = {other for other in before if self.rank(other) < self.rank(job)}
        for other, each in self.model.items():
            if other != job and (each.active or other in earlier):
                for key in mine.needs.keys() & each.needs.keys():
                    if WRITE in (mine.needs[key], each.needs[key]):
                        found.add((key, other))
        return found

    def rank(self, job: int) -> tuple[int, int]:
        return -self.model[job].priority, job

    def full(self, job: int) -> set[str]:
        return {kind for kind in self.model[job].kinds if self.count(kind) >= self.most(kind)}

    def count(self, kind: str) -> int:
        return sum(each.active and kind in each.kinds for each in self.model.values())

    def most(self, kind: str) -> int:
        return self.limits.get(kind, self.limits.get("type:*", 99) if kind.startswith("type:") else 99)

    def may_start(self, job: int) -> bool:
        each = self.model[job]
        return each.released and not each.aside and not self.in_the_way(job) and not self.full(job)

    @rule(target=jobs, needs=NEEDS, priority=st.integers(-1, 1), kinds=KINDS, released=st.booleans())
    def come(self, needs: dict[str, Access], priority: int, kinds: list[str], released: bool) -> int:
        self.last += 1
        self.model[self.last] = Model(needs, priority, kinds)
        self.schedule.enter(self.last, needs, priority, kinds)
        if released:
            self.release(self.last)
        return self.last

    @rule(job=jobs)
    def release(self, job: int) -> None:
        if not self.model[job].active:
            self.model[job].released = True
            self.schedule.release(job)

    @rule(job=jobs)
    def hold(self, job: int) -> None:
        if not self.model[job].active:
            self.model[job].released = False
            self.schedule.hold(job)

    @rule(job=jobs, aside=st.booleans())
    def step(self, job: int, aside: bool) -> None:
        if not self.model[job].active:
            self.model[job].aside = aside
            (self.schedule.step_aside if aside else self.schedule.step_in)(job)

    @rule(job=jobs, needs=NEEDS, kinds=KINDS)
    def resolve_again(self, job: int, needs: dict[str, Access], kinds: list[str]) -> None:
        if not self.model[job].active:
            self.model[job].needs, self.model[job].kinds = needs, kinds
            self.schedule.replace(job, needs, kinds)

    @rule(job=jobs)
    def adopt(self, job: int) -> None:
        """By a supervisor that finds it running: whatever else is there."""
        if not self.model[job].active:
            self.model[job].active, self.model[job].aside = True, False
            self.schedule.begin(job)

    @rule(job=consumes(jobs))
    def end(self, job: int) -> None:
        del self.model[job]
        self.schedule.leave(job)

    @rule(limits=LIMITS)
    def configure(self, limits: dict[str, int]) -> None:
        self.limits = limits
        self.schedule.limit(limits)

    @rule(most=st.integers(1, 9))
    def start(self, most: int) -> None:
        for _ in range(most):
            first = self.schedule.next()
            if first is None:
                return
            self.model[first].active = True
            self.schedule.begin(first)

    @invariant()
    def it_tells_what_is_so(self) -> None:
        assert self.schedule.queued() == [job for job, _ in self.line()]
        assert self.schedule.next() == next((job for job, _ in self.line() if self.may_start(job)), None)
        for job, each in self.line():
            blocked = self.schedule.in_the_way(each.needs, job)
            assert (blocked in self.in_the_way(job)) if blocked else not self.in_the_way(job)
            full = self.schedule.full(job)
            assert (full in self.full(job)) if full else not self.full(job)
            for key in each.needs:
                others = [other for other, that in self.line() if key in that.needs and not that.aside]
                assert self.schedule.place(job, key) == 1 + sum(self.rank(other) < self.rank(job) for other in others)


ScheduleMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, database=None)
test_the_schedule_does_what_is_said_of_it = ScheduleMachine.TestCase
