"""Sizes, rates and times, as people write them and as they are shown to people."""

from __future__ import annotations

import re

_LETTERS = "KMGTPE"
#: As virsh reads them: K and KiB are 1024 bytes, KB is 1000; small letters do as well.
_FACTORS: dict[str, int] = {"": 1, "b": 1} | {
    unit.lower(): base**power
    for power, letter in enumerate(_LETTERS, 1)
    for unit, base in ((letter, 1024), (f"{letter}iB", 1024), (f"{letter}B", 1000))
}
# Not compiled: most commands read neither.
_SIZE = r"(\d+(?:\.\d+)?)\s*([a-z]*)"
_TIME = r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?"
_SECONDS = (86400, 3600, 60, 1)
#: What a JSON reader and the journal can hold.
_MOST = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes of "10G", "512MiB", "1.5GB" or "4096". Raises ValueError."""
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE | re.ASCII)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size; write it like 10G or 512MiB")
    whole, _, decimals = match[1].partition(".")
    size, rest = divmod(int(whole + decimals) * factor, int("1" + "0" * len(decimals)))
    if rest:
        raise ValueError(f"{text} is no whole number of bytes")
    if size > _MOST:
        raise ValueError(f"{text} is too large")
    return size


def parse_rate(text: str) -> int:
    """Bytes per second of "50MiB" or "50MiB/s"; a bare number is refused: virsh's own commands differ in what it means.

    Raises ValueError.
    """
    bare = text.strip().removesuffix("/s")
    if re.fullmatch(r"\d+(\.\d+)?", bare):
        raise ValueError(f"{text} needs a unit, like {bare}MiB (per second)")
    rate = parse_size(bare)
    if rate == 0:
        raise ValueError("it is to be more than 0; leave it out for no limit")
    return rate


def parse_time(text: str) -> float:
    """Seconds of "90", "90s", "10m", "2h", "1h30m" or "1d". Raises ValueError."""
    seconds = parse_span(text)
    if seconds == 0:
        raise ValueError("it is to be more than 0 seconds; leave it out for no limit")
    return seconds


def parse_span(text: str) -> float:
    """The same with 0: at once, or from now on. Raises ValueError."""
    bare = text.strip()
    match = re.fullmatch(_TIME, bare, re.IGNORECASE | re.ASCII)
    if not bare or match is None:
        raise ValueError(f"{text!r} is no time; write it like 90s, 10m, 2h or 7d")
    seconds = sum(float(part) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True) if part)
    if not seconds < 1e9:
        raise ValueError(f"{text} is too long")
    return seconds


def scaled(count: float) -> tuple[float, str]:
    """A number below 1024 and its unit."""
    unit = "B"
    for letter in _LETTERS:
        if count < 1024:
            break
        count, unit = count / 1024, f"{letter}iB"
    return count, unit


def show_size(count: float) -> str:
    """Three digits are enough to read: 17 B, 1.5 GiB, 512 MiB."""
    number, unit = scaled(count)
    digits = 0 if unit == "B" or number >= 100 else 1 if number >= 10 else 2
    text = f"{number:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits else text} {unit}"


def show_time(seconds: float) -> str:
    """For a sentence: 1.2 s, 42 s, 1 min 40 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def show_clock(seconds: float) -> str:
    """For a column: 0:58, 1:40, 2:05:00."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def show_age(seconds: float) -> str:
    """For a column, of jobs that may be old: 0:58, 23:59:59, 1d 4h, 120d."""
    if seconds < 86400:
        return show_clock(max(seconds, 0))
    days, rest = divmod(int(seconds), 86400)
    return f"{days}d {rest // 3600}h" if days < 10 else f"{days}d"
