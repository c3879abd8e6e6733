"""What a dead worker left in the file system, brought to agree with what its job will be called."""

from __future__ import annotations

import os

import msgspec

from jobvisor_workers import finished
from jobvisor_workers.protocol import VOID, Claim, Commit, Delegated, Life, Linked, Temporary, decode_life


def read_life(directory: str) -> list[Life]:
    """The lines of jobs/<id>/life; empty when no worker claimed the job (or the file says void)."""
    try:
        with open(os.path.join(directory, "life"), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return []
    if content == VOID:
        return []
    lines: list[Life] = []
    for line in content.splitlines():
        try:
            lines.append(decode_life(line))
        except msgspec.DecodeError:  # the machine died within the write; nothing was made on its strength
            break
    return lines


def remains(directory: str) -> list[Life]:
    """As `read_life`; a name is kept only if there is something to go on from."""
    life = read_life(directory)
    if finished.read(directory).processed:
        return life
    return [Temporary(line.directory, line.name) if isinstance(line, Temporary) else line for line in life]


def is_delegated(directory: str) -> bool:
    """True while another program does a job's work."""
    return next((line.on for line in reversed(read_life(directory)) if isinstance(line, Delegated)), False)


def claim_of(life: list[Life]) -> Claim | None:
    return next((line for line in life if isinstance(line, Claim)), None)


def settle(life: list[Life]) -> Commit | None:
    """Remove temporary names; return the commit if all its outputs stand under their names, else undo it.

    A kept name stays unless the commit stands. To be called only when no process of the job is left.
    """
    commit = next((line for line in life if isinstance(line, Commit)), None)
    done = commit is not None and all(_stands(output) for output in commit.outputs)
    temporaries = [line for line in life if isinstance(line, Temporary)]
    kept = set() if done else {(line.directory, line.name) for line in temporaries if line.kept}
    names = [(line.directory, line.name) for line in temporaries]
    if commit:
        names += [(output.directory, output.temporary) for output in commit.outputs if output.temporary]
    for name in names:
        if name not in kept:
            _remove(*name)
    if commit and not done:
        undo(commit.outputs)
    return commit if done else None


def undo(outputs: list[Linked]) -> None:
    """Take back the names that were made; a file of somebody else under such a name is left alone.

    What has taken another file's place stays: to remove it would lose the old content and the new.
    """
    for output in outputs:
        if _stands(output) and not output.replaces:
            _remove(output.directory, output.name)


def _stands(output: Linked) -> bool:
    try:
        facts = os.stat(os.path.join(output.directory, output.name), follow_symlinks=False)
    except OSError:
        return False
    return (facts.st_dev, facts.st_ino) == (output.device, output.inode)


def _remove(directory: str, name: str) -> None:
    try:
        os.unlink(os.path.join(directory, name))
    except OSError:
        pass
