"""A real libvirtd in a world of its own: nothing of the host's libvirt is seen or changed, and nothing is left.

Root's sees /etc, /run and parts of /var through layers that nobody else has, with the account in them that
libvirt asks for. What it mounts below its directory is seen outside too, where the workers are. Who is in the group
GROUP may use it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.libvirt_pools import Pools
from support.lock_scenes import need, wait_until
from support.users import GROUP, NOBODY, ROOT, User, room

#: It ends with the process of the tests, however that ends.
FATE = ["--pdeathsig", "TERM"]
UNSHARE = ["unshare", "--mount", "--propagation"]

#: Before its first VM libvirtd asks each emulator what it can do, 4 s each: tests use x86_64 only.
WORLD = r"""
set -eu
own=$1 caches=$2; shift 2
for place in / /etc /run /usr/bin /var/lib /var/cache /var/log; do
    mount --make-private "$(findmnt -no TARGET -T $place)"
done
for place in etc var/lib var/cache var/log; do
    mkdir -p "$own/$place" "$own/work/$place"
    mount -t overlay -o "lowerdir=/$place,upperdir=$own/$place,workdir=$own/work/$place" overlay "/$place"
done
mkdir -p "$own/run" /etc/libvirt /var/cache/libvirt
mount --bind "$own/run" /run
mount --bind "$caches" /var/cache/libvirt
grep -q ^libvirt-qemu: /etc/passwd || echo libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin >>/etc/passwd
grep -q ^libvirt-qemu: /etc/group || echo libvirt-qemu:x:64055: >>/etc/group
printf '%s\n' 'user = "root"' 'group = "root"' 'dynamic_ownership = 0' 'remember_owner = 0' 'namespaces = []' \
    'security_driver = "none"' 'stdio_handler = "file"' 'cgroup_controllers = []' >/etc/libvirt/qemu.conf
[ ! -e /usr/bin/qemu-system-i386 ] || mount --bind /dev/null /usr/bin/qemu-system-i386
exec "$@"
"""

#: For `virsh create`: a VM with one raw disk, and nothing to boot.
VM = """
<domain type='qemu'><name>web1</name><memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file'><driver name='qemu' type='raw'/><source file='{path}'/><target dev='vda' bus='virtio'/></disk>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>
"""

CONFIG = """
unix_sock_dir = "{directory}/sockets"
unix_sock_group = "{group}"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:{directory}/libvirtd.log"
host_uuid = "{uuid}"
"""


class Libvirtd(Pools):
    """A daemon that runs as `user`, and virsh for the same user."""

    def __init__(self, directory: Path, instance: str, user: User, prelude: list[str]) -> None:
        super().__init__(directory)
        self.user = user
        self.socket = directory / "sockets" / "libvirt-sock"
        self.uri = f"qemu+unix:///{instance}?socket={self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self._prelude = prelude
        self._worlds: set[str] = set()
        config = CONFIG.format(directory=directory, group=GROUP, uuid=uuid.uuid4())
        (directory / "libvirtd.conf").write_text(config)
        for path in (directory, directory / "sockets", directory / "home"):
            path.mkdir(exist_ok=True)
            os.chown(path, user.uid, -1)

    def start(self) -> None:
        """Returns when it answers."""
        files = [f"--config={self.directory}/libvirtd.conf", f"--pid-file={self.directory}/pid"]
        with open(self.directory / "libvirtd.out", "ab") as out:
            self.process = subprocess.Popen(
                [*self._prelude, "libvirtd", *files],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environment(),
            )
        wait_until(self._answers, "libvirtd answers")
        self._worlds |= {_world_of(self.process.pid)} - {_world_of(os.getpid())}

    def kill(self) -> None:
        """As the kernel does it when memory runs out."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def restore(self) -> None:
        """It runs, and its pools are as they were made."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.start()
        self.empty()

    def run(self, *words: str | Path | int) -> subprocess.CompletedProcess[str]:
        argv = [*_become(self.user), "virsh", "--quiet", "--connect", self.uri, *map(str, words)]
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self._environment(), cwd="/"
        )

    def virsh(self, *words: str | Path | int) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"virsh {' '.join(map(str, words))}: {done.stderr.strip()}"
        return done.stdout.strip()

    def processes(self) -> dict[int, str]:
        """Whatever runs in its world: itself, its children, VMs and what it left behind when it was killed."""
        found = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError):
                if _world_of(pid) in self._worlds:
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        return found

    def close(self) -> None:
        """It ends, and nothing is left of it; AssertionError when something of it would have stayed, like a VM."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes(), "the processes of its world are gone")
        self.detach()
        assert not left, f"left behind by libvirtd: {left}"

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"libvirtd did not start: {(self.directory / 'libvirtd.out').read_text()}")
        return self.socket.exists() and self.run("uri").returncode == 0

    def _end(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)

    def _own(self, directory: Path) -> None:
        os.chown(directory, self.user.uid, -1)

    def _environment(self) -> dict[str, str]:
        places = ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
        homes = dict.fromkeys(places, str(self.directory / "home"))
        return {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C", **homes}


@contextmanager
def running_system_libvirtd(caches: Path) -> Iterator[Libvirtd]:
    """Root's. What it finds out about QEMU stays in `caches`, which makes the next start fast."""
    need("libvirtd", "virsh", "virt-qemu-run", "unshare", "findmnt", "setpriv")
    if os.geteuid():
        pytest.skip("only root can give a libvirtd a world of its own")
    with room() as place, _shared_mount(place):
        (place / "own").mkdir()
        with _mount("-t", "tmpfs", "jobvisor", place / "own"):
            world = [*UNSHARE, "unchanged", "sh", "-c", WORLD, "world", str(place / "own"), str(caches)]
            with _running(Libvirtd(place, "system", ROOT, [*world, "setpriv", *FATE])) as daemon:
                yield daemon


@contextmanager
def running_session_libvirtd() -> Iterator[Libvirtd]:
    """A daemon of an unprivileged user: of nobody's when root runs the tests, else of who runs them."""
    need("libvirtd", "virsh", "setpriv")
    with room() as place:
        if os.geteuid():
            user, prelude = User("self", os.geteuid(), ()), ["setpriv", *FATE]
        else:
            need("unshare")
            user = NOBODY
            prelude = [*UNSHARE, "slave", *_become(NOBODY), *FATE]
        with _running(Libvirtd(place, "session", user, prelude)) as daemon:
            yield daemon


@contextmanager
def _running(daemon: Libvirtd) -> Iterator[Libvirtd]:
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@contextmanager
def _shared_mount(place: Path) -> Iterator[None]:
    """What is mounted below, by whom ever has a copy of the mount, is seen by all who have one."""
    with _mount("--bind", place, place):
        for propagation in ("--make-private", "--make-shared"):
            subprocess.run(["mount", propagation, place], check=True)
        yield


@contextmanager
def _mount(*words: str | Path) -> Iterator[None]:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", words[-1]], check=True)


def _become(user: User) -> list[str]:
    if user.uid == os.geteuid():
        return []
    return ["setpriv", f"--reuid={user.uid}", f"--regid={user.uid}", f"--groups={','.join(map(str, user.groups))}"]


def _world_of(pid: int) -> str:
    """Its mount namespace."""
    return os.readlink(f"/proc/{pid}/ns/mnt")
