"""Where the tables of a qcow2 lie, and so where its data lies, or once lay.

As docs/interop/qcow2.txt of QEMU describes it. Whatever is not known here is refused: who overwrites all that is no
table must know of every table.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from jobvisor_workers.data.extents import data_extents
from jobvisor_workers.errors import JobError

Range = tuple[int, int]  # offset, length

MAGIC: Final = b"QFI\xfb"
#: Magic, version, backing file's offset and length, cluster bits, size, encryption, entries and offset of the first
#: level, offset and clusters of the refcount table, number and offset of snapshots.
HEAD: Final = struct.Struct(">4sIQIIQIIQQIIQ")
#: From version 3 on: incompatible, compatible and autoclear features, refcount order, length of the header.
FEATURES: Final = struct.Struct(">QQQII")
#: Known ones: dirty, corrupt, compression type, extended entries of the second level; lazy refcounts; none.
KNOWN: Final = (0b11011, 0b1, 0)
EXTENDED: Final = 1 << 4
#: The bits of an entry that are an offset in the file.
OFFSET: Final = 0x00FFFFFFFFFFFE00
#: The first byte of an entry of the second level for compressed data has this bit.
COMPRESSED: Final = 0x40
PLAIN: Final = bytes(byte for byte in range(256) if not byte & COMPRESSED)
#: As QEMU's own limits: 32 MiB of first level, 8 MiB of refcount table.
MOST: Final = 32 << 20


#: Of a snapshot, before the extra data, its id and its name: lengths of the id and the name, and of the extra data.
SNAPSHOT: Final = struct.Struct(">12xHH20xI")
#: As QEMU's own limit.
SNAPSHOTS: Final = 65536


class Layout(NamedTuple):
    """tables: of the file, in order; compressed: of the disk that a guest sees, in order."""

    cluster: int
    size: int
    tables: list[Range]
    compressed: list[Range]


def layout(fd: int, doing: str) -> Layout:
    """Read the tables of an open image. Raises JobError for one with something in it that is not known here."""
    magic, version, _, _, bits, size, encryption, entries, first, counts, clusters, snapshots, _ = HEAD.unpack(
        _read(fd, 0, HEAD.size, doing)
    )
    features = FEATURES.unpack(_read(fd, HEAD.size, FEATURES.size, doing))[:3] if version > 2 else (0, 0, 0)
    unknown = version not in (2, 3) or any(found & ~known for found, known in zip(features, KNOWN, strict=True))
    if magic != MAGIC or unknown or encryption or snapshots or not 9 <= bits <= 21:
        raise JobError(f"cannot {doing}: it has features that are not known here, so that its tables may lie anywhere")
    cluster = 1 << bits
    width = 16 if features[0] & EXTENDED else 8
    seconds = list(_entries(_read(fd, first, entries * 8, doing)))
    refcounts = _read(fd, counts, clusters * cluster, doing)
    tables: list[Range] = [(0, cluster), (first, entries * 8), (counts, len(refcounts))]
    tables += [(at, cluster) for at in (*seconds, *_entries(refcounts)) if at]
    covered = cluster // width * cluster
    compressed: list[Range] = []
    for number, at in enumerate(seconds):
        # One byte of each entry, and no loop over those of which none is compressed.
        kinds = _read(fd, at, cluster, doing)[::width] if at else b""
        if kinds.translate(None, PLAIN):
            begin = number * covered
            places = (begin + index * cluster for index, kind in enumerate(kinds) if kind & COMPRESSED)
            compressed += [(place, min(cluster, size - place)) for place in places if place < size]
    return Layout(cluster, size, _in_clusters(tables, cluster), merged(compressed))


def snapshots(fd: int) -> list[str]:
    """Names of the internal snapshots; none for what is no qcow2. Those that cannot be read are called "?"."""
    head = os.pread(fd, HEAD.size, 0)
    if len(head) < HEAD.size or not head.startswith(MAGIC):
        return []
    *_, count, at = HEAD.unpack(head)
    names: list[str] = []
    for _ in range(min(count, SNAPSHOTS)):
        entry = os.pread(fd, SNAPSHOT.size, at)
        if len(entry) < SNAPSHOT.size:
            return [*names, "?"]
        id_length, name_length, extra = SNAPSHOT.unpack(entry)
        start = at + SNAPSHOT.size + extra + id_length
        names.append(os.pread(fd, name_length, start).decode(errors="replace") or "?")
        at += -(-(start + name_length - at) // 8) * 8
    return names


def rest(fd: int, found: Layout, end: int) -> list[Range]:
    """What of the first `end` bytes of the file is no table and no hole."""
    gaps, position = [], 0
    for offset, length in [*found.tables, (end, 0)]:
        if offset > position:
            gaps.append((position, min(offset, end) - position))
        position = max(position, offset + length)
    return [(at, length) for start, gap in gaps for at, length in data_extents(fd, start, start + gap)]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Sorted, and those that touch or overlap made one."""
    result: list[Range] = []
    for offset, length in sorted(ranges):
        if result and offset <= sum(result[-1]):
            start = result[-1][0]
            result[-1] = start, max(sum(result[-1]), offset + length) - start
        else:
            result.append((offset, length))
    return result


def _in_clusters(tables: Iterable[Range], cluster: int) -> list[Range]:
    return merged((at // cluster * cluster, -(-(at % cluster + length) // cluster) * cluster) for at, length in tables)


def _entries(table: bytes) -> Iterator[int]:
    return (entry & OFFSET for (entry,) in struct.iter_unpack(">Q", table))


def _read(fd: int, offset: int, length: int, doing: str) -> bytes:
    content = os.pread(fd, length, offset) if length <= MOST else b""
    if len(content) != length:
        raise JobError(f"cannot {doing}: its tables are cut off; check tells more")
    return content
