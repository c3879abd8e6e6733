"""The passes of each wipe algorithm, under libvirt's names.

As scrub 2.6 documents them for the patterns that libvirt names; where the standard asks for a verification, scrub
makes the random pass first so that what is read back is known. gutmann: "Secure Deletion of Data from Magnetic and
Solid-State Memory", 1996, table 1, in the printed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Pass:
    """Once over all bytes. `pattern` is repeated from byte 0 on; what is random, or is read back as that, has none."""

    kind: Literal["fill", "random", "verify"]
    pattern: bytes = b""

    @property
    def name(self) -> str:
        """How a phase is called: "0x55", "0x924924", "random", "verify 0x00"."""
        value = f"0x{self.pattern.hex()}"
        return {"fill": value, "random": "random", "verify": f"verify {value if self.pattern else 'random'}"}[self.kind]


def _fill(*patterns: str) -> tuple[Pass, ...]:
    return tuple(Pass("fill", bytes.fromhex(pattern)) for pattern in patterns)


def _random(count: int) -> tuple[Pass, ...]:
    return (Pass("random"),) * count


def _verify(pattern: str) -> tuple[Pass, ...]:
    return (Pass("verify", bytes.fromhex(pattern)),)


def verified(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """With what is written last read back, if it is not anyway."""
    return passes if passes[-1].kind == "verify" else (*passes, Pass("verify", passes[-1].pattern))


PASSES: Final[dict[str, tuple[Pass, ...]]] = {
    "zero": _fill("00"),
    "nnsa": _random(2) + _fill("00") + _verify("00"),
    "dod": _random(1) + _fill("00", "ff") + _verify("ff"),
    "bsi": _fill("ff", "fe", "fd", "fb", "f7", "ef", "df", "bf", "7f"),
    "gutmann": (
        _random(4)
        + _fill("55", "aa", "924924", "492492", "249249")
        + _fill("00", "11", "22", "33", "44", "55", "66", "77", "88", "99", "aa", "bb", "cc", "dd", "ee", "ff")
        + _fill("924924", "492492", "249249", "6db6db", "b6db6d", "db6db6")
        + _random(4)
    ),
    "schneier": _fill("00", "ff") + _random(5),
    "pfitzner7": _random(7),
    "pfitzner33": _random(33),
    "random": _random(1),
}
