"""libvirtd in the midst of its work, for as long as a test wants."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.libvirtd import Libvirtd
from support.lock_scenes import need


@contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Whoever makes a file or directory there waits, uninterruptible, until the with block is left."""
    need("fsfreeze")
    subprocess.run(["fsfreeze", "--freeze", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", directory], check=True)


def blocked(libvirtd: Libvirtd) -> bool:
    """A thread of the daemon waits for what is frozen."""
    assert libvirtd.process is not None
    tasks = Path(f"/proc/{libvirtd.process.pid}/task")
    return any(b") D " in (task / "stat").read_bytes() for task in tasks.iterdir())
