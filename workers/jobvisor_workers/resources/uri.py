"""Names of libvirt's objects: vol://POOL/VOLUME and pool://POOL, percent-encoded, at a connection URI.

What such a name stands for only libvirt knows, so two names are the same when they are written the same (decoded), at
the same URI, for the same user (each has a session of their own):

    vol:<uid>:<URI>:<pool>/<volume>      pool:<uid>:<URI>:<pool>
"""

from __future__ import annotations

from typing import NamedTuple

from jobvisor_workers.errors import BadArgument

VOLUME, POOL = "vol://", "pool://"
#: A name in a URI: neither a slash nor a zero byte, encoded or not.
_WORD = r"(?:[^/\x00%]|%(?:2[0-9A-Ea-e]|0[1-9A-Fa-f]|[13-9A-Fa-f][0-9A-Fa-f]))+"
#: As in JSON schemas: the whole of a resource.
VOLUME_PATTERN, POOL_PATTERN = f"vol://{_WORD}/{_WORD}", f"pool://{_WORD}"
SYSTEM, SESSION = "qemu:///system", "qemu:///session"


class Name(NamedTuple):
    """A pool of libvirt's, or a volume in it."""

    pool: str
    volume: str | None = None

    def __str__(self) -> str:
        from urllib.parse import quote  # loads what a command line can do without

        if self.volume is None:
            return POOL + quote(self.pool, safe="")
        return f"{VOLUME}{quote(self.pool, safe='')}/{quote(self.volume, safe='')}"


def is_name(resource: str) -> bool:
    """True for vol:// and pool://; everything else is a path."""
    return resource.startswith((VOLUME, POOL))


def parse(resource: str) -> Name:
    """Raises BadArgument."""
    import re
    from urllib.parse import unquote

    start = POOL if resource.startswith(POOL) else VOLUME
    if not re.fullmatch(POOL_PATTERN if start is POOL else VOLUME_PATTERN, resource):
        form = "pool://POOL" if start is POOL else "vol://POOL/VOLUME"
        raise BadArgument(
            f"cannot use {resource}: such a name has the form {form}, without a slash in a name, and % written %25"
        )
    return Name(*(unquote(word) for word in resource.removeprefix(start).split("/")))


def key(name: Name, uri: str, uid: int) -> str:
    """What the masks tell resources apart by."""
    if name.volume is None:
        return f"pool:{uid}:{uri}:{name.pool}"
    return f"vol:{uid}:{uri}:{name.pool}/{name.volume}"


def default_uri(uid: int) -> str:
    """Which libvirtd virsh asks by itself."""
    return SESSION if uid else SYSTEM


def is_local(uri: str) -> bool:
    """True if that libvirtd runs on this host, so that its paths may be ours; a socket may be named either way."""
    from urllib.parse import urlsplit

    return not urlsplit(uri).hostname
