"""All that is known about qemu-img: how it is asked, what it answers, and how its errors read.

Images are handed over as json: names of descriptors that the worker holds (/proc/self/fd/N), with the format given and
file.locking=off: the worker's own locks would block qemu-img, and what is locked is exactly what is read. Observed with
7.2:

- A qcow2 cut off in the middle converts with exit status 0 and zeroes for what is lost: `sound` looks first.
- A conversion leaves its data in memory, without bound and without flushing: 4 GiB then took up to 2.5 s to be thrown
  away at an abort, and longer to be written by the closing fsync. With O_DIRECT and writes out of order (-t none -W)
  nothing piles up, and 1 GiB and its fsync took 0.9 s instead of 1.5 to 3.5.
- `create` truncates its file to nothing, which makes ext4 flush all of it later, and takes locks of its own. So the
  empty container is made in memory and its few bytes are copied to where they belong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from jobvisor_workers.data import libc
from jobvisor_workers.errors import InputOutput, JobError, NoSpace

if TYPE_CHECKING:
    from jobvisor_workers.children import Finished
    from jobvisor_workers.worker import Worker

Format = Literal["raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels", "luks"]

#: Format, offset and bytes by which it is known. What matches none is raw, also a fixed VHD, whose mark is at its end.
MAGIC: Final = (
    ("qcow", 0, b"QFI\xfb\x00\x00\x00\x01"),
    ("qcow2", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\x00"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vdi", 0x40, b"\x7f\x10\xda\xbe"),
    ("vpc", 0, b"conectix"),
    ("vhdx", 0, b"vhdxfile"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("luks", 0, b"LUKS\xba\xbe"),
)
#: Formats that may name a backing file, as far as qemu-img can clone one with it.
BACKED: Final = ("qcow2", "qed")
#: `qemu-img check` knows these; a qcow2 alone it checks for data beyond the end of the file.
CHECKED: Final = ("qcow2", "qed", "vdi", "vmdk", "vhdx", "parallels")

#: The one kind of VMDK that is compressed, and written from its beginning to its end only.
STREAM: Final = "streamOptimized"
#: Clusters compressed at once: zlib takes two thirds of the time then, zstd a ninth of zlib's.
COMPRESSING: Final = 8

#: What options of an encrypted image call its secret.
SECRET: Final = "key"
#: Counting how often a second lets it hash the secret, qemu-img (7.2) gives up where its first try takes less than a
#: tick of the clock: every third time on a fast machine.
CLOCK_WORDS: Final = b"Unable to get accurate CPU usage"
CLOCK_TRIES: Final = 30

#: The cluster of a parallels image, of which qemu-img says nothing.
PARALLELS: Final = 1 << 20

PROGRESS = re.compile(rb"\((\d+\.\d\d)/100%\)")
NO_SPACE_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True)
class Image:
    """An open image. `size`: bytes that a guest sees; `container`: bytes of the file or device itself."""

    path: str
    fd: int
    format: str
    size: int
    container: int
    backing: str | None = None
    backing_format: str | None = None
    cluster_size: int | None = None
    encrypted: bool = False
    dirty: bool = False
    snapshots: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Its container is all there is to know, without a key: to be read and copied byte by byte."""
        return self.format == "raw" or self.format == "luks" or self.encrypted


def probe(fd: int) -> str:
    """The format by its first bytes. A guest that can write to a raw disk can make it look like any other."""
    head = os.pread(fd, 512, 0)
    return next((name for name, offset, magic in MAGIC if head[offset:].startswith(magic)), "raw")


def look(worker: Worker, path: str, fd: int, format: str | None, doing: str) -> Image:
    """What an image says of itself, its backing file and data untouched. `format`: None to probe.

    `doing` begins the error, like "clone /v/a.qcow2". Raises JobError when it is not what it seems to be.
    """
    found = format or probe(fd)
    container = libc.size_of(fd)
    if found == "raw":
        return Image(path, fd, "raw", container, container)
    if os.pread(fd, 21, 0) == b"# Disk DescriptorFile":
        raise JobError(f"cannot {doing}: it is a VMDK whose data lies in other files; make one file of it first")
    name = _named({"driver": found, "file": _file(fd)})
    finished = worker.child(["qemu-img", "info", "--output=json", name], descriptors=[fd])
    if finished.status:
        advice = "" if format else "; if it is a raw disk that only begins like that, add --format raw"
        raise _failure(finished, f"{doing} as {found}", advice)
    said = msgspec.json.decode(finished.stdout)
    details = said.get("format-specific", {}).get("data", {})
    if "data-file" in details:
        raise JobError(f"cannot {doing}: its data lies in another file, {details['data-file']}; that is not supported")
    return Image(
        path,
        fd,
        found,
        said["virtual-size"],
        container,
        backing=said.get("backing-filename"),
        backing_format=said.get("backing-filename-format"),
        cluster_size=said.get("cluster-size"),
        encrypted=said.get("encrypted", False),
        dirty=said.get("dirty-flag", False),
        snapshots=len(said.get("snapshots", ())),
        details=details,
    )


def sound(worker: Worker, image: Image, doing: str) -> int:
    """Look through the image's tables; returns the bytes of data that they hold (without a backing file's).

    Raises JobError when it is corrupt or cut off. An image that was not closed cleanly has only its end looked at.
    """
    if image.details.get("corrupt"):
        raise JobError(f"cannot {doing}: {image.path} is marked corrupt; qemu-img check -r all repairs what it can")
    data: int | None = None
    if image.format in CHECKED and not image.dirty:
        finished = _ask(worker, "check", image)
        if finished.status in (1, 2):
            raise JobError(
                f"cannot {doing}: {image.path} is corrupt or cut off ({message_of(finished)}); check tells more"
            )
        if image.cluster_size and b"allocated-clusters" in finished.stdout:
            data = msgspec.json.decode(finished.stdout)["allocated-clusters"] * image.cluster_size
        if data is not None and image.format == "qcow2":
            return data
    mapped = _Map()
    finished = _ask(worker, "map", image, mapped.feed)
    if finished.status:
        raise _failure(finished, doing)
    if mapped.end > image.container + (image.cluster_size or 0):
        raise JobError(
            f"cannot {doing}: {image.path} is cut off: it has data at byte {mapped.end} of {image.container}"
        )
    return mapped.data if data is None else data


def data_from(worker: Worker, chain: Sequence[Image], start: int, doing: str) -> int:
    """Bytes of data, zeroes left out as far as the tables tell, that the guest sees at `start` and after."""
    mapped = _Map()
    name = _named(_node(chain))
    argv = ["qemu-img", "map", "--output=json", f"--start-offset={start}", name]
    finished = worker.child(argv, on_stdout=mapped.feed)
    if finished.status:
        raise _failure(finished, doing)
    return mapped.data


def data_by_depth(worker: Worker, chain: Sequence[Image], doing: str) -> dict[int, int]:
    """Bytes of data that the guest sees of each image of the chain (0: the top), as far as the tables tell."""
    mapped = _Map()
    finished = worker.child(["qemu-img", "map", "--output=json", _named(_node(chain))], on_stdout=mapped.feed)
    if finished.status:
        raise _failure(finished, doing)
    return mapped.by_depth


def places(worker: Worker, image: Image, doing: str) -> list[tuple[int, int]]:
    """Offset and length in the file of all that the tables point at. Raises JobError where they do not tell."""
    mapped = _Map()
    finished = _ask(worker, "map", image, mapped.feed)
    if finished.status:
        raise _failure(finished, doing)
    if mapped.nowhere:
        raise JobError(f"cannot {doing}: some of its data is compressed, and cannot be overwritten where it is")
    return mapped.places


def zero(worker: Worker, image: Image, ranges: Sequence[tuple[int, int]], doing: str) -> None:
    """Let the guest see zeroes in these ranges, by flags in the tables as far as the format has them."""
    commands = [word for offset, length in ranges for word in ("-c", f"write -q -z {offset} {length}")]
    finished = worker.child(["qemu-io", *commands, _named(_node([image]))])
    if finished.status:
        raise _failure(finished, doing)


def resize(worker: Worker, chain: Sequence[Image], size: int, doing: str) -> None:
    """Let the guest see `size` bytes in chain[0], which is locked for WRITE."""
    shrink = ["--shrink"] if size < chain[0].size else []
    finished = worker.child(["qemu-img", "resize", "-q", *shrink, _named(_node(chain)), str(size)])
    if finished.status:
        raise _failure(finished, doing)


class _Map:
    """Adds up the lines of `qemu-img map --output=json`, one extent each.

    blocks: how many of `unit` bytes have data in them. places: where in the file what is allocated lies; nowhere: some
    data has no such place.
    """

    def __init__(self, unit: int = 1) -> None:
        self.data = self.end = self.blocks = 0
        self.by_depth: dict[int, int] = {}
        self.places: list[tuple[int, int]] = []
        self.nowhere = False
        self._unit, self._counted = unit, 0
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            extent = msgspec.json.decode(line.strip(b"[], "))
            if "offset" in extent:
                self.places.append((extent["offset"], extent["length"]))
            self.nowhere = self.nowhere or (extent["data"] and "offset" not in extent)
            if extent["data"]:
                self.data += extent["length"]
                self.by_depth[extent["depth"]] = self.by_depth.get(extent["depth"], 0) + extent["length"]
                if "offset" in extent:  # of compressed data it is not told
                    self.end = max(self.end, extent["offset"] + extent["length"])
                first, after = extent["start"] // self._unit, -(-(extent["start"] + extent["length"]) // self._unit)
                self.blocks += after - max(first, self._counted)
                self._counted = after


def empty(
    worker: Worker,
    path: str,
    format: str,
    size: int,
    options: Mapping[str, str | int],
    backing: tuple[str, str] | None,
    doing: str,
    secret: int | None = None,
) -> int:
    """A descriptor of a new container in memory, for `size` bytes and with nothing in it; to be closed.

    `path`: what errors name. `backing`: name and format that it shall record. `secret`: an open file with what the
    options call SECRET; only its descriptor is handed over.
    """
    fd = os.memfd_create("container")
    try:
        named = ["-b", backing[0], "-F", backing[1]] if backing else []
        named += ["--object", f"secret,id={SECRET},file=/proc/self/fd/{secret}"] if secret is not None else []
        argv = ["qemu-img", "create", "-q", "-u", "-f", format, *_chosen(options), *named]
        for _ in range(CLOCK_TRIES):
            finished = worker.child([*argv, f"/proc/self/fd/{fd}", str(size)], descriptors=[fd])
            if CLOCK_WORDS not in finished.stderr:
                break
        if finished.status:
            raise _failure(finished, doing)
        made = look(worker, path, fd, format, doing)
        if made.size != size:
            raise JobError(f"cannot {doing}: qemu-img makes {format} images of {made.size} bytes, not {size}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def overhead(worker: Worker, like: Image, doing: str) -> int:
    """Bytes that the tables of such a qcow2 take at most; of another format nobody tells: 0."""
    if like.format != "qcow2":
        return 0
    return measure_empty(worker, like.size, like.format, options_of(like), doing)[1] - like.size


def measure_empty(
    worker: Worker, size: int, format: str, options: Mapping[str, str | int], doing: str
) -> tuple[int, int]:
    """As `measure`, for a new image of `size` bytes with nothing in it."""
    argv = ["qemu-img", "measure", "--output=json", "-O", format, *_chosen(options), "--size", str(size)]
    finished = worker.child(argv)
    if finished.status:
        raise _failure(finished, doing)
    said = msgspec.json.decode(finished.stdout)
    return int(said["required"]), int(said["fully-allocated"])


def measure(
    worker: Worker, chain: Sequence[Image], format: str, options: Mapping[str, str | int], doing: str
) -> tuple[int, int]:
    """Bytes that a qcow2 file with what the guest sees takes: with what is data, and fully allocated."""
    argv = ["qemu-img", "measure", "--output=json", "-O", format, *_chosen(options), _named(_node(chain))]
    finished = worker.child(argv)
    if finished.status:
        raise _failure(finished, doing)
    said = msgspec.json.decode(finished.stdout)
    return int(said["required"]), int(said["fully-allocated"])


def most(
    worker: Worker,
    chain: Sequence[Image],
    format: str,
    size: int,
    options: Mapping[str, str | int],
    doing: str,
    *,
    fill: bool = False,
) -> int:
    """As `measure`, for the formats of which qemu-img cannot tell: bytes that the file takes at most."""
    container = empty(worker, chain[0].path, format, size, options, None, doing)
    try:
        length = libc.size_of(container)
        unit = look(worker, chain[0].path, container, format, doing).cluster_size
    finally:
        os.close(container)
    if unit is None and format != "parallels":  # fixed: it is as long as it will be
        return length
    mapped = _Map(unit := unit or PARALLELS)
    finished = worker.child(["qemu-img", "map", "--output=json", _named(_node(chain))], on_stdout=mapped.feed)
    if finished.status:
        raise _failure(finished, doing)
    blocks = -(-size // unit) if fill else mapped.blocks
    # Beside each block a sector (vpc); tables that grow with the data (qed); the last page of each.
    return length + blocks * (unit + 512) + (8 * unit if format == "qed" else 8192)


def _chosen(options: Mapping[str, str | int]) -> list[str]:
    return ["-o", ",".join(f"{key}={value}" for key, value in options.items())] if options else []


def options_of(image: Image) -> dict[str, str | int]:
    """What `create` must be told to make another one of the same kind; the rest is each format's default."""
    about = image.details
    options: dict[str, str | int] = {}
    match image.format:
        case "qcow2":
            options = {"compat": about["compat"], "cluster_size": image.cluster_size or 65536}
            if about["compat"] != "0.10":
                options |= {
                    "lazy_refcounts": _switch(about["lazy-refcounts"]),
                    "refcount_bits": about["refcount-bits"],
                    "extended_l2": _switch(about.get("extended-l2", False)),
                    "compression_type": about.get("compression-type", "zlib"),
                }
        case "qed":
            options = {"cluster_size": image.cluster_size or 65536}
        case "vmdk":
            adapter = re.search(
                rb'ddb\.adapterType = "(ide|buslogic|lsilogic|legacyESX)"', os.pread(image.fd, 1 << 16, 0)
            )
            options = {"subformat": about["create-type"], "adapter_type": adapter[1].decode() if adapter else "ide"}
        case "vpc":
            # Without force_size the size is rounded to a geometry.
            options = {"subformat": "dynamic" if image.cluster_size else "fixed", "force_size": "on"}
        case "vhdx":
            options = {"block_size": image.cluster_size or 0}
    return options


def convert(
    worker: Worker,
    chain: Sequence[Image],
    target: Image,
    *,
    fill: bool = False,
    keep: bool = True,
    clean: bool = True,
    compress: bool = False,
    doing: str,
) -> None:
    """Bring what the guest sees of chain[0] into `target`, a container as `empty` makes it; progress is told.

    keep: `target` has the backing files chain[1:] too, and only what lies above them is written. fill: write all
    clusters, zeroes too. clean: `target` reads as zeroes now. compress: cluster by cluster, on all processors
    where they may be written in any order.
    """
    top, *below = chain if keep else chain[:1]
    argv = ["qemu-img", "convert", "-n", "-p", "-O", target.format]
    if below:
        argv += ["-B", top.backing or "", "-F", below[0].format]
    elif clean:
        argv += ["--target-is-zero"]
    argv += ["-S", "0"] if fill else []
    if compress:
        argv += ["-c"] if target.format == "vmdk" else ["-c", "-W", "-m", str(COMPRESSING)]
    elif _takes_direct(target.fd):
        argv += ["-t", "none", "-W"]
    relay = _relay(worker, top.size)
    if worker.bandwidth:
        # Progress counts what was begun. Of the usual eight pieces of 2 MiB at a time that is much at a low rate.
        argv += ["-r", str(worker.bandwidth), *([] if compress else ["-m", "1"])]
        relay = _relay(worker, top.size, late=True)
    source, written = _node(chain), _node([target, *below])
    finished = worker.child([*argv, _named(source), _named(written)], on_stdout=relay)
    if finished.status:
        raise _failure(finished, doing)


def commit(worker: Worker, chain: Sequence[Image], base: Image, doing: str) -> None:
    """Write what the guest sees above `base`, one of chain[1:], into it; chain[0] stays as it was."""
    argv = ["qemu-img", "commit", "-p", "-d", "-t", "none" if _takes_direct(base.fd) else "writeback"]
    # Without -b, which needs a name: of the base it knows only how it was opened.
    argv += [] if base is chain[1] else ["-b", f"/proc/self/fd/{base.fd}"]
    argv += ["-r", str(worker.bandwidth)] if worker.bandwidth else []
    finished = worker.child([*argv, _named(_node(chain))], on_stdout=_relay(worker, chain[0].size))
    if finished.status:
        raise _failure(finished, doing)


def rebase(worker: Worker, chain: Sequence[Image], backing: tuple[str, str] | None, doing: str) -> None:
    """Give chain[0] another backing file, by name and format, or none; what the guest sees stays.

    The header changes last, and by then all else has left qemu-img: with a cache that holds back, a SIGKILL between
    the two would lose clusters.
    """
    cache = "directsync" if _takes_direct(chain[0].fd) else "writethrough"
    argv = ["qemu-img", "rebase", "-p", "-t", cache, "-b", backing[0] if backing else ""]
    argv += ["-F", backing[1]] if backing else []
    node = _node(chain)
    if worker.bandwidth:
        argv += ["--object", f"throttle-group,id=limit,limits.bps-write={worker.bandwidth}"]
        node = {"driver": "throttle", "throttle-group": "limit", "file": node}
    finished = worker.child([*argv, _named(node)], on_stdout=_relay(worker, chain[0].size))
    if finished.status:
        raise _failure(finished, doing)


def _relay(worker: Worker, total: int, *, late: bool = False) -> Callable[[bytes], None]:
    """What takes the output of -p and tells how many of `total` bytes are done. `late`: the last but one word is so."""
    rest, last = b"", 0.0

    def relay(piece: bytes) -> None:
        nonlocal rest, last
        *said, rest = (rest + piece).rsplit(b"\r", 1)
        for share in map(float, PROGRESS.findall(b"".join(said))):
            worker.reached(int(total * (last if late else share) / 100))
            last = share

    return relay


def compare(worker: Worker, one: Sequence[Image], other: Sequence[Image], *, strict: bool, doing: str) -> Finished:
    """Ended with status 0 or 1 (they differ, as its output says); progress up to the larger size is told.

    qemu-img compare has no limit of its own: each image is read through one.
    """
    argv = ["qemu-img", "compare", "-p", *(["-s"] if strict else [])]
    nodes = [_node(one), _node(other)]
    if worker.bandwidth:
        for name in ("limit0", "limit1"):
            argv += ["--object", f"throttle-group,id={name},limits.bps-read={worker.bandwidth}"]
        nodes = [
            {"driver": "throttle", "throttle-group": f"limit{number}", "file": node}
            for number, node in enumerate(nodes)
        ]
    total = max(one[0].size, other[0].size)
    finished = worker.child([*argv, *map(_named, nodes)], on_stdout=_relay(worker, total))
    if finished.status > 1:
        raise _failure(finished, doing)
    return finished


def check(worker: Worker, image: Image, repair: str | None) -> Finished:
    """Look through the tables, and repair them: "leaks" or "all"; to be judged by the caller."""
    argv = ["qemu-img", "check", "--output=json", *(["-r", repair] if repair else [])]
    node = _node([image])
    if worker.bandwidth:  # of the file below, since it is not what a guest sees that is read
        argv += ["--object", f"throttle-group,id=limit,limits.bps-total={worker.bandwidth}"]
        node["file"] = {"driver": "throttle", "throttle-group": "limit", "file": node["file"]}
    return worker.child([*argv, _named(node)])


def send(worker: Worker, chain: Sequence[Image], socket: int, *, doing: str, on_tick: Callable[[], None]) -> None:
    """Write what the guest sees, in order and without its zeroes, to the NBD server at the other end of `socket`."""
    server = {"driver": "nbd", "server": {"type": "fd", "str": str(socket)}}
    argv = ["qemu-img", "convert", "-n", "--target-is-zero", "-S", "1M", "-O", "raw"]
    argv += ["-r", str(worker.bandwidth)] if worker.bandwidth else []
    ends = _named(_node(chain)), _named({"driver": "raw", "file": server})
    finished = worker.child([*argv, *ends], descriptors=[socket], on_tick=on_tick)
    if finished.status:
        raise _failure(finished, doing)


def rename_backing(worker: Worker, target: int, format: str, backing: tuple[str, str], doing: str) -> None:
    """Record another name of the same backing file."""
    node = _named({"driver": format, "file": _file(target), "backing": None})
    argv = ["qemu-img", "rebase", "-q", "-u", "-b", backing[0], "-F", backing[1], node]
    finished = worker.child(argv, descriptors=[target])
    if finished.status:
        raise _failure(finished, doing)


def _takes_direct(fd: int) -> bool:
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:  # FUSE, older tmpfs
        return False
    return True


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _file(fd: int) -> dict[str, Any]:
    driver = "host_device" if libc.is_block_device(fd) else "file"
    return {"driver": driver, "filename": f"/proc/self/fd/{fd}", "locking": "off"}


def _node(chain: Sequence[Image]) -> dict[str, Any]:
    top, *below = chain
    node: dict[str, Any] = {"driver": top.format, "file": _file(top.fd)}
    if top.format in BACKED:
        node["backing"] = _node(below) if below else None
    return node


def _named(node: dict[str, Any]) -> str:
    return "json:" + msgspec.json.encode(node).decode()


def _ask(worker: Worker, verb: str, image: Image, on_stdout: Callable[[bytes], None] | None = None) -> Finished:
    argv = ["qemu-img", verb, "--output=json", _named(_node([image]))]
    return worker.child(argv, on_stdout=on_stdout, descriptors=[image.fd])


def message_of(finished: Finished) -> str:
    """Its last line without names that mean nothing to a reader."""
    line = finished.last_line().removeprefix("qemu-img: ")
    return re.sub(r"(Could not open )?'?(json:\{.*\}|/proc/self/fd/\d+)'?(: )?", "", line)


def _failure(finished: Finished, doing: str, advice: str = "") -> JobError:
    said = message_of(finished)
    text = f"cannot {doing}: {said}{advice}"
    if any(words in said for words in NO_SPACE_WORDS):
        return NoSpace(text)
    if "Input/output error" in said:
        return InputOutput(text)
    return JobError(text)
