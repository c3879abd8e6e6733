"""--keep-partial and the retries that go on from it, as real jobs on real files and devices."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from jobvisor import Job, JobInfo, Supervisor, Verb
from jobvisor.asking import Options
from jobvisor.testing import halt_at, kill_at, wait_until
from jobvisor_workers import finished
from jobvisor_workers.protocol import Requester
from support.images import MIB, filled, qcow2
from support.lock_scenes import loop_device, need

TYPES = ["jobvisor_workers.testing", "support.keep_types"]
SIZE = 24 * MIB + 777
#: Bytes that are done when a job is ended, but for where that is the point of the test.
AFTER = 12 * MIB

End = Literal["abort", "kill"]


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("home"), types=TYPES) as supervisor:
        yield supervisor


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Data, zeroes that are stored, and a hole, in what is copied before and after AFTER."""
    path = filled(tmp_path / "source.raw", SIZE)
    with open(path, "r+b") as file:
        for start in (MIB, 13 * MIB):
            file.seek(start)
            file.write(bytes(3 * MIB))
    os.chmod(path, 0o640)
    return path


def ended(supervisor: Supervisor, end: End, type: str, *, phase: str = "copy", after: int = AFTER, **args: Any) -> Job:
    """A job that was ended in the middle."""
    args = {name: str(value) if isinstance(value, Path) else value for name, value in args.items()}
    if end == "abort":
        with halt_at(supervisor, phase, after=after) as halt:
            job = supervisor.start(type, keep_partial=True, **args)
            halt.wait()
            job.abort()
    else:
        with kill_at(supervisor, phase, after=after):
            job = supervisor.start(type, keep_partial=True, **args)
    assert job.info().state == ("aborted" if end == "abort" else "failed")
    return job


def partial_of(info: JobInfo) -> Path:
    assert info.partial, "nothing is kept"
    assert info.partial.path
    return Path(info.partial.path)


def temporaries(directory: Path) -> list[Path]:
    return list(directory.glob(".jobvisor-*"))


@pytest.mark.parametrize(("end", "sparse"), [("abort", None), ("kill", None), ("kill", True), ("abort", False)])
def test_a_clone_goes_on_where_it_ended(
    supervisor: Supervisor, source: Path, tmp_path: Path, end: End, sparse: bool | None
) -> None:
    target = tmp_path / "target.raw"
    job = ended(supervisor, end, "clone", source=source, target=target, sparse=sparse, reflink=False)
    info = job.info()
    partial = partial_of(info)
    assert info.partial
    assert AFTER - 8 * MIB <= info.partial.done <= AFTER
    assert (partial.parent, info.data_total) == (tmp_path, SIZE)
    assert partial.name.startswith(f".jobvisor-{job.id}-")
    assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    assert not target.exists()
    inode = partial.stat().st_ino

    again = job.retry().wait(60)
    assert again.ok, again.errmsg
    assert again.result
    assert (again.result["continued_from"], again.result["bytes_continued"]) == (job.id, info.partial.done)
    assert (again.data_processed, again.data_continued) == (SIZE, info.partial.done)
    assert target.read_bytes() == source.read_bytes()
    assert (target.stat().st_ino, stat.S_IMODE(target.stat().st_mode)) == (inode, 0o640)
    assert temporaries(tmp_path) == []
    assert job.info().partial is None


def test_without_it_nothing_is_kept(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    with kill_at(supervisor, "copy", after=AFTER) as death:
        job = supervisor.start("clone", source=str(source), target=str(target), reflink=False)
    assert death.info.partial is None
    assert list(tmp_path.iterdir()) == [source]
    again = job.retry().wait(60)
    assert (again.ok, again.data_continued) == (True, 0)
    assert again.result
    assert "continued_from" not in again.result


@pytest.mark.parametrize("end", ["abort", "kill"])
def test_before_anything_is_finished_nothing_is_kept(
    supervisor: Supervisor, source: Path, tmp_path: Path, end: End
) -> None:
    target = tmp_path / "target.raw"
    job = ended(supervisor, end, "clone", after=1, source=source, target=target, reflink=False)
    assert job.info().partial is None
    assert list(tmp_path.iterdir()) == [source]
    assert job.retry().wait(60).ok
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("replace", [False, True])
def test_all_is_copied_but_the_name_was_not_made(
    supervisor: Supervisor, source: Path, tmp_path: Path, replace: bool
) -> None:
    target = tmp_path / "target.raw"
    if replace:
        target.write_bytes(b"old")
    job = ended(
        supervisor, "kill", "clone", phase="sync", after=0, source=source, target=target, reflink=False, replace=replace
    )
    assert job.info().partial
    assert not replace or target.read_bytes() == b"old"
    again = job.retry().wait(60)
    assert (again.ok, again.data_continued) == (True, SIZE), again.errmsg
    assert target.read_bytes() == source.read_bytes()
    assert temporaries(tmp_path) == []


def test_convert_raw_to_raw(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    job = ended(supervisor, "abort", "convert", phase="convert", source=source, target=target, preallocation="falloc")
    again = job.retry().wait(60)
    assert again.ok, again.errmsg
    assert again.data_continued >= AFTER - 8 * MIB
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("type", ["clone", "convert"])
def test_what_qemu_img_writes_begins_anew_and_says_so(
    supervisor: Supervisor, source: Path, tmp_path: Path, type: str
) -> None:
    need("qemu-img")
    image, target = qcow2(tmp_path / "source.qcow2", source), tmp_path / "target"
    job = supervisor.start(type, source=str(image), target=str(target), keep_partial=True)
    info = job.wait(60)
    assert info.ok
    assert any(text.startswith(f"nothing is kept of {target}") for text in info.warnings)
    target.unlink()
    job = ended(supervisor, "kill", type, phase="sync", after=0, source=image, target=target)
    assert job.info().partial is None
    assert temporaries(tmp_path) == []
    again = job.retry().wait(60)
    assert (again.ok, again.data_continued) == (True, 0)


def test_retries_of_retries(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    first = ended(supervisor, "kill", "clone", after=9 * MIB, source=source, target=target, reflink=False)
    done = [first.info().partial]
    last = first
    for after, end in ((17 * MIB, "abort"), (24 * MIB + 1, "kill")):
        if end == "abort":
            with halt_at(supervisor, "copy", after=after) as halt:
                last = last.retry()
                halt.wait()
                last.abort()
        else:
            with kill_at(supervisor, "copy", after=after):
                last = first.retry()  # each of the row goes on from the newest state
        done.append(last.info().partial)
        assert first.info().partial == done[-1]
    assert all(done)
    assert [each.path for each in done if each] == [done[0].path if done[0] else ""] * 3
    places = [each.done for each in done if each]
    assert places == sorted(set(places))
    # Forgotten jobs leave what others of the row need.
    last.forget()
    assert partial_of(first.info()).exists()
    again = first.retry().wait(60)
    assert (again.ok, again.data_continued) == (True, places[-1]), again.errmsg
    assert target.read_bytes() == source.read_bytes()
    assert temporaries(tmp_path) == []


def test_two_retries_at_the_same_time(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    job = ended(supervisor, "kill", "clone", source=source, target=target, reflink=False)
    with halt_at(supervisor, "copy") as halt:
        one = job.retry()
        halt.wait()
        other = job.retry()
        assert other.info().state == "queued"
    assert one.wait(60).ok
    info = other.wait(60)
    assert info.errmsg
    assert "it exists already" in info.errmsg
    assert target.read_bytes() == source.read_bytes()


def test_forget_takes_the_partial_with_it(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    job = ended(supervisor, "kill", "clone", source=source, target=tmp_path / "target.raw", reflink=False)
    assert partial_of(job.info()).exists()
    job.forget()
    assert list(tmp_path.iterdir()) == [source]


def test_also_if_the_last_to_need_it_was_a_retry_that_did_not_come_to_it(
    supervisor: Supervisor, source: Path, tmp_path: Path
) -> None:
    job = ended(supervisor, "kill", "clone", source=source, target=tmp_path / "target.raw", reflink=False)
    source.rename(tmp_path / "elsewhere")
    again = job.retry()
    assert "no such file" in str(again.wait(60).errmsg)
    job.forget()
    assert partial_of(again.info()).exists()
    again.forget()
    assert list(tmp_path.iterdir()) == [tmp_path / "elsewhere"]


def test_a_later_supervisor_knows_it_and_expiry_removes_it(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, target = tmp_path / "home", tmp_path / "target.raw"
    with Supervisor(home, types=TYPES) as supervisor:
        kept = ended(supervisor, "kill", "clone", source=source, target=target, reflink=False).info()
        number, partial = kept.id, partial_of(kept)
    with Supervisor(home, types=TYPES) as supervisor:
        assert supervisor.job(number).info().partial == kept.partial
    monkeypatch.setattr("jobvisor.startup.DAYS_KEPT", 0)
    with Supervisor(home, types=TYPES) as supervisor:
        wait_until(lambda: not supervisor.jobs())
        assert not partial.exists()
        assert not list((home / "jobs").iterdir())


# --- both ends must be what they were --------------------------------------------------------------------------------


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def write_as_if_never(path: Path) -> None:
    facts = path.stat()
    with open(path, "r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def write(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"other")


def exchange(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.rename(other, path)


@pytest.mark.parametrize(
    ("which", "change", "end", "why"),
    [
        ("source", grow, "abort", f"it had {SIZE} bytes and has {SIZE + 4}"),
        ("source", write, "kill", "it was written to at "),
        ("source", write_as_if_never, "abort", "its attributes were changed at "),
        ("source", exchange, "kill", "another file has that name now"),
        ("partial", grow, "kill", f"it had {SIZE} bytes and has {SIZE + 4}"),
        ("partial", write, "abort", "it was written to at "),
        ("partial", write, "kill", "it was changed at "),
        ("partial", write_as_if_never, "abort", "its attributes were changed at "),
        ("partial", write_as_if_never, "kill", "it was changed at "),
        ("partial", exchange, "abort", "another file has that name now"),
        ("partial", exchange, "kill", "another file has that name now"),
        ("partial", os.unlink, "kill", "No such file or directory"),
    ],
)
def test_what_was_changed_is_not_gone_on_with(
    supervisor: Supervisor,
    source: Path,
    tmp_path: Path,
    which: str,
    change: Callable[[Path], None],
    end: End,
    why: str,
) -> None:
    target = tmp_path / "target.raw"
    job = ended(supervisor, end, "clone", source=source, target=target, reflink=False)
    partial = partial_of(job.info())
    changed = source if which == "source" else partial
    change(changed)
    before = partial.read_bytes() if partial.exists() else None
    info = job.retry().wait(60)
    assert info.state == "failed"
    assert info.errmsg
    for words in (str(changed), why, "start it anew"):
        assert words in info.errmsg
    assert not target.exists()
    assert before is None or partial.read_bytes() == before
    job.forget()
    supervisor.job(info.id).forget()
    assert temporaries(tmp_path) == []


def test_what_the_map_does_not_name_may_be_anything(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    """As after a loss of power: the kernel had only taken, not written, what came after the last line."""
    target = tmp_path / "target.raw"
    job = ended(supervisor, "kill", "clone", source=source, target=target, reflink=False)
    info = job.info()
    assert info.partial
    with open(partial_of(info), "r+b") as file:
        file.seek(info.partial.done)
        file.write(random.Random(1).randbytes(SIZE - info.partial.done))
    # What the kernel said of the worker's end was lost, so that the garbage is not taken for a later change.
    (Path(info.log).parent / "exit").unlink()
    again = job.retry().wait(60)
    assert (again.ok, again.data_continued) == (True, info.partial.done), again.errmsg
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("how", ["garbled", "torn"])
def test_a_damaged_map_restarts_or_refuses(
    supervisor: Supervisor, source: Path, tmp_path: Path, line: int, how: str
) -> None:
    target = tmp_path / "target.raw"
    job = ended(supervisor, "kill", "clone", source=source, target=target, reflink=False)
    path = Path(job.info().log).parent / finished.NAME
    content = path.read_bytes()
    lines = content.split(b"\n")
    at = len(b"\n".join(lines[:line])) + 20
    path.write_bytes(content[:at] + (b"" if how == "torn" else bytes([content[at] ^ 1]) + content[at + 1 :]))
    info = job.retry().wait(60)
    assert info.ok or "start it anew" in str(info.errmsg)
    assert not info.ok or target.read_bytes() == source.read_bytes()
    job.forget()
    supervisor.job(info.id).forget()
    assert temporaries(tmp_path) == []


# --- work in place ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "algorithm", "phase", "passes_done"),
    [
        ("abort", "zero", "pass 1 of 1: 0x00", 0),
        ("kill", "zero", "pass 1 of 1: 0x00", 0),
        ("kill", "random", "pass 1 of 1: random", 0),
        ("abort", "dod", "pass 2 of 4: 0x00", 1),
        ("kill", "dod", "pass 4 of 4: verify 0xff", 3),
        ("kill", "gutmann", "pass 7 of 35: 0x924924", 6),
    ],
)
def test_a_wipe_goes_on_where_it_ended(
    supervisor: Supervisor, tmp_path: Path, end: End, algorithm: str, phase: str, passes_done: int
) -> None:
    size = (13 if algorithm != "gutmann" else 7) * MIB + 777
    volume = filled(tmp_path / "volume.raw", size)
    old = volume.read_bytes()
    after = passes_done * size + 6 * MIB
    job = ended(supervisor, end, "wipe", phase=phase, after=after + MIB // 2, volume=volume, algorithm=algorithm)
    info = job.info()
    assert info.partial
    assert info.partial.path is None
    assert passes_done * size < info.partial.done <= after + 6 * MIB
    again = job.retry().wait(60)
    assert again.ok, again.errmsg
    assert again.result
    assert again.result["continued_from"] == job.id
    assert 0 < again.data_continued <= info.partial.done
    assert again.data_processed == again.data_total
    new = volume.read_bytes()
    assert len(new) == size
    assert all(new[at : at + 512] != old[at : at + 512] for at in range(0, size, 512))
    expected = {"zero": b"\x00", "dod": b"\xff"}.get(algorithm)
    assert expected is None or new == expected * size


@pytest.mark.parametrize("phase", ["pass 1 of 2: random", "pass 2 of 2: verify random"])
def test_what_is_read_back_is_what_this_job_wrote(supervisor: Supervisor, tmp_path: Path, phase: str) -> None:
    size = 13 * MIB + 777
    volume = filled(tmp_path / "volume.raw", size)
    old, after = volume.read_bytes(), 7 * MIB + (size if "verify" in phase else 0)
    job = ended(supervisor, "kill", "wipe", phase=phase, after=after, volume=volume, algorithm="random", verify=True)
    again = job.retry().wait(60)
    assert again.ok, again.errmsg
    assert again.result
    assert again.result["verified"]
    new = volume.read_bytes()
    assert all(new[at : at + 512] != old[at : at + 512] for at in range(0, size, 512))


@pytest.mark.parametrize("how", [{"algorithm": "trim"}, {"content": True}])
def test_a_wipe_that_cannot_go_on_says_so(supervisor: Supervisor, tmp_path: Path, how: dict[str, Any]) -> None:
    volume = filled(tmp_path / "volume.raw", MIB)
    info = supervisor.start("wipe", volume=str(volume), keep_partial=True, **how).wait(60)
    assert any("begins anew in any case" in text for text in info.warnings), info.errmsg


@pytest.mark.parametrize(
    ("end", "change"),
    [("abort", write), ("kill", write), ("abort", write_as_if_never), ("kill", write_as_if_never), ("kill", exchange)],
)
def test_a_wipe_of_what_was_changed_does_not_go_on(
    supervisor: Supervisor, tmp_path: Path, end: End, change: Callable[[Path], None]
) -> None:
    volume = filled(tmp_path / "volume.raw", 13 * MIB)
    job = ended(supervisor, end, "wipe", phase="pass 1 of 1: 0x00", after=12 * MIB, volume=volume)
    change(volume)
    before = volume.read_bytes()
    info = job.retry().wait(60)
    assert info.state == "failed"
    assert f"cannot continue job {job.id}: {volume} is not what it was: " in str(info.errmsg)
    assert volume.read_bytes() == before


@pytest.mark.parametrize("end", ["abort", "kill"])
def test_a_device_goes_on_unless_it_was_written_to(
    supervisor: Supervisor, source: Path, tmp_path: Path, end: End
) -> None:
    backing = filled(tmp_path / "device.img", 32 * MIB, seed=2)
    with loop_device(backing) as device:
        args: dict[str, Any] = {"source": source, "target": device, "replace": True}
        job = ended(supervisor, end, "clone", **args)
        again = job.retry().wait(60)
        assert again.ok, again.errmsg
        assert again.data_continued >= AFTER - 8 * MIB
        with open(device, "rb") as file:
            assert file.read(SIZE) == source.read_bytes()
        assert any("cannot be told" in text for text in again.warnings) == (end == "kill")

        job = ended(supervisor, "abort", "clone", **args)
        with open(device, "r+b") as file:
            file.write(b"other")
        info = job.retry().wait(60)
        assert (info.state, "it was written to" in str(info.errmsg)) == ("failed", True), info.errmsg


def test_a_device_that_is_read_must_not_be_written_to(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    with open(source, "ab") as file:
        file.truncate(-(-SIZE // 4096) * 4096)
    with loop_device(source) as device:
        job = ended(supervisor, "abort", "clone", source=Path(device), target=tmp_path / "a", reflink=False)
        assert job.retry().wait(60).ok
        job = ended(supervisor, "abort", "clone", source=Path(device), target=tmp_path / "b", reflink=False)
        with open(device, "r+b") as file:
            file.write(b"other")
        info = job.retry().wait(60)
        assert f"{device} is not what it was: it was written to" in str(info.errmsg)


# --- another user's job ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for somebody else")
@pytest.mark.parametrize("end", ["abort", "kill"])
def test_the_partial_of_another_users_job_is_that_users(supervisor: Supervisor, end: End) -> None:
    ann = Requester(65533, 65533, [65533], "ann", "/nonexistent")
    core = supervisor._core.seen_by(ann)
    with tempfile.TemporaryDirectory(prefix="jobvisor-keep-") as name:
        room = Path(name)
        source, target = filled(room / "source", SIZE), room / "target"
        os.chown(room, ann.uid, ann.gid)
        args = {"source": str(source), "target": str(target), "reflink": False, "keep_partial": True}

        def half(bandwidth: int = 40 * MIB) -> Job:
            job = core.start("clone", Options(bandwidth=bandwidth), args, umask=0o77).result(10).id
            wait_until(lambda: core.info(job).result().data_processed >= 16 * MIB)
            if end == "abort":
                core.verb(Verb.ABORT, job, wait=True).result(10)
            else:
                os.kill(supervisor.pids()[job], signal.SIGKILL)
                core.wait(job, None)[0].result(10)
            return supervisor.job(job)

        job = half()
        facts = partial_of(job.info()).stat()
        assert (facts.st_uid, stat.S_IMODE(facts.st_mode)) == (ann.uid, 0o600)
        assert (Path(job.info().log).parent / finished.NAME).stat().st_uid == 0
        again = core.wait(core.retry(job.id).result(10).id, None)[0].result(30)
        assert again.ok, again.errmsg
        assert again.data_continued >= 8 * MIB
        assert target.read_bytes() == source.read_bytes()
        assert target.stat().st_uid == ann.uid

        target.unlink()
        job = half()
        partial = partial_of(job.info())
        # What ann puts there instead is ann's to lose, and nobody else's.
        secret = room / "roots"
        secret.write_text("root's")
        partial.unlink()
        partial.symlink_to(secret)
        info = core.wait(core.retry(job.id).result(10).id, None)[0].result(30)
        assert info.state == "failed"
        for number in (job.id, info.id):
            core.forget(number).result(10)
        assert sorted(room.iterdir()) == sorted([source, secret])


# --- upload, download ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("abort", {}),
        ("kill", {"checksum": "sha256", "offset": 5000}),
        ("kill", {"sparse": True}),
        ("abort", {"sparse": False, "offset": 4096}),
    ],
)
def test_a_download_goes_on(
    supervisor: Supervisor, source: Path, tmp_path: Path, end: End, how: dict[str, Any]
) -> None:
    target = tmp_path / "target.raw"
    job = ended(supervisor, end, "download", volume=source, target=target, **how)
    again = job.retry().wait(60)
    assert again.ok, again.errmsg
    assert again.result
    assert AFTER - 8 * MIB <= again.data_continued <= AFTER
    content = source.read_bytes()[how.get("offset", 0) :]
    assert target.read_bytes() == content
    assert "checksum" not in how or again.result["digest"] == hashlib.sha256(content).hexdigest()
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize(
    ("end", "how"),
    [("abort", {"expect": True}), ("kill", {"offset": 5000}), ("kill", {"sparse": True})],
)
def test_an_upload_goes_on(supervisor: Supervisor, source: Path, tmp_path: Path, end: End, how: dict[str, Any]) -> None:
    volume = filled(tmp_path / "volume.raw", SIZE + 10_000, seed=2)
    content, offset = source.read_bytes(), how.get("offset", 0)
    expected = bytearray(volume.read_bytes())
    expected[offset : offset + SIZE] = content
    if "expect" in how:
        how = {"expect": hashlib.sha256(content).hexdigest()}
    job = ended(supervisor, end, "upload", phase="write", volume=volume, source=source, **how)
    again = job.retry().wait(60)
    assert again.ok, again.errmsg
    assert again.result
    assert (again.result["size"], again.data_processed) == (SIZE, SIZE)
    assert again.data_continued >= AFTER - 8 * MIB
    assert volume.read_bytes() == expected


def test_an_upload_into_what_was_changed_does_not_go_on(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    volume = filled(tmp_path / "volume.raw", SIZE, seed=2)
    job = ended(supervisor, "kill", "upload", phase="write", volume=volume, source=source)
    write(volume)
    info = job.retry().wait(60)
    assert f"{volume} is not what it was" in str(info.errmsg)


def test_an_upload_that_grows_its_volume_begins_anew(supervisor: Supervisor, source: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume.raw"
    volume.touch()
    info = supervisor.start("upload", volume=str(volume), source=str(source), keep_partial=True).wait(60)
    assert any(text.startswith("how far it came is not noted") for text in info.warnings), info.errmsg
    assert volume.read_bytes() == source.read_bytes()
