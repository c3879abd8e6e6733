"""The rate that is shown."""

import pytest

from jobvisor.rate import Rate


def test_a_burst_at_the_beginning_is_soon_forgiven() -> None:
    """A bandwidth limit lets the first piece pass at once."""
    rate = Rate()
    rate.add(0.0, 0)
    rate.add(0.1, 10_000)
    assert rate.bps == pytest.approx(100_000)
    for tenth in range(2, 20):
        rate.add(tenth / 10, 10_000 + 1000 * (tenth - 1))
    assert rate.bps < 16_000


@pytest.mark.parametrize("period", [0.1, 0.5, 2.0])
def test_how_often_reports_come_changes_nothing(period: float) -> None:
    rate = Rate()
    now = 0.0
    while now < 4:
        rate.add(now, int(now * 1000))
        now += period
    while now <= 8:
        rate.add(now, 4000 + int((now - 4) * 3000))
        now += period
    assert 2300 < rate.bps < 3000


def test_a_pause_and_a_count_from_the_beginning_are_no_rates() -> None:
    rate = Rate()
    for second in range(3):
        rate.add(float(second), second * 1000)
    rate.pause()
    rate.add(100.0, 2000)
    rate.add(101.0, 3000)
    rate.add(102.0, 0)
    rate.add(103.0, 1000)
    assert rate.bps == pytest.approx(1000)


def test_nothing_is_known_before_the_second_report() -> None:
    rate = Rate()
    rate.add(0.0, 5000)
    assert rate.bps == 0.0
