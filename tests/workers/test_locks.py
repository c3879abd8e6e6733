"""locks.py and turns.py: who gets a resource, who waits for whom, and what is left when nobody does."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobvisor_workers import ofd, turns
from jobvisor_workers.errors import BadArgument, Held, JobError
from jobvisor_workers.jobtype import READ, WRITE, Access
from jobvisor_workers.locks import Lock, acquire
from jobvisor_workers.protocol import Holder, OnConflict
from jobvisor_workers.resources.path import identify
from support.lock_scenes import (
    flock_is_free,
    flocked,
    image,
    line,
    loop_device,
    mounted,
    need,
    program,
    release,
    started,
    vm,
    wait_until,
)


def no_wait(path: str, holder: Holder | None) -> None:
    raise AssertionError(f"waits for {path}: {holder}")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return image(tmp_path / "disk.raw")


@pytest.fixture(autouse=True)
def _every_descriptor_is_closed() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def take() -> Iterator[Callable[..., list[Lock]]]:
    """acquire() that closes everything at the end of the test."""
    taken: list[Lock] = []

    def take(
        *wanted: tuple[Path | str, Access],
        on_conflict: OnConflict = "fail",
        waiting: turns.Waiting = no_wait,
        **more: dict[str, str],
    ) -> list[Lock]:
        pairs = [(str(path), access) for path, access in wanted]
        result = acquire(pairs, on_conflict=on_conflict, waiting=waiting, doing="wipe", **more)
        taken.extend(result)
        return result

    yield take
    for lock in taken:
        lock.close()


Take = Callable[..., list[Lock]]


def held(take: Take, *wanted: tuple[Path, Access], on_conflict: OnConflict = "fail") -> Held:
    with pytest.raises(Held) as caught:
        take(*wanted, on_conflict=on_conflict)
    return caught.value


def silent(process: subprocess.Popen[str]) -> bool:
    """True if it has said nothing yet that was not read."""
    assert process.stdout is not None
    return not select.select([process.stdout], [], [], 0)[0]


# --- what a lock is ------------------------------------------------------------------------------------------------


def test_a_lock_is_an_open_file(disk: Path, take: Take) -> None:
    read, write = take((disk, READ))[0], take((image(disk.with_name("other")), WRITE))[0]
    assert (read.path, read.access, read.kind, read.size) == (str(disk), READ, "file", 1 << 20)
    assert read.key == identify(str(disk))
    assert fcntl.fcntl(read.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert fcntl.fcntl(write.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    assert not os.get_inheritable(read.fd)
    assert read.descriptors == (read.fd,)


def test_closing_is_releasing_and_may_be_done_twice(disk: Path, take: Take) -> None:
    with take((disk, WRITE))[0] as lock:
        assert not flock_is_free(disk)
    assert flock_is_free(disk)
    lock.close()


def test_the_order_is_that_of_the_call_and_the_locks_that_of_the_keys(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [image(tmp_path / f"{number}.raw") for number in range(6)]
    order: list[str] = []

    def turn(fd: int, path: str, *rest: object) -> bool:
        order.append(path)
        return False

    monkeypatch.setattr(turns, "take", turn)
    for wanted in (paths, paths[::-1]):
        order.clear()
        assert [lock.path for lock in take(*((path, READ) for path in wanted))] == [str(path) for path in wanted]
        assert order == sorted(map(str, paths), key=identify)


def test_all_or_nothing(disk: Path, tmp_path: Path, take: Take) -> None:
    other = image(tmp_path / "other.raw")
    with flocked(other):
        assert held(take, (disk, WRITE), (other, WRITE)).resource == str(other)
        assert flock_is_free(disk)


def test_readers_share_and_a_writer_is_alone(disk: Path, take: Take) -> None:
    take((disk, READ))
    (second,) = take((disk, READ))
    assert "in use by another process" in str(held(take, (disk, WRITE)))
    second.close()


# --- one resource under two names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [os.link, os.symlink, lambda path, name: None])
def test_source_and_target_may_not_be_one_file(disk: Path, take: Take, link: Callable[[Path, Path], object]) -> None:
    name = disk.with_name("name.raw")
    link(disk, name)
    target = name if name.exists() else disk
    with pytest.raises(BadArgument) as caught:
        take((disk, READ), (target, WRITE))
    assert "source and target are the same file" in str(caught.value)
    assert str(disk) in str(caught.value)
    assert str(target) in str(caught.value)
    assert flock_is_free(disk)


def test_one_file_read_under_two_names_is_one_lock(disk: Path, take: Take) -> None:
    name = disk.with_name("name.raw")
    os.link(disk, name)
    first, second = take((disk, READ), (name, READ))
    assert (first.path, second.path) == (str(disk), str(name))
    assert (first.fd, first.size) == (second.fd, second.size)
    second.close()
    first.close()
    assert flock_is_free(disk)


def test_two_nodes_of_one_device_are_one_device(disk: Path, tmp_path: Path, take: Take) -> None:
    with loop_device(disk) as device:
        node = second_node(device, tmp_path)
        with pytest.raises(BadArgument) as caught:
            take((device, READ), (node, WRITE))
        assert f"source and target are the same device ({device} and {node})" in str(caught.value)


def second_node(device: Path, directory: Path) -> Path:
    """Another node of the device, made by mknod."""
    node = directory / "node"
    try:
        os.mknod(node, 0o600 | 0o060000, device.stat().st_rdev)
        os.close(os.open(node, os.O_RDONLY))
    except PermissionError as error:
        pytest.skip(f"no device nodes here: {error}")
    return node


# --- scripts and jobs ----------------------------------------------------------------------------------------------


def test_a_script_is_named_when_we_fail(disk: Path, take: Take) -> None:
    with flocked(disk) as script:
        error = held(take, (disk, WRITE))
    assert error.holder is not None
    assert (error.holder.kind, error.holder.pid) == ("flock", script.pid)
    assert str(error).startswith(f"cannot wipe {disk}: in use by pid {script.pid} (flock {disk}"[:100])


@pytest.mark.parametrize("on_conflict", ["queue", "wait"])
def test_a_script_is_named_while_we_wait(disk: Path, on_conflict: str) -> None:
    with flocked(disk) as script, program("--on-conflict", on_conflict, f"write:{disk}") as worker:
        assert line(worker) == f"waiting flock {script.pid} None"
        os.killpg(script.pid, signal.SIGKILL)
        assert line(worker) == "held"


def test_a_new_holder_is_told(disk: Path) -> None:
    """Two scripts share it; the first leaves, and the job is told of the other. Once a second somebody looks."""
    with flocked(disk, "--shared") as first, started("flock", "--shared", disk, "sleep", "600") as second:
        wait_until(lambda: str(second.pid) in Path("/proc/locks").read_text(), "the second shares it")
        with program(f"write:{disk}") as worker:
            said = line(worker)
            pids = [str(first.pid), str(second.pid)]
            assert said.split()[2] in pids
            now, later = pids if said.split()[2] == pids[0] else pids[::-1]
            os.killpg(int(now), signal.SIGKILL)
            assert line(worker) == f"waiting flock {later} None"


def test_jobs_are_served_in_the_order_they_came(disk: Path, take: Take) -> None:
    (ours,) = take((disk, WRITE))
    with program("--job", "1", f"write:{disk}") as first:
        assert line(first) == f"waiting flock {os.getpid()} None"
        with program("--job", "2", f"write:{disk}") as second:
            line(second)
            ours.close()
            assert line(first) == "held"
            assert silent(second) or line(second).startswith("waiting job")
            release(first)
            while (said := line(second)) != "held":
                assert said.startswith("waiting")


def test_a_waiting_writer_is_not_starved_by_readers(disk: Path) -> None:
    """Readers that come while a writer waits are named the writer, wait, and get their turn after it."""
    with reader_and_writer(disk) as (reader, writer), program("--job", "3", f"read:{disk}") as late:
        assert line(late) == f"waiting job {writer.pid} 2"
        release(reader)
        assert line(writer) == "held"
        wait_until(lambda: not gate_is_held(disk), "the gate is open again")
        assert silent(late)
        release(writer)
        assert line(late) == "held"


def test_who_would_rather_fail_than_wait_passes_by_a_writer_that_waits(disk: Path, take: Take) -> None:
    with reader_and_writer(disk):
        take((disk, READ), on_conflict="fail")


@contextmanager
def reader_and_writer(disk: Path) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """Job 1 reads, job 2 waits to write and stands in the gate."""
    with program("--job", "1", f"read:{disk}") as reader:
        assert line(reader) == "held"
        with program("--job", "2", f"write:{disk}") as writer:
            assert line(writer) == f"waiting job {reader.pid} 1"
            wait_until(lambda: gate_is_held(disk), "the writer stands in the gate")
            yield reader, writer


def gate_is_held(path: Path) -> bool:
    with open(path, "rb") as file:
        return ofd.taken(file.fileno(), ofd.SHARED, turns.GATE)


def test_a_killed_waiter_leaves_the_gate(disk: Path, take: Take) -> None:
    take((disk, READ))
    with program(f"write:{disk}") as writer:
        line(writer)
        wait_until(lambda: gate_is_held(disk), "the writer stands in the gate")
    assert not gate_is_held(disk)
    take((disk, READ), on_conflict="queue")


def test_of_thirty_processes_one_at_a_time_wins(disk: Path) -> None:
    disk.write_bytes(b"0")
    with program("--contend", "30", "5", str(disk)) as contenders:
        assert contenders.wait(60) == 0
    assert disk.read_bytes() == b"150"
    assert not disk.with_name(disk.name + ".winner").exists()


def test_term_ends_a_wait_and_leaves_nothing_open(disk: Path, tmp_path: Path) -> None:
    free = image(tmp_path / "free.raw")
    with flocked(disk), program(f"write:{disk}", f"write:{free}") as worker:
        assert line(worker).startswith("waiting flock")
        worker.terminate()
        assert line(worker) == "left 0"
        assert worker.wait(10) == 143
        assert flock_is_free(free)


def test_term_ends_the_wait_at_the_gate(disk: Path) -> None:
    with reader_and_writer(disk) as (_, writer), program(f"read:{disk}") as late:
        assert line(late).startswith("waiting job")
        for worker in (late, writer):
            worker.terminate()
            assert line(worker) == "left 0"
        wait_until(lambda: not gate_is_held(disk), "the gate is open again")


def test_a_child_keeps_the_lock_when_the_worker_is_killed(disk: Path, take: Take) -> None:
    with program("--job", "4", "--child", f"write:{disk}") as worker:
        child = int(line(worker).split()[1])
        worker.kill()
        worker.wait()
        for access in (READ, WRITE):
            error = held(take, (disk, access))
            assert error.holder is not None
            assert error.holder.pid == child
        os.kill(child, signal.SIGKILL)
        take((disk, WRITE), on_conflict="queue", waiting=lambda *_: None)


# --- the file under the name ---------------------------------------------------------------------------------------


def test_a_file_replaced_while_we_waited_is_looked_up_again(disk: Path, tmp_path: Path, take: Take) -> None:
    with flocked(disk) as script:
        fresh = image(tmp_path / "fresh.raw", 4096)

        def replace(path: str, holder: Holder | None) -> None:
            os.rename(fresh, disk)
            os.killpg(script.pid, signal.SIGKILL)

        (lock,) = take((disk, WRITE), on_conflict="queue", waiting=replace)
    assert lock.key == identify(str(disk))
    assert lock.size == 4096
    assert os.fstat(lock.fd).st_nlink == 1


def test_a_file_replaced_each_time_is_given_up(disk: Path, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    real = turns.take

    def replaced_meanwhile(*arguments: object) -> bool:
        os.rename(image(disk.with_name("fresh")), disk)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(turns, "take", replaced_meanwhile)
    with pytest.raises(JobError) as caught:
        take((disk, WRITE))
    assert str(caught.value).startswith(f"cannot wipe {disk}: it is not the file you named any more")


def test_a_file_removed_while_we_waited(disk: Path, take: Take) -> None:
    with flocked(disk) as script:

        def remove(path: str, holder: Holder | None) -> None:
            disk.unlink()
            os.killpg(script.pid, signal.SIGKILL)

        with pytest.raises(JobError) as caught:
            take((disk, WRITE), on_conflict="queue", waiting=remove)
    assert str(caught.value) == f"cannot open {disk} for writing: no such file"


def test_the_size_is_that_of_the_locked_file(disk: Path, take: Take) -> None:
    with flocked(disk) as script:

        def grow(path: str, holder: Holder | None) -> None:
            os.truncate(disk, 7777)
            os.killpg(script.pid, signal.SIGKILL)

        (lock,) = take((disk, READ), on_conflict="queue", waiting=grow)
    assert lock.size == 7777


def test_what_was_accepted_is_what_is_opened(disk: Path, take: Take) -> None:
    key = identify(str(disk))
    take((disk, READ), expected={str(disk): key})
    os.rename(image(disk.with_name("fresh")), disk)
    with pytest.raises(JobError) as caught:
        take((disk, READ), expected={str(disk): key})
    assert str(caught.value).startswith(f"cannot wipe {disk}: it is not the file that was accepted")


def test_what_cannot_be_opened(disk: Path, tmp_path: Path, take: Take) -> None:
    os.mkfifo(tmp_path / "fifo")
    subprocess.run(["chattr", "+i", disk], check=True)
    try:
        for path, access, reason in (
            (tmp_path / "none", READ, f"open {tmp_path}/none for reading: no such file"),
            (tmp_path, WRITE, f"open {tmp_path} for writing: it is a directory, not a file or block device"),
            (tmp_path / "fifo", READ, f"open {tmp_path}/fifo for reading: it is a pipe, not a file or block device"),
            (disk, WRITE, f"open {disk} for writing: Operation not permitted"),
        ):
            with pytest.raises(JobError) as caught:
                take((path, access))
            assert str(caught.value) == f"cannot {reason}"
    finally:
        subprocess.run(["chattr", "-i", disk], check=True)


# --- QEMU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_conflict", ["fail", "queue"])
def test_a_vm_is_named_and_not_waited_for(disk: Path, take: Take, on_conflict: OnConflict) -> None:
    with vm(disk) as machine:
        for access in (READ, WRITE):
            error = held(take, (disk, access), on_conflict=on_conflict)
            assert str(error) == (
                f"cannot wipe {disk}: in use by QEMU pid {machine.pid} (VM web1); "
                "shut it down, or add --on-conflict wait"
            )
        assert flock_is_free(disk)
    take((disk, WRITE))


def test_while_waiting_for_a_vm_nothing_is_held(disk: Path, tmp_path: Path) -> None:
    other = image(tmp_path / "other.raw")
    with vm(disk) as machine, program("--on-conflict", "wait", f"write:{disk}", f"write:{other}") as worker:
        assert line(worker) == f"waiting qemu {machine.pid} None"
        # Between two looks everything is free; during one it is not, so that a script gets its turn among them.
        assert subprocess.run(["flock", other, "true"], timeout=20).returncode == 0
        machine.kill()
        machine.wait()
        assert line(worker) == "held"
        assert not flock_is_free(other)


def test_term_ends_the_wait_for_a_vm(disk: Path) -> None:
    with vm(disk), program("--on-conflict", "wait", f"write:{disk}") as worker:
        assert line(worker).startswith("waiting qemu")
        worker.terminate()
        assert line(worker) == "left 0"


def test_while_we_hold_it_qemu_is_refused(disk: Path, take: Take) -> None:
    need("qemu-io")
    command = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(disk)]
    (lock,) = take((disk, WRITE))
    assert subprocess.run(command, capture_output=True).returncode != 0
    lock.close()
    assert subprocess.run(command, capture_output=True).returncode == 0


# --- block devices -------------------------------------------------------------------------------------------------


def test_a_device_for_writing_is_claimed(disk: Path, take: Take) -> None:
    with loop_device(disk) as device:
        (lock,) = take((device, WRITE))
        assert (lock.kind, lock.size, len(lock.descriptors)) == ("block", 1 << 20, 2)
        with pytest.raises(OSError):
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        lock.close()
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        (lock,) = take((device, READ))
        assert len(lock.descriptors) == 1
        lock.close()


@pytest.mark.parametrize("on_conflict", ["fail", "queue"])
def test_a_mounted_device_and_the_file_behind_it_are_refused(
    tmp_path: Path, take: Take, on_conflict: OnConflict
) -> None:
    disk = image(tmp_path / "disk.raw", 8 << 20)
    with loop_device(disk) as device, mounted(device) as where:
        for name in (device, second_node(device, tmp_path)):
            error = held(take, (name, WRITE), on_conflict=on_conflict)
            assert error.holder == Holder("mount", path=str(where))
            assert str(error) == f"cannot wipe {name}: in use by a mounted filesystem ({where}); release it first"
        error = held(take, (disk, WRITE), on_conflict=on_conflict)
        assert error.holder == Holder("loop", path=f"{device} (mounted on {where})")
        for lock in take((device, READ), (disk, READ)):
            lock.close()


def test_a_mount_is_waited_for_when_asked(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.raw", 8 << 20)
    with loop_device(disk) as device, program("--on-conflict", "wait", f"write:{device}") as worker:
        # The worker is stopped until the mount stands: it would win otherwise.
        worker.send_signal(signal.SIGSTOP)
        with mounted(device):
            worker.send_signal(signal.SIGCONT)
            assert line(worker) == "waiting mount None None"
        assert line(worker) == "held"
        release(worker)


def test_an_attached_file_that_nobody_uses_is_free(disk: Path, take: Take) -> None:
    with loop_device(disk):
        take((disk, WRITE))


def test_jobs_wait_for_each_other_on_a_device_also_through_a_second_node(disk: Path, tmp_path: Path) -> None:
    with loop_device(disk) as device:
        for name in (device, second_node(device, tmp_path)):
            with program("--job", "1", f"write:{device}") as first:
                assert line(first) == "held"
                with program("--job", "2", f"write:{name}") as second:
                    assert line(second) == f"waiting job {first.pid} 1"
                    release(first)
                    assert line(second) == "held"
                    release(second)


def test_a_moments_look_of_udev_is_outlasted(disk: Path, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    with loop_device(disk) as device:
        udev = os.open(device, os.O_RDONLY)
        fcntl.flock(udev, fcntl.LOCK_SH)
        monkeypatch.setattr("jobvisor_workers.qemu_locks.time.sleep", lambda _: os.close(udev))
        take((device, WRITE), on_conflict="fail")[0].close()


# --- NFS, as far as it can be had without a server -----------------------------------------------------------------


def test_on_nfs_a_byte_stands_for_the_flock(disk: Path, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobvisor_workers.turns.libc.filesystem_type", lambda fd: turns.NFS)
    (first,), (second,) = take((disk, READ)), take((disk, READ))
    assert flock_is_free(disk)
    held(take, (disk, WRITE))
    second.close()

    told = []

    def waiting(path: str, holder: Holder | None) -> None:
        told.append(path)
        first.close()

    take((disk, WRITE), on_conflict="queue", waiting=waiting)
    assert told == [str(disk)]
    held(take, (disk, READ))
