"""First come, first served per resource: readers together, a writer alone."""

from jobvisor.schedule import Schedule
from jobvisor_workers import READ, WRITE
from jobvisor_workers.jobtype import Access


def schedule(*needs: dict[str, Access]) -> Schedule:
    """Jobs 1, 2, … in the queue, all released."""
    made = Schedule()
    for job, each in enumerate(needs, 1):
        made.enter(job, each)
        made.release(job)
    return made


def started(made: Schedule) -> list[int]:
    """Begin all that may start."""
    found = []
    while (job := made.next()) is not None:
        made.begin(job)
        found.append(job)
    return found


def test_readers_start_together_and_a_writer_waits_for_them() -> None:
    made = schedule({"a": READ}, {"a": READ}, {"a": WRITE})
    assert started(made) == [1, 2]
    assert made.next() is None
    made.leave(1)
    assert made.in_the_way({"a": WRITE}, of=3) == ("a", 2)
    made.leave(2)
    assert started(made) == [3]


def test_a_reader_does_not_overtake_a_writer_that_waits() -> None:
    made = schedule({"a": READ}, {"a": WRITE}, {"a": READ})
    made.begin(1)
    assert made.next() is None
    assert made.in_the_way({"a": READ}, of=3) == ("a", 2)


def test_jobs_on_other_resources_are_not_held_up() -> None:
    made = schedule({"a": WRITE}, {"a": WRITE, "b": WRITE}, {"b": WRITE}, {"c": WRITE})
    made.begin(1)
    assert started(made) == [4]


def test_a_held_job_keeps_its_place() -> None:
    made = schedule({"a": WRITE}, {"a": WRITE})
    made.hold(1)
    assert made.next() is None
    made.release(1)
    assert started(made) == [1]


def test_a_job_that_leaves_the_queue_frees_its_place() -> None:
    made = schedule({"a": WRITE}, {"a": WRITE})
    made.leave(1)
    assert started(made) == [2]


def test_the_mask_tells_what_may_start_and_who_is_in_the_way() -> None:
    made = schedule({"a": READ}, {"a": WRITE})
    types = {"look": [READ], "overwrite": [WRITE], "both": [READ, WRITE]}
    assert made.forbidden("a", types) == {"both": 2, "look": 2, "overwrite": 1}
    made.begin(1)
    assert (made.users("a"), made.forbidden("a", types)) == (([1], [2]), {"both": 2, "look": 2, "overwrite": 1})
    made.leave(2)
    assert made.forbidden("a", types) == {"overwrite": 1}
    made.leave(1)
    assert made.forbidden("a", types) == {}
