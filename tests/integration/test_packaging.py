"""What a user downloads (sdist, wheel) and what `make` does to their machine before anything of jobvisor runs.

The set-up is run for real, by make and sh, on a PATH that holds nothing but what a test put there: the programs that
would change the machine (apt-get, dnf, sudo, pip) are small scripts that write down how they were called.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from jobvisor import autostart
from jobvisor.places import socket_of
from jobvisor_workers import protocol

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"jobvisor", "jobvisor_workers", "jobvisor_cli"}


# -- what a user downloads


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    code = f"import hatchling.build; hatchling.build.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as packagers do, so that a file the sdist lacks is noticed."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(sdist)],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    (archive,) = out.iterdir()
    return archive


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def dist_info(wheel: Path, name: str) -> bytes:
    (member,) = (m for m in members(wheel) if m.endswith(f".dist-info/{name}"))
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def metadata(wheel: Path) -> Message:
    return message_from_bytes(dist_info(wheel, "METADATA"))


def test_the_wheel_brings_its_three_packages_a_man_page_and_nothing_else(wheel: Path) -> None:
    data = f"jobvisor-{protocol.VERSION}.data"
    top = {name.partition("/")[0] for name in members(wheel)}
    assert top == PACKAGES | {f"jobvisor-{protocol.VERSION}.dist-info", data}
    assert [name for name in members(wheel) if name.startswith(data)] == [f"{data}/data/share/man/man1/jobvisor.1"]


def test_the_wheel_is_typed_and_carries_its_license(wheel: Path) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= members(wheel)
    assert b"Copyright The jobvisor authors" in dist_info(wheel, "licenses/LICENSE")
    assert metadata(wheel)["License-Expression"] == "Apache-2.0"


def test_every_module_of_the_tree_is_in_the_wheel(wheel: Path) -> None:
    roots = [ROOT / "supervisor", ROOT / "workers", ROOT / "cli"]
    sources = {path.relative_to(root).as_posix() for root in roots for path in root.rglob("*.py")}
    assert sources == {name for name in members(wheel) if name.endswith(".py")}


def test_version_is_the_one_processes_tell_each_other(wheel: Path) -> None:
    # A supervisor and a zygote of different versions must notice: a release that forgets one of the two would not.
    assert metadata(wheel)["Version"] == protocol.VERSION


def test_installed_wheel_works_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    entry_points = configparser.ConfigParser()
    entry_points.read_string(dist_info(wheel, "entry_points.txt").decode())
    assert entry_points["console_scripts"]["jobvisor"] == "jobvisor_cli.main:main"
    assert entry_points["pytest11"]["jobvisor"] == "jobvisor.testing"
    # -S: no .pth file is read, so the editable installation of this tree cannot stand in.
    code = (
        "import jobvisor, jobvisor.testing, jobvisor_workers, jobvisor_cli.main as c; assert callable(c.main);"
        "print(*(m.__file__ for m in (jobvisor, jobvisor.testing, jobvisor_workers, c)), sep='\\n')"
    )
    path = os.pathsep.join([str(target), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(target) for line in done.stdout.splitlines()), done.stdout


def test_the_sdist_can_be_built_tested_and_read(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "docs/examples/demo.sh"}
    assert expected <= inside
    assert "tests/integration/test_packaging.py" in inside
    assert not {name for name in inside if "__pycache__" in name or name.startswith((".venv", "demo/"))}


# -- what make does to a machine

#: The set-up itself uses these; they come with every Linux system that has make.
ALWAYS_THERE = ("sh", "make", "cat", "cksum", "env", "grep", "id", "ln", "mkdir", "sed")

PYTHON3 = """
case "$*" in
    "-m venv --clear .venv")
        mkdir -p .venv/bin
        ln -s "{machine}/python3" .venv/bin/python
        printf '#!/bin/sh\\n# made by %s\\necho pip "$@" >>"{calls}"\\n' "$(pwd -P)/.venv/bin/python" >.venv/bin/pip
        chmod +x .venv/bin/pip ;;
    *version_info*) exec "{python}" -c "import sys; sys.version_info = {version}; exec(sys.argv[1])" "$2" ;;
    *) exec "{python}" "$@" ;;
esac
"""


class Machine:
    """A PATH with nothing on it but what a test wants, beside a fresh clone."""

    def __init__(self, root: Path) -> None:
        self.path = root / "bin"
        self.clone = root / "a clone"
        self.calls = root / "calls"
        self.path.mkdir()
        self.clone.mkdir()
        self.calls.touch()
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, self.clone)
        for name in (*ALWAYS_THERE, "chmod"):
            self.link(name)
        self.python()

    def link(self, name: str) -> None:
        """The machine's own program. Only what reads: it runs for real."""
        program = shutil.which(name)
        assert program, f"{name} is not on PATH"
        (self.path / name).symlink_to(program)

    def script(self, name: str, text: str) -> None:
        path = self.path / name
        path.unlink(missing_ok=True)  # it may be a link: writing through it would change the machine's own program
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def python(self, version: tuple[int, int] = sys.version_info[:2]) -> None:
        """Install an interpreter: this one, which says that it is `version`."""
        text = PYTHON3.format(machine=self.path, calls=self.calls, python=sys.executable, version=version)
        self.script("python3", text)

    def has(self, *names: str) -> None:
        for name in names:
            self.script(name, "exit 0")

    def installs_with(self, program: str) -> None:
        """A package installer that writes down its arguments and brings qemu-img."""
        self.has("true")
        brings = f'ln -sf "{self.path}/true" "{self.path}/qemu-img"'
        case = f'case "$*" in *" -s "*) ;; *install*) {brings} ;; esac'
        self.script(program, f'echo {program} "$@" >>"{self.calls}"\n{case}')

    def user(self, uid: int, *, sudo: bool) -> None:
        self.script("id", f"echo {uid}")
        if sudo:
            self.script("sudo", f'echo sudo >>"{self.calls}"\nexec "$@"')

    def make(self, *args: str) -> subprocess.CompletedProcess[str]:
        # PATH on the command line, so that the Makefile adds no directory of the real machine to it.
        return subprocess.run(
            [str(self.path / "make"), f"PATH={self.path}", *args], cwd=self.clone, env={"PATH": str(self.path)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def called(self) -> list[str]:
        """How the scripts were called since the last time this was asked."""
        lines = self.calls.read_text().splitlines()
        self.calls.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_set_up_with_everything_there_installs_no_package(machine: Machine) -> None:
    machine.has("qemu-img", "mke2fs")
    machine.installs_with("apt-get")
    done = machine.make("setup-demo")
    assert done.returncode == 0, done.stderr
    assert machine.called() == ["pip install --quiet --disable-pip-version-check --editable ."]


def test_second_set_up_calls_nothing_until_pyproject_changes(machine: Machine) -> None:
    machine.has("qemu-img", "mke2fs")
    machine.make("setup-demo")
    machine.called()
    assert machine.make("setup-demo").returncode == 0
    assert machine.called() == []
    with (machine.clone / "pyproject.toml").open("a") as file:
        file.write("# another dependency\n")
    assert machine.make("setup-demo").returncode == 0
    assert len(machine.called()) == 1


def test_a_venv_that_was_copied_elsewhere_is_made_again(machine: Machine) -> None:
    machine.has("qemu-img", "mke2fs")
    machine.make("setup-demo")
    machine.called()
    machine.clone = machine.clone.rename(machine.clone.with_name("moved"))
    done = machine.make("setup-demo")
    assert "python3 -m venv --clear .venv" in done.stderr
    assert len(machine.called()) == 1
    assert str(machine.clone) in (machine.clone / ".venv/bin/pip").read_text()


def test_debian_as_root_installs_what_is_missing_and_no_more(machine: Machine) -> None:
    machine.has("mke2fs")
    machine.installs_with("apt-get")
    machine.user(0, sudo=True)
    done = machine.make("setup-demo")
    assert done.returncode == 0, done.stderr
    probe, install, _pip = machine.called()
    assert " -s " in probe
    assert install.split()[:3] == ["apt-get", "install", "-y"]
    assert "--no-install-recommends" in install
    assert install.endswith(" qemu-utils")


def test_debian_as_a_user_asks_sudo_and_only_for_the_installation(machine: Machine) -> None:
    machine.has("mke2fs")
    machine.installs_with("apt-get")
    machine.user(1000, sudo=True)
    done = machine.make("setup-demo")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in machine.called()] == ["apt-get", "sudo", "apt-get", "pip"]


def test_debian_without_package_lists_updates_them_first(machine: Machine) -> None:
    machine.has("mke2fs")
    machine.installs_with("apt-get")
    machine.user(0, sudo=False)
    known = machine.path / "lists"
    with (machine.path / "apt-get").open("a") as file:
        file.write(f'case "$*" in update) echo >"{known}" ;; *) [ -e "{known}" ] ;; esac\n')
    done = machine.make("setup-demo")
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in machine.called()] == ["install", "update", "install", "install"]


def test_fedora_has_its_own_names(machine: Machine) -> None:
    machine.has("mke2fs")
    machine.installs_with("dnf")
    machine.user(1000, sudo=True)
    done = machine.make("setup-demo")
    assert done.returncode == 0, done.stderr
    assert machine.called()[:2] == ["sudo", "dnf install -y --setopt=install_weak_deps=False qemu-img"]


def test_another_system_is_told_what_to_install(machine: Machine) -> None:
    done = machine.make("setup-demo")
    assert done.returncode != 0
    assert "missing for 'make demo': qemu-img mke2fs" in done.stderr
    assert "finds neither" in done.stderr
    assert not (machine.clone / ".venv").exists()


def test_a_user_without_sudo_is_told_what_root_must_run(machine: Machine) -> None:
    machine.installs_with("apt-get")
    machine.user(1000, sudo=False)
    done = machine.make("setup-demo")
    assert done.returncode != 0
    assert "there is no sudo. As root run: apt-get update && " in done.stderr
    assert machine.called() == []


def test_an_installation_that_did_not_help_stops_the_set_up(machine: Machine) -> None:
    machine.installs_with("apt-get")
    machine.user(0, sudo=False)
    done = machine.make("setup-demo")
    assert done.returncode != 0
    assert "still missing after the installation: mke2fs" in done.stderr
    assert not (machine.clone / ".venv").exists()


@pytest.mark.parametrize("named", [True, False])
def test_a_python_too_old_is_refused_by_its_version(machine: Machine, named: bool) -> None:
    machine.python((3, 10))
    done = machine.make("setup-demo", *(["PYTHON=python3"] if named else []))
    assert done.returncode != 0
    assert "jobvisor needs Python 3.11 or newer; python3 is 3.10." in done.stderr
    assert machine.called() == []


def test_set_up_for_tests_serves_the_demo_too(machine: Machine) -> None:
    machine.has("qemu-img", "mke2fs", "qemu-io", "qemu-system-x86_64", "mkfs.xfs", "mkfs.btrfs", "losetup", "flock")
    machine.has("bindfs", "fusermount3", "strace", "gcc", "pkg-config", "zsh", "fish", "man", "groff")
    machine.has("systemd-inhibit", "dbus-daemon", "curl", "jq", "libvirtd", "virt-qemu-run", "virsh", "parted")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        pytest.skip(f"{header} is not there, and the set-up rightly asks for it")
    assert machine.make("setup-test").returncode == 0
    assert machine.called() == ["pip install --quiet --disable-pip-version-check --editable .[dev,libvirt]"]
    assert machine.make("setup-demo").returncode == 0
    assert machine.called() == []


def test_help_is_what_make_alone_prints(machine: Machine) -> None:
    done = machine.make()
    assert done.returncode == 0, done.stderr
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"help", "demo", "test", "check", "bench", "clean"}


def test_continuous_integration_runs_make_test_and_hands_its_verdict_on(machine: Machine) -> None:
    machine.script("make", f'echo make "$@" CI="$CI" >>"{machine.calls}"\nread -r line && exit 1\nexit 7')
    shutil.copytree(ROOT / ".ci", machine.clone / ".ci")
    for name in ("bash", "dirname"):
        machine.link(name)
    run = machine.clone / ".ci" / "run"
    done = subprocess.run([str(run)], env={"PATH": str(machine.path)}, input="typed\n", text=True)
    assert done.returncode == 7
    assert machine.called() == ["make test CI=true"]


# -- the demo


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[[], subprocess.CompletedProcess[str]]]:
    """Run the demo in a directory that has nothing of the project but the script and .venv/bin/jobvisor.

    Its daemon is one of this test's own, which a user's would not be.
    """
    home = tmp_path / "home"
    (tmp_path / "docs/examples").mkdir(parents=True)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    script = tmp_path / "docs/examples/demo.sh"
    shutil.copy(ROOT / "docs/examples/demo.sh", script)
    (tmp_path / ".venv/bin/jobvisor").symlink_to(Path(sys.executable).parent / "jobvisor")
    yield lambda: subprocess.run(
        ["sh", str(script)], env={**os.environ, "JOBVISOR_HOME": str(home)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    autostart.stop(socket_of(str(home)))
    shutil.rmtree(tmp_path / "demo", ignore_errors=True)  # a gigabyte; pytest would keep it


def test_demo_clones_shows_the_job_and_proves_the_clone_twice_over(
    demo: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for _ in range(2):
        done = demo()
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Images are identical.\n") == 2
        assert "Job type:" in done.stdout
        assert {path.name for path in (tmp_path / "demo").iterdir()} == {"base.qcow2", "clone.qcow2", "clone2.qcow2"}


def test_demo_fails_when_a_clone_is_not_identical(
    demo: Callable[[], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    jobvisor = tmp_path / ".venv/bin/jobvisor"
    jobvisor.unlink()
    jobvisor.write_text('#!/bin/sh\ncp "$3" "$4" && qemu-io -f qcow2 -c "write -q -P 7 256M 64k" "$4"\n')
    jobvisor.chmod(0o755)
    done = demo()
    assert done.returncode == 1
    assert "error: demo/clone.qcow2 is not what demo/base.qcow2 is" in done.stderr
