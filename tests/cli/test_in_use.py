"""A VM stops a wipe, a wipe stops a VM, and whoever holds an image is named."""

import json
import os
import subprocess
from pathlib import Path

from support.command import Cli
from support.images import MIB, filled, sha256
from support.lock_scenes import flocked, image, need, started, vm, wait_until


def test_a_vm_makes_wipe_and_clone_onto_its_disk_refuse(cli: Cli) -> None:
    disk = image(cli.directory / "disk", 8 * MIB)
    with vm(disk) as machine:
        for arguments in (["wipe", "disk"], ["clone", "img", "disk", "--replace"]):
            done = cli.run("run", *arguments)
            assert done.returncode == 6
            assert f"in use by QEMU pid {machine.pid} (VM web1); shut it down, or add --on-conflict wait" in done.stderr
        ended = json.loads(cli.run("run", "wipe", "disk", "--json").stdout.splitlines()[-1])["job"]
        assert (ended["cause"], ended["holder"]["pid"], ended["holder"]["vm"]) == ("busy", machine.pid, "web1")


def test_qemu_io_makes_a_wipe_refuse(cli: Cli) -> None:
    need("qemu-io")
    disk = filled(cli.directory / "disk", MIB)
    before = sha256(disk)
    with started("qemu-io", "-c", "sleep 600000", disk) as holder:
        wait_until(lambda: cli.run("run", "wipe", "disk", "--dry-run").returncode == 6, "qemu-io to open it")
        done = cli.run("run", "wipe", "disk")
        assert done.returncode == 6
        assert f"QEMU pid {holder.pid}" in done.stderr
    assert sha256(disk) == before


def test_a_wipe_waits_for_a_vm_when_it_is_told_to(cli: Cli) -> None:
    disk = image(cli.directory / "disk", MIB)
    with vm(disk):
        waiting = cli.start("run", "wipe", "disk", "--on-conflict", "wait", "--json")
        assert waiting.stdout is not None
        states = (json.loads(line) for line in waiting.stdout)
        held = next(event["job"] for event in states if event["job"]["state"] == "waiting")
        assert held["holder"]["vm"] == "web1"
        assert waiting.poll() is None
    assert [event["job"]["state"] for event in states][-1] == "completed"
    waiting.communicate()
    assert waiting.returncode == 0


def test_while_a_wipe_runs_nobody_can_open_the_image(cli: Cli) -> None:
    disk = filled(cli.directory / "disk", 64 * MIB)
    wiping = cli.start("run", "wipe", "disk", "--bandwidth", "4MiB", "--json")
    assert wiping.stdout is not None
    next(line for line in wiping.stdout if '"running"' in line)
    refused = subprocess.run(["qemu-io", "-c", "read 0 512", disk], capture_output=True, text=True)
    also = subprocess.run(["qemu-io", "-r", "-c", "read 0 512", disk], capture_output=True, text=True)
    other = cli.run("run", "wipe", "disk", "--on-conflict", "fail")
    wiping.terminate()
    wiping.communicate()

    assert refused.returncode == also.returncode == 1
    assert "lock" in refused.stderr
    assert other.returncode == 6
    assert "job 1" in other.stderr


def test_flock_in_a_shell_holds_a_job_in_waiting_and_is_named(cli: Cli) -> None:
    with flocked(cli.directory / "img") as holder:
        waiting = cli.start("run", "checksum", "img", "--json")
        assert waiting.stdout is not None
        events = (json.loads(line) for line in waiting.stdout)
        held = next(event["job"] for event in events if event["job"]["state"] == "waiting")
        assert "flock" in held["holder"]["command"]
        assert os.getpgid(held["holder"]["pid"]) == os.getpgid(holder.pid)
        assert "waiting" in {held["state"]}
    assert [event["job"]["state"] for event in events][-1] == "completed"
    waiting.communicate()


def test_a_running_clone_leaves_its_source_readable(cli: Cli, tmp_path: Path) -> None:
    filled(cli.directory / "disk", 32 * MIB)
    cloning = cli.start("run", "clone", "disk", "copy", "--bandwidth", "4MiB", "--no-reflink", "--json")
    assert cloning.stdout is not None
    next(line for line in cloning.stdout if '"running"' in line)
    read = subprocess.run(["qemu-io", "-r", "-c", "read 0 512", cli.path("disk")], capture_output=True)
    write = subprocess.run(["qemu-io", "-c", "write 0 512", cli.path("disk")], capture_output=True)
    again = cli.run("run", "checksum", "disk")
    cloning.terminate()
    cloning.communicate()
    assert (read.returncode, write.returncode, again.returncode) == (0, 1, 0)
    assert not os.path.exists(cli.path("copy"))
