"""holders.py and devices.py: who has it, by the kernel's own tables."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor_workers import devices, holders, ofd
from jobvisor_workers.protocol import Holder
from support.lock_scenes import (
    flock_is_free,
    flocked,
    image,
    line,
    loop_device,
    mounted,
    program,
    started,
    vm,
    wait_until,
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return image(tmp_path / "disk.raw", 32 << 20)


@pytest.fixture
def fd(disk: Path) -> Iterator[int]:
    opened = os.open(disk, os.O_RDONLY)
    yield opened
    os.close(opened)


def test_nobody(fd: int) -> None:
    assert holders.flock_holder(fd) is None
    assert holders.qemu_holder(fd) is None


def test_a_script_with_flock_is_named_by_pid_and_command(disk: Path, fd: int) -> None:
    with flocked(disk) as script:
        whole = f"flock {disk} sleep 600"
        command = whole if len(whole) <= 80 else whole[:79] + "…"
        assert holders.flock_holder(fd) == Holder("flock", pid=script.pid, command=command)


def test_who_only_waits_is_no_holder(disk: Path, fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    with started("flock", disk, "true") as waiter:
        wait_until(lambda: b"-> FLOCK" in waits_of(waiter.pid), "the script waits")
        assert holders.flock_holder(fd) is None


def waits_of(pid: int) -> bytes:
    lines = Path("/proc/locks").read_bytes().splitlines()
    return b"\n".join(line for line in lines if b" %d " % pid in line)


def test_shared_holders_are_in_nobodys_way_who_wants_to_share(disk: Path, fd: int) -> None:
    with flocked(disk, "--shared") as script:
        holder = holders.flock_holder(fd)
        assert holder is not None
        assert holder.pid == script.pid
        assert holders.flock_holder(fd, exclusive_only=True) is None


def test_the_heir_is_named_when_the_taker_is_gone(disk: Path, fd: int) -> None:
    script = f"exec 9<'{disk}'; flock 9; exec sleep 600"
    with started("sh", "-c", script) as heir:
        wait_until(lambda: not flock_is_free(disk), "the shell has it")
        wait_until(lambda: Path(f"/proc/{heir.pid}/comm").read_text() == "sleep\n", "the shell became sleep")
        assert holders.flock_holder(fd) == Holder("flock", pid=heir.pid, command="sleep 600")


def test_a_paused_vm_is_named(disk: Path, fd: int) -> None:
    with vm(disk) as machine:
        holder = holders.qemu_holder(fd)
        assert holder is not None
        assert (holder.kind, holder.pid, holder.vm) == ("qemu", machine.pid, "web1")
        assert holder.command.startswith("qemu-system-x86_64 -S")
        assert len(holder.command) <= 80
        assert str(holder) == f"QEMU pid {machine.pid} (VM web1)"
        assert holders.qemu_holder(fd, likely=machine.pid) == holder
        assert holders.qemu_holder(fd, [(102, 102), (200, 200)]) is None


@pytest.mark.parametrize(
    ("option", "vm_name"),
    [
        ("web1", "web1"),
        ("guest=web1", "web1"),
        ("process=x,guest=a,,b", "a,b"),
        ("web1,process=x", "web1"),
        ("debug-threads=on", None),
    ],
)
def test_names_of_a_vm(option: str, vm_name: str | None) -> None:
    # A program of that name is enough: the option is read, nothing is run.
    with started("qemu-system-fake", "-c", "read x", "x", "-name", option, executable="/bin/sh") as machine:
        wait_until(lambda: b"fake" in Path(f"/proc/{machine.pid}/cmdline").read_bytes(), "it runs")
        assert holders.describe(machine.pid) == Holder(
            "qemu", pid=machine.pid, command=f"qemu-system-fake -c read x x -name {option}", vm=vm_name
        )


def test_a_job_is_named_by_its_id(disk: Path, fd: int) -> None:
    with program("--job", "12345678901", f"write:{disk}") as worker:
        assert line(worker) == "held"
        for holder in (holders.flock_holder(fd), holders.qemu_holder(fd)):
            assert holder is not None
            assert (holder.kind, holder.pid, holder.job) == ("job", worker.pid, 12345678901)


def test_a_child_of_a_job_is_named_by_its_mark() -> None:
    with started("sleep", "600", env={**os.environ, "JOBVISOR_JOB": "7"}) as child:
        wait_until(lambda: b"sleep" in Path(f"/proc/{child.pid}/cmdline").read_bytes(), "it runs")
        assert holders.describe(child.pid) == Holder("job", pid=child.pid, command="sleep 600", job=7)


def test_a_process_that_is_gone() -> None:
    with started("true") as process:
        process.wait()
    assert holders.describe(process.pid) == Holder("process", pid=process.pid, command="it has just ended")


def test_a_command_is_one_line() -> None:
    with started("sh", "-c", "read x", "a\nb\x1b[1m") as process:
        wait_until(lambda: b"read x" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), "it runs")
        assert holders.describe(process.pid).command == "sh -c read x a?b?[1m"


def test_another_users_lock_is_named_as_far_as_the_tables_tell(tmp_path: Path) -> None:
    """A plain user learns the pid of root's flock, and nothing about root's OFD lock."""
    if os.getuid():
        pytest.skip("needs two users: not root")
    code = (
        "import os, sys\n"
        "from jobvisor_workers import holders\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(holders.flock_holder(fd).pid, holders.qemu_holder(fd))\n"
    )
    disk = image(tmp_path / "disk.raw")
    with program(f"write:{disk}") as worker:
        assert line(worker) == "held"
        done = subprocess.run([sys.executable, "-c", code, disk], capture_output=True, text=True, check=True)
    assert done.stdout == f"{worker.pid} None\n"


def test_the_kernels_name_is_found_where_st_dev_is_another(tmp_path: Path) -> None:
    """btrfs gives each subvolume a device number that /proc/locks does not use."""
    large = image(tmp_path / "btrfs.raw", 256 << 20)
    where = tmp_path / "mnt"
    where.mkdir()
    with loop_device(large) as device:
        for command in (["mkfs.btrfs", "-q", device], ["mount", device, where]):
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no btrfs: {done.stderr.strip()}")
        try:
            subprocess.run(["btrfs", "-q", "subvolume", "create", where / "sub"], check=True, capture_output=True)
            disk = image(where / "sub" / "disk.raw")
            fd = os.open(disk, os.O_RDWR)
            try:
                status = os.fstat(fd)
                plain = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
                assert holders.kernel_name(fd).decode() != plain
                with flocked(disk) as script:
                    holder = holders.flock_holder(fd)
                    assert holder is not None
                    assert holder.pid == script.pid
            finally:
                os.close(fd)
        finally:
            subprocess.run(["umount", where], check=True)


def test_asking_for_the_name_leaves_no_lock(fd: int) -> None:
    holders.kernel_name(fd)
    assert "lock:" not in Path(f"/proc/self/fdinfo/{fd}").read_text()
    ofd.take(fd, ofd.SHARED, 100)
    holders.kernel_name(fd)
    assert Path(f"/proc/self/fdinfo/{fd}").read_text().count("lock:") == 1


# --- devices -------------------------------------------------------------------------------------------------------


def rdev(device: Path) -> int:
    return device.stat().st_rdev


def test_a_mounted_device_and_the_file_behind_it(disk: Path, fd: int) -> None:
    with loop_device(disk) as device:
        assert devices.user_of(rdev(device)) is None
        assert devices.loop_user(fd) is None, "attached alone is no use"
        with mounted(device) as where:
            assert devices.user_of(rdev(device)) == Holder("mount", path=str(where))
            assert devices.loop_user(fd) == Holder("loop", path=f"{device} (mounted on {where})")
        assert devices.user_of(rdev(device)) is None
        assert devices.loop_user(fd) is None


def test_swap(disk: Path, fd: int) -> None:
    with loop_device(disk) as device:
        subprocess.run(["mkswap", device], check=True, capture_output=True)
        done = subprocess.run(["swapon", device], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no swapon: {done.stderr.strip()}")
        try:
            assert devices.user_of(rdev(device)) == Holder("swap", path=str(device))
            assert devices.loop_user(fd) == Holder("loop", path=f"{device} (used as swap)")
        finally:
            subprocess.run(["swapoff", device], check=True)


def test_whoever_has_a_device_open(disk: Path, fd: int) -> None:
    with loop_device(disk) as device:
        exclusive = os.open(device, os.O_RDONLY | os.O_EXCL)
        try:
            assert devices.loop_user(fd) == Holder("loop", path=f"{device} (in exclusive use)")
        finally:
            os.close(exclusive)
        with program("--job", "5", f"write:{device}") as worker:
            assert line(worker) == "held"
            holder = devices.user_of(rdev(device))
            assert holder is not None
            assert (holder.kind, holder.pid, holder.job) == ("job", worker.pid, 5)


def test_a_file_behind_a_loop_device_is_known_by_every_name(disk: Path, tmp_path: Path) -> None:
    os.link(disk, tmp_path / "hard")
    with loop_device(disk) as device, mounted(device):
        disk.unlink()
        with open(tmp_path / "hard", "rb") as file:
            found = devices.loop_user(file.fileno())
        assert found is not None
        assert found.kind == "loop"
