"""A worker's life, top to bottom.

    setsid · close the zygote's descriptors · claim jobs/<id>/life · become the requester · take signals · lock the
    resources · plan · run · commit the outputs · SystemExit to the top · atexit handlers · write jobs/<id>/result ·
    os._exit

All files of the job directory are opened first: they are not the requester's.

The zygote's program registers `leave` as its very first atexit handler, so that it runs last and calls the LastWord.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from jobvisor_workers import identity, leave, registry, signals
from jobvisor_workers.control import MARK, MARK_ID
from jobvisor_workers.errors import BadArgument, Held, JobError, from_os_error
from jobvisor_workers.expected import Expected
from jobvisor_workers.holders import WORKER_NAME
from jobvisor_workers.jobtype import Access, JobType
from jobvisor_workers.keeping import Keeping
from jobvisor_workers.locks import acquire
from jobvisor_workers.output import sync_directory
from jobvisor_workers.pipes import Ends
from jobvisor_workers.progress import Reporter
from jobvisor_workers.protocol import (
    CHECKS,
    Claim,
    Commit,
    Failure,
    Holder,
    Life,
    Report,
    Request,
    Result,
    encode,
)
from jobvisor_workers.resources import pools, uri
from jobvisor_workers.resources.path import identify
from jobvisor_workers.settle import undo
from jobvisor_workers.worker import Worker

#: Exit status of a worker that found its job claimed or void; sysexits(3) EX_TEMPFAIL.
NOT_MINE = 75
#: A plan that asks for another lock each time it looks is a defect, or somebody rewrites the chain without end.
PLANS_MAX = 20


class LastWord:
    """What the result file will say; `leave` calls it at the very end."""

    def __init__(self, directory: int, report: Report) -> None:
        # Until the end it is empty, which counts as missing.
        self._file = os.open("result", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
        self.result = Result("failed", report, failure=Failure("crashed", "the worker ended without a word"))
        self.status = 1

    def __call__(self) -> int:
        rest = encode(self.result)
        while rest:  # what is cut off cannot be decoded
            rest = rest[os.write(self._file, rest) :]
        return self.status


class Spawned(msgspec.Struct):
    """What a freshly forked worker holds: its request, its job directory, both ends of its progress pipe.

    `job`: the request as its type, where the zygote could read it; else the worker finds out why not.
    """

    request: Request
    job: JobType | None
    directory: str
    pipe_read: int
    pipe_write: int


def main(spawned: Spawned) -> NoReturn:
    """Run one job and leave by SystemExit."""
    request = spawned.request
    os.setsid()
    directory = os.open(spawned.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    close_all_but({0, 1, 2, spawned.pipe_read, spawned.pipe_write, directory})
    _own_log(directory)
    _name_process(request.id)
    life = claim(directory, spawned.pipe_read)
    if life is None:
        os._exit(NOT_MINE)

    reporter = Reporter(spawned.pipe_write, request.bandwidth)
    leave.last_word = word = LastWord(directory, reporter.report)
    job = spawned.job
    ends = Ends(directory, reads=bool(job and job.has_stdin), writes=bool(job and job.has_stdout))
    keeps = job and job.retry == "continue" and getattr(job, "keep_partial", False)
    keeping = Keeping(directory, request) if keeps else None
    os.close(directory)
    _become_requester(spawned, word)
    os.environ |= {MARK_ID: str(request.id), MARK: spawned.directory}

    def record(line: Life) -> None:
        os.write(life, encode(line) + b"\n")
        os.fdatasync(life)

    def report_again() -> bool:
        reporter.send()
        return reporter.blocked

    worker = Worker(request, reporter, record, ends, keeping)
    if keeping:
        keeping.warn = worker.warn
    taken = signals.Signals(report_again, worker.completed.set)
    worker.held_back = taken.held_back
    reporter.on_blocked = taken.retry_report
    try:
        taken.start()
        word.result = _work(spawned, worker, reporter, lambda result: _commit(worker, taken, record, result))
    except signals.Terminated:
        word.result = Result("aborted", reporter.report, sender=taken.sender)
    finally:
        taken.at_top()
        completed = word.result.outcome == "completed"
        for output in worker.outputs:
            if completed:
                output.close()
            else:
                output.discard()
        if keeping and not completed:
            keeping.leave()
        if not completed:
            for volume in worker.made:
                volume.discard(worker)
    word.status = 0 if completed else 1
    sys.exit(word.status)


def _become_requester(spawned: Spawned, word: LastWord) -> None:
    """The job's files are open; from here on everything is done with the rights of the user whom it is for."""
    request, requester = spawned.request, spawned.request.requester
    if requester is None:
        return
    try:
        if request.ionice is not None:
            import psutil  # noqa: F401 - for _be_nice
        if request.connect:
            pools.load()
        if spawned.job:
            spawned.job.load()
    except Exception:  # it is found again when it is used
        traceback.print_exc()
    try:
        identity.become(requester)
    except (OSError, ValueError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        text = f"cannot run {request.type} as {requester.user} (uid {requester.uid}): {why}"
        word.result = _failed(word.result.report, JobError(text))
        sys.exit(word.status)
    os.environ.clear()
    os.environ.update(identity.environment(requester))
    os.chdir("/")


def _work(
    spawned: Spawned, worker: Worker, reporter: Reporter, commit: Callable[[dict[str, Any] | None], None]
) -> Result:
    """The job itself; every error but a request to end becomes a result."""
    request, report = spawned.request, reporter.report
    try:
        os.umask(request.umask)
        _be_nice(request)
        job = spawned.job or registry.convert(request.type, request.args)
        if worker.pools:
            job = worker.pools.localize(job)
        _prepare(worker, job, request, reporter)
        if worker.pools:
            worker.pools.close()
        if request.dry_run:
            return Result("completed", report, worker.expected.told(worker.locks))
        result = job.run(worker)
        if worker.keeping and worker.keeping.continues:
            continued = {"continued_from": request.retry_of, "bytes_continued": report.continued}
            result = (result or {}) | continued
        _check_result(result)
        if worker.pools:
            worker.abort_effect = worker.pools.untold
        commit(result)
        if worker.pools:
            worker.phase("refresh")
            for text in worker.pools.refresh():
                worker.warn(text)
            worker.abort_effect = None
        return Result("completed", report, result)
    except Held as error:
        return _failed(report, error, resource=error.resource, holder=error.holder)
    except JobError as error:
        return _failed(report, error)
    except OSError as error:
        traceback.print_exc()
        where = f" on {error.filename}" if error.filename else ""
        return _failed(report, from_os_error(error, f"run {request.type}{where}"))
    except (msgspec.ValidationError, registry.UnknownType) as error:
        return _failed(report, BadArgument(f"cannot run {request.type}: {error}"))
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error} (a defect in job type {request.type}; its log has the traceback)"
        return _failed(report, JobError(text))


def _check_result(result: object) -> None:
    """Before anything is named: what cannot be written down would leave an output whose job nobody can read."""
    if result is not None and not isinstance(result, dict):
        raise TypeError(f"run() returned a {type(result).__name__}, not a dict or None")
    try:
        encode(result)
    except (TypeError, ValueError) as error:
        raise TypeError(f"run() returned what is no JSON: {error}")


def claim(directory: int, pipe: int) -> int | None:
    """Make this process the one worker of the job; None when another was, or the job was declared void.

    The lock tells for all time and without pids whether the worker lives; it is never inherited by a child.
    """
    life = os.open("life", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        fcntl.flock(life, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    if os.fstat(life).st_size:
        return None
    os.write(life, encode(Claim(os.getpid(), pipe, time.monotonic())) + b"\n")
    return life


def _prepare(worker: Worker, job: JobType, request: Request, reporter: Reporter) -> None:
    """Lock the declared resources and whatever plan() finds, all in one order, before any work."""
    declared = _declared(job, request)
    report = reporter.report

    def waiting(path: str, holder: Holder | None) -> None:
        report.state, report.phase, report.holder = "waiting", None, holder
        report.reason = f"{path} is in use by {holder or 'another process'}"
        reporter.send()

    for _ in range(PLANS_MAX):
        wanted = {**declared, **worker.wanted}
        expected = {path: request.resolved[path] for path, _ in declared if path in request.resolved}
        worker.locks = acquire(
            list(wanted), on_conflict=request.on_conflict, waiting=waiting, expected=expected, doing=request.type
        )
        report.state, report.holder, report.reason = "running", None, None
        if worker.pools:
            worker.pools.check(worker.locks)
        report.phase = CHECKS if type(job).plan is not JobType.plan else None
        reporter.send()
        asked_before = dict(worker.wanted)
        worker.wanted.clear()
        worker.expected = Expected()
        job.plan(worker)
        if worker.wanted.keys() <= asked_before.keys():
            if report.phase == CHECKS:
                report.phase = None
                reporter.send()
            return
        for lock in worker.locks:
            lock.close()
    raise JobError(f"cannot {request.type}: its files were changed by somebody else each time they were looked at")


def _declared(job: JobType, request: Request) -> dict[tuple[str, Access], None]:
    """The declared resources that exist, after the checks that need no lock."""
    wanted: dict[tuple[str, Access], None] = {}
    seen: dict[str, str] = {}
    replace = bool(getattr(job, "replace", False))
    for field, resource in job.resources().items():
        path = getattr(job, field)
        if path is None or resource.is_pipe(path):
            continue
        if uri.is_name(path):  # what has no path here has no inode that could be locked
            continue
        key = identify(path, new=resource.new)
        if key in seen:
            raise BadArgument(f"cannot {request.type} {path}: it is the same file as {seen[key]}")
        seen[key] = path
        if resource.new:
            if key.startswith("new:"):
                continue
            if not replace:
                advice = ", or add --replace" if hasattr(job, "replace") else ""
                raise JobError(f"cannot {request.type} to {path}: it exists already; choose another name{advice}")
        wanted[path, resource.access_with(msgspec.structs.asdict(job))] = None
    return wanted


def _commit(worker: Worker, taken: signals.Signals, record: Any, result: dict[str, Any] | None) -> None:
    """Name the outputs. Once the intent is written down the job completes, whoever is killed."""
    unsealed = [output.target for output in worker.outputs if not output.sealed]
    if unsealed:
        raise JobError(f"the job type left {unsealed[0]} unfinished: create() is to be used in a with block")
    taken.defer()
    if not worker.outputs:
        return
    intents = [output.intent() for output in worker.outputs]
    record(Commit(intents, result))
    for output in worker.outputs:
        try:
            output.link()
        except OSError as error:
            undo(intents)
            if isinstance(error, FileExistsError):
                raise JobError(f"cannot create {output.target}: somebody else made it meanwhile; it was left alone")
            raise from_os_error(error, f"create {output.target}")
    for output in worker.outputs:
        try:
            sync_directory(output.directory_path)
        except OSError as error:  # complete and in place: to take it away again would only lose it
            worker.warn(f"{output.target} may not survive a power failure: its directory: {error.strerror}")


def _failed(report: Report, error: JobError, **more: Any) -> Result:
    failure = Failure(error.cause, str(error).replace("\n", " "), **more)
    return Result("failed", report, error.result, failure=failure)


def close_all_but(kept: set[int]) -> None:
    """Drop what the zygote holds: its socket, its locks, other jobs' pipes."""
    last = -1
    for fd in sorted(kept):
        if fd > last + 1:
            os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))


def _own_log(directory: int) -> None:
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600, dir_fd=directory)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _name_process(job: int) -> None:
    """So that ps, and whoever meets its lock, sees which job this is (15 bytes at most)."""
    comm = os.open("/proc/self/comm", os.O_WRONLY)
    os.write(comm, f"{WORKER_NAME}{job}".encode())
    os.close(comm)


def _be_nice(request: Request) -> None:
    if request.nice is None and request.ionice is None:
        return
    import psutil

    try:
        if request.nice is not None:
            os.nice(request.nice)
        if request.ionice is not None:
            ionice = psutil.IOPRIO_CLASS_IDLE if request.ionice == "idle" else psutil.IOPRIO_CLASS_BE
            psutil.Process().ionice(ionice)
    except (PermissionError, psutil.AccessDenied):
        raise BadArgument(f"cannot run {request.type} with nice {request.nice}: only root may go below 0")
