from __future__ import annotations

import pytest

from jobvisor_cli import sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("17B", 17), ("10G", 10 << 30), ("512MiB", 512 << 20), ("512mib", 512 << 20),
        ("1.5K", 1536), ("2KB", 2000), ("3 MB", 3_000_000), ("7EiB", 7 << 60), ("0.001KB", 1),
    ],
)  # fmt: skip
def test_sizes_as_virsh_reads_them(text: str, size: int) -> None:
    assert sizes.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "10 Gib it", "1e3", "8E", "0x10", "１０", "1..5K", "K"])
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        sizes.parse_size(text)


def test_a_rate_needs_a_unit() -> None:
    assert sizes.parse_rate("50MiB") == sizes.parse_rate("50MiB/s") == 50 << 20
    with pytest.raises(ValueError, match=r"50 needs a unit, like 50MiB \(per second\)"):
        sizes.parse_rate("50")
    with pytest.raises(ValueError, match="more than 0"):
        sizes.parse_rate("0K")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d", 86400),
        ("0.5s", 0.5),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert sizes.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "s", "2w", "1m1h", "soon", "1e9999", "99999999999"])
def test_nonsense_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        sizes.parse_time(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (17, "17 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (512 << 20, "512 MiB"), (1 << 30, "1 GiB"),
     (int(1.26 * 2**30), "1.26 GiB"), (45 << 40, "45 TiB"), (100 << 20, "100 MiB")],
)  # fmt: skip
def test_sizes_shown(count: int, text: str) -> None:
    assert sizes.show_size(count) == text


def test_times_shown() -> None:
    assert [sizes.show_time(s) for s in (0.04, 1.23, 42.4, 59.7, 100, 7500)] == [
        "0.0 s", "1.2 s", "42 s", "1 min 0 s", "1 min 40 s", "2 h 5 min",
    ]  # fmt: skip
    assert [sizes.show_clock(s) for s in (0, 58.9, 100, 7500)] == ["0:00", "0:58", "1:40", "2:05:00"]
