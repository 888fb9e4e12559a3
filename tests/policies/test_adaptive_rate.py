"""The adaptive rate, learned from 429s alone: measurement, decrease and recovery.

Numbers are worked out by hand. "Ten a second" is noted every half second, with 100 tokens a request.
"""

from __future__ import annotations

import math

import pytest

from llmopt.policies.adaptive_rate import CubicRate

FREE = (math.inf, math.inf)


def run(
    it: CubicRate, start: float, end: float, speed: float, before: float = 0.0, each: float = 100.0
) -> float:
    """Note what goes out at a steady speed, from one moment until before another; requests by the end."""
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
    """The rates that it comes back to."""
    return it.rates(it._cut_at + it._recovery_s)


def measured() -> CubicRate:
    """Ten a second for ten seconds, then a refusal: 100 in 10 s and a burst's second."""
    it = CubicRate()
    requests = run(it, 0.0, 10.0, 10.0)
    assert cut(it, 10.0, requests)
    return it


def test_at_first_nothing_is_learned() -> None:
    """And the first note is wanted at once."""
    it = CubicRate()
    assert (it.active, it.repeated, it.next_sample_at) == (False, False, -math.inf)
    assert repr(it) == "CubicRate(nothing)"


def test_without_a_measurement_it_is_seven_tenths_of_the_rate_in_force() -> None:
    """Of the narrower one; with a dip of a tenth, back after six seconds, and beyond after that."""
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


def test_without_a_rate_in_force_and_with_few_requests_there_is_nothing_to_tell() -> None:
    """It does not count, and from here on is measured."""
    it = CubicRate()
    assert not cut(it, 10.0, 1)
    assert not it.active
    requests = run(it, 10.5, 16.5, 8.0, before=1.0)
    assert cut(it, 16.5, requests)
    # 48 in the six seconds and a half since the bucket was empty.
    assert it.rates(22.5)[0] == pytest.approx(48 / 6.5)


def test_the_rate_is_measured() -> None:
    """What was granted in any time, less a burst: a hundred in ten seconds and one."""
    it = measured()
    assert it.active
    assert it.rates(10.0)[0] == pytest.approx(0.9 * 100 / 11)
    requests, tokens = it.rates(16.0)
    assert requests == pytest.approx(100 / 11)
    assert tokens == pytest.approx(100 / 11 * 100 * 1.1)


def test_the_best_of_all_stretches_counts() -> None:
    """A slow beginning does not hide that the server allowed more later."""
    it = CubicRate()
    requests = run(it, 0.0, 10.0, 1.0)
    requests = run(it, 10.0, 20.0, 10.0, before=requests)
    assert cut(it, 20.0, requests)
    assert it.rates(26.0)[0] == pytest.approx(100 / 11)


def test_it_is_never_above_the_rate_in_force() -> None:
    """By requests, or by tokens at their mixture."""
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
    """Eight a second for six seconds are eight a second."""
    it = measured()
    requests = run(it, 10.5, 16.0, 8.0, before=104.0)
    assert requests == 148
    assert cut(it, 16.0, requests)
    assert not it.repeated
    assert it.rates(22.0)[0] == pytest.approx(8.0)


def test_tokens_may_tell_more_than_requests() -> None:
    """Where requests were large, their tokens are what was measured."""
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
    # One request of 8,000 tokens among ten of 100: by tokens it was more than by requests.
    weight = math.exp(-9 / 60)
    each = (1_000 * weight + 8_000) / (10 * weight + 1)
    # In the two seconds since the last note but one, as shorter stretches than a burst tell nothing.
    assert plateau(it)[0] == pytest.approx(8_000 / each / (2 + 5))


def test_of_few_requests_no_mixture_is_known() -> None:
    """Five are enough."""
    for count, known in ((4, False), (5, True)):
        it = CubicRate()
        assert cut(it, 10.0, count, (10.0, math.inf))
        assert math.isfinite(it.rates(16.0)[1]) is known


def test_of_fewer_than_five_since_the_anchor_nothing_is_measured() -> None:
    """Seven tenths of the rate in force then; five are measured."""
    for count, expected in ((4, 7.0), (5, 5 / 11)):
        it = CubicRate()
        it.add_sample(0.0, (0.0, 0.0))
        it.add_sample(5.0, (float(count), 0.0))
        assert cut(it, 10.0, count, (10.0, math.inf), each=0.0)
        assert plateau(it)[0] == pytest.approx(max(0.5, expected))


# One overload, many refusals


def test_refusals_count_once_a_second() -> None:
    """And those of what was sent before the last cut not at all."""
    it = measured()
    assert not cut(it, 10.99, 105)
    assert cut(it, 11.0, 105)
    it = measured()
    assert not cut(it, 30.0, 200, sent_at=9.99)
    assert cut(it, 30.0, 200, sent_at=10.0)


def test_a_late_refusal_corrects_the_measurement() -> None:
    """It had been counted as granted: one of a hundred, then one of ninety-nine."""
    it = measured()
    assert not cut(it, 10.2, 100, sent_at=9.0)
    assert it.rates(16.0)[0] == pytest.approx(99 / 11)
    assert not cut(it, 10.3, 100, sent_at=9.0)
    assert it.rates(16.0)[0] == pytest.approx(98 / 11)


def test_a_correction_stops_at_the_floor_and_at_the_last_request() -> None:
    """Half a request a second."""
    it = CubicRate()
    it.add_sample(0.0, (0.0, 0.0))
    assert cut(it, 9.0, 5, each=0.0)
    assert plateau(it)[0] == 0.5
    for _ in range(10):
        cut(it, 9.1, 5, sent_at=8.0, each=0.0)
    assert plateau(it)[0] == 0.5
    assert it._counted == 1


def test_a_refused_request_is_taken_out_of_what_was_noted_since() -> None:
    """From the note of its own moment on."""
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


# Soon after another


def test_soon_after_a_sure_measurement_it_is_fifteen_percent_less() -> None:
    """So short a time tells nothing better."""
    it = measured()
    requests = run(it, 10.5, 16.0, 8.0, before=104.0)
    assert cut(it, 16.0, requests)
    requests = run(it, 16.5, 18.0, 8.0, before=requests + 4)
    assert cut(it, 18.0, requests, (8.0, math.inf))
    assert it.repeated
    assert plateau(it)[0] == pytest.approx(8.0 * 0.85)
    # And once more, as what it rests on is still that measurement.
    requests = run(it, 18.5, 19.5, 8.0, before=requests + 4)
    assert cut(it, 19.5, requests, (8.0, math.inf))
    assert plateau(it)[0] == pytest.approx(8.0 * 0.85 * 0.85)
    # Four seconds from where the bucket was empty are measured again.
    requests = run(it, 20.0, 20.5, 8.0, before=requests + 4)
    assert cut(it, 20.5, requests, (8.0, math.inf))
    assert plateau(it)[0] == pytest.approx(8.0 * 0.7)


def test_soon_after_an_unsure_one_it_is_three_tenths_less() -> None:
    """Of the rate in force, unless less than that was measured."""
    it = measured()
    requests = run(it, 10.5, 12.0, 8.0, before=104.0)
    assert cut(it, 12.0, requests, (9.0, math.inf))
    assert it.repeated
    assert plateau(it)[0] == pytest.approx(9.0 * 0.7)
    it = measured()
    requests = run(it, 10.5, 12.0, 4.0, before=102.0)
    assert cut(it, 12.0, requests, (9.0, math.inf))
    assert plateau(it)[0] == pytest.approx(8 / 2)


def test_soon_is_less_than_three_seconds() -> None:
    """Since the last cut, or since the first note where there was none."""
    for now, soon in ((12.99, True), (13.0, False)):
        it = measured()
        assert cut(it, now, 120)
        assert it.repeated is soon
        it = CubicRate()
        it.add_sample(10.0, (0.0, 0.0))
        assert cut(it, now, 20)
        assert it.repeated is soon


def test_the_anchor_stays_for_four_seconds() -> None:
    """A shorter cycle is measured from where the longer one began."""
    for now, kept in ((13.9, True), (14.0, False)):
        it = measured()
        it.add_sample(12.0, (116.0, 11_600.0))
        assert cut(it, now, 130)
        assert (it._samples[0][0] == 10.0) is kept
        assert len(it._samples) == (3 if kept else 1)


# Notes


def test_notes_are_wanted_every_half_second() -> None:
    """Less often where the rate is low, as its curve is longer."""
    it = CubicRate()
    it.add_sample(3.0, (0.0, 0.0))
    assert it.next_sample_at == 3.5
    it = CubicRate()
    assert cut(it, 10.0, 1, (1.0, math.inf))
    assert it._recovery_s == pytest.approx(30 / 0.7)
    assert it.next_sample_at == pytest.approx(10 + 0.5 * it._recovery_s / 6)


@pytest.mark.parametrize(("rate", "recovery"), [(10.0, 6.0), (100.0, 6.0), (2.0, 30 / 1.4), (0.1, 60.0)])
def test_the_way_back_takes_thirty_requests_within_six_seconds_and_a_minute(
    rate: float, recovery: float
) -> None:
    """So that one curve serves slow and fast."""
    it = CubicRate()
    assert cut(it, 0.0, 1, (rate, math.inf))
    assert it._recovery_s == pytest.approx(recovery)
    assert it.rates(recovery)[0] == pytest.approx(max(0.5, 0.7 * rate))


def test_after_five_idle_seconds_the_notes_begin_anew() -> None:
    """A bucket that rested may have run over."""
    it = measured()
    it.add_sample(15.5, (110.0, 11_000.0))
    assert it._anchored
    assert len(it._samples) == 2
    it.add_sample(21.1, (120.0, 12_000.0))
    assert not it._anchored
    assert len(it._samples) == 1


def test_sixty_notes_are_kept() -> None:
    """The anchor goes when it is too long ago."""
    it = measured()
    requests = run(it, 10.5, 39.5, 1.0, before=100.0)
    assert len(it._samples) == 59
    run(it, 39.5, 40.0, 1.0, before=requests)
    assert (len(it._samples), it._anchored) == (60, True)
    run(it, 40.0, 40.5, 1.0, before=requests)
    assert (len(it._samples), it._anchored) == (60, False)


def test_the_mixture_is_that_of_the_last_minute() -> None:
    """What was long ago counts less and less, and what was taken back never below nothing."""
    it = CubicRate()
    it.add_sample(0.0, (10.0, 1_000.0))
    it.add_sample(60.0, (20.0, 11_000.0))
    weight = math.exp(-1)
    assert it._mix == (pytest.approx(10 * weight + 10), pytest.approx(1_000 * weight + 10_000))
    it.add_sample(60.0, (15.0, 10_000.0))
    assert it._mix == (pytest.approx(10 * weight + 10), pytest.approx(1_000 * weight + 10_000))


# The end


def test_it_is_forgotten_when_the_curve_has_left_all_bounds() -> None:
    """A thousand times the rate."""
    it = measured()
    x = (999 / 0.1) ** (1 / 3)
    assert it.rates(10 + 6 * (1 + x) - 0.1)[0] < 100 / 11 * 1_000
    assert it.active
    assert it.rates(10 + 6 * (1 + x) + 0.1)[0] == math.inf
    assert not it.active


def test_forgetting() -> None:
    """Nothing is left of the rate; a later refusal is measured anew."""
    it = measured()
    it.forget()
    assert (it.active, it._plateau_rate) == (False, math.inf)
    assert repr(it) == "CubicRate(nothing)"
