"""Secrets that unlock a volume: read from a file by the requester, handed over as a descriptor, never told."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jobvisor_workers.errors import BadArgument

if TYPE_CHECKING:
    from jobvisor_workers.worker import Volume, Worker

#: More is some other file, given by mistake.
MOST = 64 << 10


def check(worker: Worker, file: Volume, doing: str) -> None:
    """Raises BadArgument when the content of this file can be no secret."""
    content = os.pread(file.fd, MOST + 1, 0)
    if not content:
        raise BadArgument(f"cannot {doing}: the secret in {file.path} is empty")
    if len(content) > MOST:
        raise BadArgument(f"cannot {doing}: {file.path} is no secret: it has more than {MOST} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise BadArgument(f"cannot {doing}: {file.path} is no secret: QEMU takes only text, in UTF-8")
    if text.endswith("\n"):
        worker.warn(f"the newline at the end of {file.path} is part of the secret; printf writes a file without one")
