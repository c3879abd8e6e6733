"""Dirty data stays bounded, seen in the kernel's own account of the page cache."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobvisor_workers.data import libc
from jobvisor_workers.data.window import MIB, Window
from support.lock_scenes import need


def test_scattered_writes_are_all_written_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(libc, "sync_file_range", lambda fd, *call: calls.append(call))
    with open(tmp_path / "a", "wb") as file:
        window = Window(file.fileno(), length=4 * MIB, in_flight=1)
        noted = [(40 * MIB, 3 * MIB), (2 * MIB, 2 * MIB), (9 * MIB, 5 * MIB), (30 * MIB, 1)]
        for offset, length in noted:
            window.note(offset, length)
        window.finish()
    wait = libc.SYNC_WAIT_BEFORE | libc.SYNC_WRITE | libc.SYNC_WAIT_AFTER
    begun = [call[:2] for call in calls if call[2] == libc.SYNC_WRITE]
    waited = [call[:2] for call in calls if call[2] == wait]
    assert begun == waited == [(2 * MIB, 41 * MIB), (9 * MIB, 5 * MIB), (30 * MIB, 1)]
    # Each is waited for when one more has been begun.
    assert [call[2] for call in calls] == [libc.SYNC_WRITE, libc.SYNC_WRITE, wait, libc.SYNC_WRITE, wait, wait]


WRITER = """
import os, sys
from jobvisor_workers.data.window import MIB, Window
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_EXCL)
window, piece = Window(fd), bytes(4 * MIB)
for offset in range(0, 256 * MIB, len(piece)):
    os.pwrite(fd, piece, offset)
    window.note(offset, len(piece))
window.finish()
os.fsync(fd)
"""


def test_windows_are_waited_for_while_writing(tmp_path: Path) -> None:
    need("strace")
    trace = tmp_path / "trace"
    argv = ["strace", "-e", "trace=sync_file_range,pwrite64,fsync", "-o", str(trace), sys.executable, "-c", WRITER]
    done = subprocess.run([*argv, str(tmp_path / "a")], capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    dirty = most = 0
    for line in trace.read_text().splitlines():
        if match := re.search(r"pwrite64\(\d+, .*, (\d+), \d+\)", line):
            dirty += int(match[1])
        elif match := re.search(r"sync_file_range\(\d+, \d+, (\d+), SYNC_FILE_RANGE_WAIT_BEFORE\|", line):
            dirty -= int(match[1])
        elif "fsync(" in line:
            assert dirty == 0, "finish left nothing to the fsync"
            break
        most = max(most, dirty)
    else:
        pytest.fail("no fsync seen")
    assert most == 64 * MIB


def test_what_is_written_back_leaves_the_cache(tmp_path: Path) -> None:
    need("fincore")
    fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, bytes(32 * MIB), 0)
        window = Window(fd)
        window.note(0, 32 * MIB)
        window.finish()
        resident = subprocess.run(["fincore", "-bno", "RES", tmp_path / "a"], capture_output=True, text=True)
        assert int(resident.stdout) <= 8 * MIB
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ESPIPE, errno.ENOSYS])
def test_where_it_is_not_supported_nothing_happens(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*call: int) -> None:
        calls.append(call)
        raise OSError(number, "x")

    monkeypatch.setattr(libc, "sync_file_range", fail)
    window = Window(-1, length=MIB)
    for offset in range(0, 8 * MIB, MIB):
        window.note(offset, MIB)
    window.finish()
    assert len(calls) == 1


def test_a_pipe_is_forgiven() -> None:
    read, write = os.pipe()
    window = Window(write, length=1)
    window.note(0, 1)
    window.finish()
    os.close(read)
    os.close(write)


def test_a_defect_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, offset: int, length: int, flags: int) -> None:
        if flags & libc.SYNC_WAIT_AFTER:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(libc, "sync_file_range", fail)
    window = Window(-1, length=MIB)
    window.note(0, MIB)
    with pytest.raises(OSError, match="Input/output error"):
        window.finish()
