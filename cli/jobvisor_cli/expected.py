"""What a dry run found out, in lines for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobvisor_cli.sizes import show_size
from jobvisor_cli.streams import printable


def expected_lines(result: Mapping[str, Any] | None, typed: Mapping[str, str] | None = None) -> str:
    """Such as "  write  b.raw: at most 1.5 GiB"; empty for what is no dry run's result.

    typed: the path of a volume → how the user wrote it.
    """
    if not result or not result.get("dry_run"):
        return ""
    names = typed or {}
    return "".join(f"  {printable(line)}\n" for line in _lines(result, lambda path: names.get(path, path)))


def _lines(result: Mapping[str, Any], name: Callable[[str], str]) -> Iterator[str]:
    most = "" if result.get("exact", True) else "at most "
    for verb in ("read", "write"):
        for entry in result.get(f"{verb}s", ()):
            count = entry["bytes"]
            if count != 0:
                amount = "as much as it takes" if count is None else most + show_size(count)
                yield f"{verb:<6} {name(entry['path'])}: {amount}"
    for lock in result.get("locks", ()):
        yield f"lock   {name(lock['path'])}: {lock['means']}"
    space, free = result.get("space"), result.get("free")
    if space is None:
        return
    there = "" if free is None else f"; {show_size(free)} are free"
    if space < 0:
        yield f"space  gives back {most}{show_size(-space)}{there}"
    elif space == 0:
        yield f"space  takes no more{there}"
    else:
        yield f"space  takes {most}{show_size(space)} more{there}"
