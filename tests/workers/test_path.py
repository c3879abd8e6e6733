"""resources/path.py: what a name stands for, and the sentence for each name that stands for nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobvisor_workers.errors import JobError
from jobvisor_workers.resources.path import VolumeFacts, facts, identify
from support.lock_scenes import image, loop_device


def refused(path: str | Path, *, new: bool = False) -> str:
    with pytest.raises(JobError) as caught:
        identify(str(path), new=new)
    text = str(caught.value)
    assert text.startswith(f"cannot {'create' if new else 'open'} {path}: ")
    assert "\n" not in text
    return text.split(": ", 1)[1]


def test_every_name_of_a_file_has_one_key(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.raw")
    os.link(disk, tmp_path / "hard")
    (tmp_path / "soft").symlink_to("disk.raw")
    status = disk.stat()
    key = f"file:{status.st_dev}:{status.st_ino}"
    assert {identify(str(tmp_path / name)) for name in ("disk.raw", "hard", "soft")} == {key}
    assert identify(str(disk), new=True) == key


def test_different_files_have_different_keys(tmp_path: Path) -> None:
    assert identify(str(image(tmp_path / "a"))) != identify(str(image(tmp_path / "b")))


def test_a_new_name_is_its_directory_and_name(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "other").symlink_to(real)
    status = real.stat()
    key = f"new:{status.st_dev}:{status.st_ino}/new.raw"
    assert identify(str(real / "new.raw"), new=True) == key
    assert identify(str(tmp_path / "other" / "new.raw"), new=True) == key


def test_a_dangling_link_as_new_name_is_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("sub/there.raw")
    assert identify(str(tmp_path / "one"), new=True) == identify(str(tmp_path / "sub" / "there.raw"), new=True)


def test_a_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "x.raw") == "no such file"


@pytest.mark.parametrize("new", [False, True])
def test_a_missing_directory_is_named(tmp_path: Path, new: bool) -> None:
    missing = tmp_path / "none"
    assert refused(missing / "deeper" / "x.raw", new=new) == f"no such directory: {missing}"
    assert refused(missing / "x.raw", new=new) == f"no such directory: {missing}"


@pytest.mark.parametrize("new", [False, True])
def test_a_dangling_link_on_the_way_is_named(tmp_path: Path, new: bool) -> None:
    link = tmp_path / "link"
    link.symlink_to("/nowhere/at/all")
    assert refused(link / "x.raw", new=new) == f"{link} is a symbolic link to /nowhere/at/all, which does not exist"


def test_a_dangling_link_as_source(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("gone.raw")
    assert refused(link) == f"{link} is a symbolic link to gone.raw, which does not exist"


@pytest.mark.parametrize("new", [False, True])
def test_a_link_in_a_circle(tmp_path: Path, new: bool) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "leads back to itself" in refused(tmp_path / "a", new=new)


@pytest.mark.parametrize("new", [False, True])
def test_a_directory(tmp_path: Path, new: bool) -> None:
    assert refused(tmp_path, new=new) == "it is a directory, not a file or block device"


def test_a_new_name_that_ends_in_a_slash(tmp_path: Path) -> None:
    assert "the name of a directory" in refused(f"{tmp_path}/new/", new=True)


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo") == "it is a pipe, not a file or block device"
    assert refused("/dev/null") == "it is a character device, not a file or block device"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert refused(tmp_path / "socket") == "it is a socket, not a file or block device"


def test_links_of_proc_that_lead_to_no_file() -> None:
    read, write = os.pipe()
    try:
        assert "it is a pipe" in refused(f"/proc/self/fd/{read}")
    finally:
        os.close(read)
        os.close(write)
    anonymous = os.eventfd(0)
    try:
        assert "an object of the kernel without a file" in refused(f"/proc/self/fd/{anonymous}")
    finally:
        os.close(anonymous)


def test_a_file_in_the_middle(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.raw")
    assert refused(disk / "x") == f"{disk} is not a directory"
    assert refused(disk / "x", new=True) == f"{disk} is not a directory"
    assert refused(disk / "x" / "y") == f"{disk} is not a directory"


def test_a_name_too_long(tmp_path: Path) -> None:
    assert refused(tmp_path / ("x" * 256), new=True) == "the name is too long for the filesystem"


def test_a_directory_that_may_not_be_searched() -> None:
    # Root may search everything, so that a plain user asks; tmp_path would be closed to that one altogether.
    code = (
        "import os, sys\n"
        "from jobvisor_workers.errors import JobError\n"
        "from jobvisor_workers.resources.path import identify\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: identify(sys.argv[1])\n"
        "except JobError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        closed = Path(directory, "closed")
        (closed / "sub").mkdir(parents=True)
        path = image(closed / "sub" / "x.raw")
        closed.chmod(0)
        try:
            done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        finally:
            closed.chmod(0o700)
    assert done.stdout == f"cannot open {path}: permission denied in the directory {closed}\n"


def test_facts_of_a_file(tmp_path: Path) -> None:
    with open(image(tmp_path / "odd.raw", 12345), "rb") as file:
        assert facts(file.fileno()) == VolumeFacts("file", 12345)


def test_a_block_device_has_its_numbers_as_key_and_its_size(tmp_path: Path) -> None:
    with loop_device(image(tmp_path / "disk.raw", 1 << 20)) as device:
        number = device.stat().st_rdev
        assert identify(str(device)) == f"block:{os.major(number)}:{os.minor(number)}"
        with open(device, "rb", buffering=0) as opened:
            opened.seek(7)
            assert facts(opened.fileno()) == VolumeFacts("block", 1 << 20)
            assert opened.tell() == 7
