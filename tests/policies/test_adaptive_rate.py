"""The adaptive rate, learned from 429 responses alone: measurement, decrease and recovery.

The numbers are calculated by hand. "Ten a second" means one sample every half second, with 100 tokens a request.
"""

from __future__ import annotations

import math

import pytest

from llmopt.policies.adaptive_rate import CubicRate

FREE = (math.inf, math.inf)


def run(
    it: CubicRate, start: float, end: float, speed: float, before: float = 0.0, each: float = 100.0
) -> float:
    """Record samples at a steady speed from `start` until before `end`; return the number of requests by `end`."""
    steps = round((end - start) * 2)
    for step in range(steps):
        requests = before + speed * step / 2
        it.add_sample(start + step / 2, (requests, requests * each))
    return before + speed * (end - start)


def cut(
    it: CubicRate,
    now: float,
    requests: float,
    rates: tuple[float, float] = FREE,
    *,
    sent_at: float | None = None,
    each: float = 100.0,
) -> bool:
    return it.cut(now, now if sent_at is None else sent_at, each, (requests, requests * each), rates)


def plateau(it: CubicRate) -> tuple[float, float]:
    """The rates to which the curve returns."""
    return it.rates(it._cut_at + it._recovery_s)


def measured() -> CubicRate:
    """Ten requests a second for ten seconds, then a refusal: 100 in 10 s, and one second for the burst."""
    it = CubicRate()
    requests = run(it, 0.0, 10.0, 10.0)
    assert cut(it, 10.0, requests)
    return it


def test_without_a_refusal_no_rate_is_learned() -> None:
    """The first sample may be taken at once."""
    it = CubicRate()
    assert (it.active, it.repeated, it.next_sample_at) == (False, False, -math.inf)
    assert repr(it) == "CubicRate(nothing)"


def test_without_a_measurement_the_rate_is_seven_tenths_of_the_current_limit() -> None:
    """Of the narrower limit. The curve dips by a tenth, is back after six seconds, and then exceeds it."""
    it = CubicRate()
    assert cut(it, 10.0, 1, (10.0, math.inf))
    assert it.active
    assert not it.repeated
    for now, factor in ((10, 0.9), (13, 1 - 0.1 / 8), (16, 1.0), (19, 1 + 0.1 / 8), (22, 1.1), (28, 1.8)):
        requests, tokens = it.rates(float(now))
        assert requests == pytest.approx(7 * factor)
        assert tokens == math.inf
    assert it.next_sample_at == 10.5
    assert repr(it) == "CubicRate(7/s)"


def test_without_a_limit_and_with_few_requests_no_rate_is_learned() -> None:
    """The refusal does not count; the measurement starts there."""
    it = CubicRate()
    assert not cut(it, 10.0, 1)
    assert not it.active
    requests = run(it, 10.5, 16.5, 8.0, before=1.0)
    assert cut(it, 16.5, requests)
    # 48 requests in the 6.5 seconds since the bucket was empty.
    assert it.rates(22.5)[0] == pytest.approx(48 / 6.5)


def test_the_measured_rate_is_the_granted_requests_less_a_burst() -> None:
    """100 requests in ten seconds and one second for the burst."""
    it = measured()
    assert it.active
    assert it.rates(10.0)[0] == pytest.approx(0.9 * 100 / 11)
    requests, tokens = it.rates(16.0)
    assert requests == pytest.approx(100 / 11)
    assert tokens == pytest.approx(100 / 11 * 100 * 1.1)


def test_the_fastest_interval_is_the_measured_rate() -> None:
    """A slow beginning does not hide that the server allowed more later."""
    it = CubicRate()
    requests = run(it, 0.0, 10.0, 1.0)
    requests = run(it, 10.0, 20.0, 10.0, before=requests)
    assert cut(it, 20.0, requests)
    assert it.rates(26.0)[0] == pytest.approx(100 / 11)


def test_the_measured_rate_is_never_above_the_current_limit() -> None:
    """The limit of requests, or the limit of tokens at the measured tokens per request."""
    for rates, expected in (
        ((5.0, math.inf), 5.0),
        ((math.inf, 300.0), 3.0),
        ((4.0, 300.0), 3.0),
        (FREE, 100 / 11),
    ):
        it = CubicRate()
        requests = run(it, 0.0, 10.0, 10.0)
        assert cut(it, 10.0, requests, rates)
        assert plateau(it)[0] == pytest.approx(expected)


def test_between_two_moments_of_an_empty_bucket_the_rate_is_exact() -> None:
    it = measured()
    requests = run(it, 10.5, 16.0, 8.0, before=104.0)
    assert requests == 148
    assert cut(it, 16.0, requests)
    assert not it.repeated
    assert it.rates(22.0)[0] == pytest.approx(8.0)


def test_tokens_are_measured_when_requests_were_large() -> None:
    it = CubicRate()
    it.add_sample(0.0, (0.0, 0.0))
    it.add_sample(1.0, (10.0, 10_000.0))
    it.add_sample(6.0, (11.0, 10_010.0))
    assert it.cut(10.0, 10.0, 10.0, (12.0, 10_020.0), FREE)
    weights = [math.exp((then - 10) / 60) for then in (1.0, 6.0, 10.0)]
    each = (10_000 * weights[0] + 10 * weights[1] + 10 * weights[2]) / (
        10 * weights[0] + weights[1] + weights[2]
    )
    by_requests, by_tokens = 12 / 11, 10_020 / each / 15
    assert by_tokens < by_requests
    assert plateau(it) == (pytest.approx(by_requests), pytest.approx(by_requests * each * 1.1))
    it = CubicRate()
    it.add_sample(0.0, (0.0, 0.0))
    for second in range(1, 10):
        it.add_sample(float(second), (10.0, 1_000.0))
    assert it.cut(10.0, 10.0, 10.0, (11.0, 9_000.0), FREE)
    # One request of 8,000 tokens among ten of 100: the tokens show a higher use than the requests.
    weight = math.exp(-9 / 60)
    each = (1_000 * weight + 8_000) / (10 * weight + 1)
    # In the two seconds since the last sample but one; an interval shorter than a burst is not measured.
    assert plateau(it)[0] == pytest.approx(8_000 / each / (2 + 5))


def test_tokens_per_request_need_five_requests() -> None:
    for count, has_tokens in ((4, False), (5, True)):
        it = CubicRate()
        assert cut(it, 10.0, count, (10.0, math.inf))
        assert math.isfinite(it.rates(16.0)[1]) is has_tokens


def test_fewer_than_five_requests_since_the_anchor_are_not_measured() -> None:
    """The rate is then seven tenths of the current limit; five requests are measured."""
    for count, expected in ((4, 7.0), (5, 5 / 11)):
        it = CubicRate()
        it.add_sample(0.0, (0.0, 0.0))
        it.add_sample(5.0, (float(count), 0.0))
        assert cut(it, 10.0, count, (10.0, math.inf), each=0.0)
        assert plateau(it)[0] == pytest.approx(max(0.5, expected))


# Several refusals from one overload


def test_refusals_count_once_a_second() -> None:
    """Refusals of requests that were sent before the last decrease do not count at all."""
    it = measured()
    assert not cut(it, 10.99, 105)
    assert cut(it, 11.0, 105)
    it = measured()
    assert not cut(it, 30.0, 200, sent_at=9.99)
    assert cut(it, 30.0, 200, sent_at=10.0)


def test_a_late_refusal_corrects_the_measurement() -> None:
    """The request had been counted as granted: first one of 100, then one of 99."""
    it = measured()
    assert not cut(it, 10.2, 100, sent_at=9.0)
    assert it.rates(16.0)[0] == pytest.approx(99 / 11)
    assert not cut(it, 10.3, 100, sent_at=9.0)
    assert it.rates(16.0)[0] == pytest.approx(98 / 11)


def test_a_correction_stops_at_the_minimum_rate_and_at_the_last_request() -> None:
    """The minimum is half a request a second."""
    it = CubicRate()
    it.add_sample(0.0, (0.0, 0.0))
    assert cut(it, 9.0, 5, each=0.0)
    assert plateau(it)[0] == 0.5
    for _ in range(10):
        cut(it, 9.1, 5, sent_at=8.0, each=0.0)
    assert plateau(it)[0] == 0.5
    assert it._counted == 1


def test_a_refused_request_is_removed_from_the_samples_since_it_was_sent() -> None:
    it = CubicRate()
    for second in range(4):
        it.add_sample(float(second), (second * 10.0, second * 1_000.0))
    it.cut(4.0, 2.0, 70.0, (39.0, 3_930.0), (10.0, 1_000.0))
    it = CubicRate()
    for second in range(4):
        it.add_sample(float(second), (second * 10.0, second * 1_000.0))
    it._subtract_refused(2.0, 70.0)
    assert list(it._samples) == [
        (0.0, 0.0, 0.0),
        (1.0, 10.0, 1_000.0),
        (2.0, 19.0, 1_930.0),
        (3.0, 29.0, 2_930.0),
    ]
    it._subtract_refused(3.5, 70.0)
    assert it._samples[-1] == (3.0, 29.0, 2_930.0)


# A refusal soon after another


def test_soon_after_a_reliable_measurement_the_rate_falls_by_fifteen_percent() -> None:
    """The time since then is too short for a better measurement."""
    it = measured()
    requests = run(it, 10.5, 16.0, 8.0, before=104.0)
    assert cut(it, 16.0, requests)
    requests = run(it, 16.5, 18.0, 8.0, before=requests + 4)
    assert cut(it, 18.0, requests, (8.0, math.inf))
    assert it.repeated
    assert plateau(it)[0] == pytest.approx(8.0 * 0.85)
    # The same again, because the rate still comes from that measurement.
    requests = run(it, 18.5, 19.5, 8.0, before=requests + 4)
    assert cut(it, 19.5, requests, (8.0, math.inf))
    assert plateau(it)[0] == pytest.approx(8.0 * 0.85 * 0.85)
    # Four seconds after the bucket was empty the rate is measured again.
    requests = run(it, 20.0, 20.5, 8.0, before=requests + 4)
    assert cut(it, 20.5, requests, (8.0, math.inf))
    assert plateau(it)[0] == pytest.approx(8.0 * 0.7)


def test_soon_after_an_unreliable_measurement_the_rate_falls_by_three_tenths() -> None:
    """Of the current limit, unless the measured rate is below that."""
    it = measured()
    requests = run(it, 10.5, 12.0, 8.0, before=104.0)
    assert cut(it, 12.0, requests, (9.0, math.inf))
    assert it.repeated
    assert plateau(it)[0] == pytest.approx(9.0 * 0.7)
    it = measured()
    requests = run(it, 10.5, 12.0, 4.0, before=102.0)
    assert cut(it, 12.0, requests, (9.0, math.inf))
    assert plateau(it)[0] == pytest.approx(8 / 2)


def test_soon_means_within_three_seconds() -> None:
    """Since the last decrease, or since the first sample where there was no decrease."""
    for now, soon in ((12.99, True), (13.0, False)):
        it = measured()
        assert cut(it, now, 120)
        assert it.repeated is soon
        it = CubicRate()
        it.add_sample(10.0, (0.0, 0.0))
        assert cut(it, now, 20)
        assert it.repeated is soon


def test_the_anchor_stays_for_four_seconds() -> None:
    """A shorter cycle is measured from the beginning of the longer cycle."""
    for now, kept in ((13.9, True), (14.0, False)):
        it = measured()
        it.add_sample(12.0, (116.0, 11_600.0))
        assert cut(it, now, 130)
        assert (it._samples[0][0] == 10.0) is kept
        assert len(it._samples) == (3 if kept else 1)


# Samples


def test_samples_are_taken_every_half_second() -> None:
    """Less often at a low rate, because its curve is longer."""
    it = CubicRate()
    it.add_sample(3.0, (0.0, 0.0))
    assert it.next_sample_at == 3.5
    it = CubicRate()
    assert cut(it, 10.0, 1, (1.0, math.inf))
    assert it._recovery_s == pytest.approx(30 / 0.7)
    assert it.next_sample_at == pytest.approx(10 + 0.5 * it._recovery_s / 6)


@pytest.mark.parametrize(("rate", "recovery"), [(10.0, 6.0), (100.0, 6.0), (2.0, 30 / 1.4), (0.1, 60.0)])
def test_recovery_takes_thirty_requests_but_six_to_sixty_seconds(rate: float, recovery: float) -> None:
    """One curve serves slow and fast limits."""
    it = CubicRate()
    assert cut(it, 0.0, 1, (rate, math.inf))
    assert it._recovery_s == pytest.approx(recovery)
    assert it.rates(recovery)[0] == pytest.approx(max(0.5, 0.7 * rate))


def test_after_five_idle_seconds_the_samples_restart() -> None:
    """The bucket of an idle server may have been full."""
    it = measured()
    it.add_sample(15.5, (110.0, 11_000.0))
    assert it._anchored
    assert len(it._samples) == 2
    it.add_sample(21.1, (120.0, 12_000.0))
    assert not it._anchored
    assert len(it._samples) == 1


def test_sixty_samples_are_kept() -> None:
    """The anchor is dropped when it is older than the samples."""
    it = measured()
    requests = run(it, 10.5, 39.5, 1.0, before=100.0)
    assert len(it._samples) == 59
    run(it, 39.5, 40.0, 1.0, before=requests)
    assert (len(it._samples), it._anchored) == (60, True)
    run(it, 40.0, 40.5, 1.0, before=requests)
    assert (len(it._samples), it._anchored) == (60, False)


def test_tokens_per_request_are_those_of_the_last_minute() -> None:
    """Old requests count less and less, and refunds never push the counts below zero."""
    it = CubicRate()
    it.add_sample(0.0, (10.0, 1_000.0))
    it.add_sample(60.0, (20.0, 11_000.0))
    weight = math.exp(-1)
    assert it._mix == (pytest.approx(10 * weight + 10), pytest.approx(1_000 * weight + 10_000))
    it.add_sample(60.0, (15.0, 10_000.0))
    assert it._mix == (pytest.approx(10 * weight + 10), pytest.approx(1_000 * weight + 10_000))


# Forgetting the rate


def test_the_rate_is_forgotten_when_the_curve_exceeds_a_thousand_times_it() -> None:
    it = measured()
    x = (999 / 0.1) ** (1 / 3)
    assert it.rates(10 + 6 * (1 + x) - 0.1)[0] < 100 / 11 * 1_000
    assert it.active
    assert it.rates(10 + 6 * (1 + x) + 0.1)[0] == math.inf
    assert not it.active


def test_forget_drops_the_rate() -> None:
    """A later refusal is measured again."""
    it = measured()
    it.forget()
    assert (it.active, it._plateau_rate) == (False, math.inf)
    assert repr(it) == "CubicRate(nothing)"
