"""The adaptive rate, learned from 429 responses alone: measurement, decrease and recovery, two hypotheses, noise.

The numbers are calculated by hand. "Ten a second" means one sample every half second, with 100 tokens a request.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from llmopt.policies.adaptive_rate import BURST_S, Amounts, CubicRate, Effect, GrantSamples
from llmopt.policies.quota import Lease
from llmopt.policies.token_bucket import TokenBucket
from llmopt.values.calls import Dimension

FREE = (math.inf, math.inf)


def rate() -> CubicRate:
    """No limit is known."""
    requests, tokens = (
        TokenBucket(None, burst_s=burst_s, smallest=smallest, now=0.0)
        for burst_s, smallest in zip(BURST_S, (1.0, 0.0), strict=True)
    )
    return CubicRate((requests, tokens))


def grant(it: CubicRate, *granted: float) -> None:
    """So many requests and tokens were granted so far."""
    for bucket, amount in zip(it._known, granted, strict=True):
        bucket.spent = amount


def know(it: CubicRate, limits: Amounts, *, stated: bool = False) -> None:
    """These limits per second are known."""
    for bucket, limit in zip(it._known, limits, strict=True):
        bucket.max_rate = limit
        bucket.server_limit = limit * 60 if stated and limit < math.inf else None


def rates(it: CubicRate) -> Amounts:
    return it.buckets[0].rate, it.buckets[1].rate


def refuse(
    it: CubicRate,
    now: float,
    cost: Amounts,
    sent: int,
    *,
    sent_at: float | None = None,
    dimension: Any = None,
) -> Effect:
    owner: Any = None
    lease = Lease(owner, cost[1], now if sent_at is None else sent_at, sent, 0.0, 0.0, cost[0])
    return it.refused(now, lease, sent, dimension)


def run(
    it: CubicRate, start: float, end: float, speed: float, before: float = 0.0, each: float = 100.0
) -> float:
    """Record samples at a steady speed from `start` until before `end`; return the number of requests by `end`."""
    for step in range(round((end - start) * 2)):
        requests = before + speed * step / 2
        grant(it, requests, requests * each)
        it.add_sample(start + step / 2, round(requests), -math.inf)
    return before + speed * (end - start)


def cut(it: CubicRate, now: float, requests: float, each: float = 100.0, **more: Any) -> Effect:
    """A refusal of a request of ``each`` tokens at ``now``, after ``requests`` were granted."""
    grant(it, requests, requests * each)
    return refuse(it, now, (1.0, each), more.pop("sent", round(requests)), **more)


def measured() -> CubicRate:
    """Ten requests a second for ten seconds, then a refusal: 100 in 10 s, and one second for the burst."""
    it = rate()
    requests = run(it, 0.0, 10.0, 10.0)
    assert cut(it, 10.0, requests) == "cut"
    return it


def anchored() -> CubicRate:
    """Eight requests a second in the 5 s between two refusals."""
    it = measured()
    requests = run(it, 10.5, 15.0, 8.0, before=104.0)
    assert cut(it, 15.0, requests) == "cut"
    return it


def factor(it: CubicRate, now: float) -> float:
    it.wait_time(now, (0.0, 0.0))
    return it.buckets[0].rate / it.plateau[0]


# The rate to return to


def test_without_a_refusal_no_rate_is_learned() -> None:
    it = rate()
    assert (it.active, it.undecided, it.unnamed.noise, rates(it), it.plateau) == (
        False,
        False,
        0.0,
        FREE,
        [*FREE],
    )
    assert it.wait_time(5.0, (1.0, 1e9)) == 0.0


def test_the_measured_rate_is_the_granted_requests_less_a_burst() -> None:
    """100 requests in ten seconds and one second for the burst; tokens likewise, with a margin of a tenth."""
    it = measured()
    assert it.active
    assert it.plateau == [pytest.approx(100 / 11), pytest.approx(100 / 11 * 100 * 1.1)]
    assert rates(it) == (pytest.approx(0.9 * 100 / 11), pytest.approx(0.9 * 1_000 / 11 * 110 / 10 * 10 / 10))


def test_the_fastest_interval_is_the_measured_rate() -> None:
    """A slow beginning does not hide that the server allowed more later."""
    it = rate()
    requests = run(it, 0.0, 10.0, 1.0)
    requests = run(it, 10.0, 20.0, 10.0, before=requests)
    assert cut(it, 20.0, requests) == "cut"
    assert it.plateau[0] == pytest.approx(100 / 11)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((5.0, math.inf), 5.0), ((math.inf, 300.0), 3.0), ((4.0, 300.0), 3.0), (FREE, 100 / 11)],
)
def test_the_measured_rate_is_never_above_the_current_limit(limits: Amounts, expected: float) -> None:
    """The limit of requests, or the limit of tokens at the measured tokens per request."""
    it = rate()
    requests = run(it, 0.0, 10.0, 10.0)
    know(it, limits)
    assert cut(it, 10.0, requests) == "cut"
    assert it.plateau[0] == pytest.approx(expected)


def test_between_two_moments_of_an_empty_bucket_the_rate_is_exact() -> None:
    assert anchored().plateau[0] == pytest.approx(8.0)


def test_fewer_than_five_requests_are_not_measured() -> None:
    """The rate is then seven tenths of the current limit, and only the pause counts where there is none."""
    for count, expected in ((4, 7.0), (5, max(0.5, 5 / 11))):
        it = rate()
        it.add_sample(0.0, 0, 0.0)
        grant(it, float(count), 0.0)
        it.add_sample(9.5, count, 9.0)
        know(it, (10.0, math.inf))
        assert cut(it, 10.0, count, each=0.0) == "cut"
        assert it.plateau == [pytest.approx(expected), math.inf]
    it = rate()
    assert cut(it, 10.0, 4) == "none"
    assert not it.active
    requests = run(it, 10.5, 16.5, 8.0, before=8.0)
    assert cut(it, 16.5, requests) == "cut"
    # 48 requests in the 6.5 seconds since the bucket was empty, and the four before it.
    assert it.plateau[0] == pytest.approx(52 / 6.5)


def test_headers_that_state_a_limit_are_believed_up_to_one_cut() -> None:
    it = rate()
    requests = run(it, 0.0, 10.0, 1.0)
    know(it, (20.0, math.inf), stated=True)
    assert cut(it, 10.0, requests) == "cut"
    assert it.plateau == [pytest.approx(14.0), pytest.approx(10 / 11 * 110)]


def test_the_lowest_rate_is_half_a_request_a_second() -> None:
    it = rate()
    it.add_sample(0.0, 0, 0.0)
    assert cut(it, 30.0, 6, each=0.0) == "cut"
    assert it.plateau[0] == 0.5


# The curve


def test_the_curve_dips_by_a_tenth_and_stays_near_the_measured_rate() -> None:
    """It is back after six seconds, and then exceeds it."""
    it = anchored()
    for after, expected in ((0, 0.9), (3, 1 - 0.1 / 8), (6, 1.0), (9, 1 + 0.1 / 8), (12, 1.1), (18, 1.8)):
        assert factor(it, 15.0 + after) == pytest.approx(expected)


def test_the_rate_doubles_in_eight_seconds_until_a_measurement_is_trusted() -> None:
    """The first one may have met the server's burst only."""
    it = measured()
    for after in (0.0, 4.0, 8.0, 16.0):
        assert factor(it, 10.0 + after) == pytest.approx(0.9 * 2 ** (after / 8))


@pytest.mark.parametrize(("limit", "recovery"), [(10.0, 6.0), (100.0, 6.0), (2.0, 30 / 1.4), (0.1, 60.0)])
def test_recovery_takes_thirty_requests_but_six_to_sixty_seconds(limit: float, recovery: float) -> None:
    """One curve serves slow and fast limits."""
    it = rate()
    know(it, (limit, math.inf))
    assert cut(it, 0.0, 1) == "cut"
    know(it, FREE)
    assert factor(it, recovery) == pytest.approx(0.9 * 2**0.75)
    assert it.samples.next_at == pytest.approx(0.5 * recovery / 6)


def test_the_rate_is_forgotten_far_above_the_measured_one() -> None:
    it = anchored()
    x = (999 / 0.1) ** (1 / 3)
    assert factor(it, 15 + 6 * (1 + x) - 0.1) < 1_000
    assert it.wait_time(15 + 6 * (1 + x) + 0.1, (1.0, 1.0)) == 0.0
    assert not it.active
    assert rates(it) == FREE


@pytest.mark.parametrize("known", [(8.0, math.inf), (math.inf, 880.0)])
def test_while_undecided_one_known_limit_that_is_lower_ends_both(known: Amounts) -> None:
    """The hypothesis of that limit lets everything through that the known limit does."""
    it = anchored()
    know(it, known)
    it.wait_time(20.9, (0.0, 0.0))
    assert it.active
    it.wait_time(21.1, (0.0, 0.0))
    assert not it.active


def test_a_known_limit_ends_only_its_own_rate_when_both_are_limits() -> None:
    it = anchored()
    it.undecided = False
    know(it, (8.0, math.inf))
    it.wait_time(21.1, (0.0, 0.0))
    assert it.plateau == [math.inf, pytest.approx(880.0)]


# Requests are held to it


def test_a_burst_follows_the_rate_and_a_cut_leaves_a_debt() -> None:
    """A tenth of a burst is owed, which is half a second of tokens; a second of requests less a tenth can be saved."""
    it = anchored()
    assert it.wait_time(15.0, (1.0, 0.0)) == pytest.approx(0.5)
    assert it.cause == "tokens"
    for now in (20.0, 21.0, 21.0):
        it.wait_time(now, (0.0, 0.0))
    for _ in range(7):
        assert it.wait_time(21.0, (1.0, 0.0)) == 0
        it.take((1.0, 100.0))
    assert it.wait_time(21.0, (1.0, 100.0)) == pytest.approx((8 - 7.2) / 8, abs=1e-3)


def test_what_was_not_spent_is_given_back() -> None:
    it = anchored()
    for now in (20.0, 21.0, 21.0):
        it.wait_time(now, (0.0, 0.0))
    for _ in range(7):
        it.take((1.0, 100.0))
    assert it.wait_time(21.0, (1.0, 100.0)) > 0
    it.give_back((1.0, 100.0))
    assert it.wait_time(21.0, (1.0, 100.0)) == 0


def test_the_buckets_save_up_for_the_first_waiter() -> None:
    it = anchored()
    it.buckets[1].reserve(9_000.0)
    it.wait_time(25.0, (1.0, 100.0))
    it.undecided = False
    assert it.wait_time(25.0, (0.0, 9_000.0)) < 3
    it.buckets[1].reserve(0.0)
    it.wait_time(25.0, (1.0, 100.0))
    assert it.wait_time(25.0, (0.0, 9_000.0)) > 5
    assert it.cause == "tokens"


# Several refusals from one overload


def test_refusals_count_once_a_second_and_not_those_sent_before_the_cut() -> None:
    it = measured()
    assert cut(it, 10.99, 105) == "tolerated", "it pauses nothing: less was sent than flowed in"
    assert cut(it, 11.0, 105) == "cut"
    assert cut(it, 30.0, 200, sent_at=11.0) == "none"
    assert cut(it, 30.0, 200, sent_at=11.01) == "cut"


def test_a_late_refusal_corrects_the_measurement() -> None:
    """The request had been counted as granted: first one of 100, then one of 99; never below the lowest rate."""
    it = measured()
    for left in (99, 98):
        assert cut(it, 10.2, 100, sent_at=9.0) == "none"
        assert it.plateau[0] == pytest.approx(left / 11)
    for _ in range(200):
        cut(it, 10.2, 100, sent_at=9.0)
    assert it.plateau[0] == 0.5


def test_soon_after_a_reliable_measurement_the_rate_falls_by_fifteen_percent() -> None:
    """Until there has been time for a better one."""
    it = anchored()
    know(it, (8.0, math.inf))
    assert cut(it, 17.0, 160) == "cut"
    assert it.plateau[0] == pytest.approx(8.0 * 0.85)


def test_soon_after_an_unreliable_measurement_the_rate_falls_by_three_tenths() -> None:
    """Of the current limit, unless the measured rate is below that."""
    for speed, expected in ((8.0, 9.0 * 0.7), (4.0, 8 / 2)):
        it = measured()
        requests = run(it, 10.5, 12.0, speed, before=100 + speed / 2)
        it.buckets[0].rate, it.buckets[1].rate = 9.0, math.inf
        assert cut(it, 12.0, requests) == "cut"
        assert it.plateau[0] == pytest.approx(expected)


# Which of the two limits


@pytest.mark.parametrize(("dimension", "finite"), [("requests", (True, False)), ("tokens", (False, True))])
def test_a_refusal_that_names_its_limit_teaches_nothing_of_the_other(
    dimension: Any, finite: tuple[bool, bool]
) -> None:
    it = rate()
    requests = run(it, 0.0, 10.0, 10.0)
    assert cut(it, 10.0, requests, dimension=dimension) == "cut"
    assert (it.plateau[0] < math.inf, it.plateau[1] < math.inf) == finite
    assert not it.undecided


def test_named_limits_add_up() -> None:
    """Both are in force then."""
    it = rate()
    requests = run(it, 0.0, 10.0, 10.0)
    assert cut(it, 10.0, requests, dimension="requests") == "cut"
    requests = run(it, 10.5, 16.0, 8.0, before=104.0)
    assert cut(it, 16.0, requests, dimension="tokens") == "cut"
    assert max(it.plateau) < math.inf
    assert not it.undecided


def test_requests_of_another_size_wait_only_if_both_hypotheses_say_so() -> None:
    """Of the usual size, one of them is enough."""
    it = anchored()
    it.wait_time(21.0, (0.0, 0.0))
    it.give_back((0.0, -1e6))
    assert it.wait_time(21.0, (1.0, 100.0)) > 1_000
    assert it.wait_time(21.0, (1.0, 2_000.0)) == 0
    assert it.wait_time(21.0, (1.0, 1_000.0)) > 1_000, "the moving average is below 300"


def test_an_accepted_request_refutes_the_rate_that_is_far_too_low_for_it() -> None:
    """A request that was sent before the cut proves nothing."""
    it = anchored()
    it.wait_time(21.0, (1.0, 20_000.0))
    for _ in range(2):
        it.take((1.0, 20_000.0))
    it.accepted(14.9, (1.0, 20_000.0))
    assert it.undecided
    it.accepted(21.0, (1.0, 20_000.0))
    assert it.plateau == [pytest.approx(8.0), math.inf]
    assert it.active
    assert not it.undecided


def test_a_refused_request_confirms_the_rate_that_it_exceeded() -> None:
    """And clears the other one."""
    it = anchored()
    it.wait_time(21.0, (1.0, 20_000.0))
    it.take((1.0, 20_000.0))
    assert cut(it, 21.0, 161, each=100.0) == "cut"
    assert it.plateau[0] == math.inf
    assert it.plateau[1] < math.inf


def test_a_rate_that_was_not_used_up_does_not_explain_a_refusal() -> None:
    """So the other limit is one, too."""
    it = anchored()
    it.lift(1)
    assert not it.undecided
    it.wait_time(26.0, (0.0, 0.0))
    assert cut(it, 26.0, 160, each=100.0) == "cut"
    assert max(it.plateau) < math.inf
    assert not it.undecided


def test_an_earlier_process_hands_over_its_rates() -> None:
    it = rate()
    it.resume(100.0, (8.0, 880.0))
    assert (it.active, it.undecided, it.plateau) == (True, True, [8.0, 880.0])
    assert factor(it, 100.0) >= 1
    it.resume(100.0, (math.inf, 880.0))
    assert (it.active, it.undecided) == (True, False)
    it.resume(100.0, FREE)
    assert not it.active


# Refusals that come at any rate


def noisy(
    share: float,
    seconds: float,
    *,
    speed: float = 50.0,
    dimension: Dimension | None = None,
    chance: random.Random | None = None,
) -> tuple[CubicRate, int, float]:
    """A server without a limit that refuses every so many requests, or by chance.

    Returns:
        The learned rate, the number sent, and when the first cuts were undone.
    """
    it, number, granted, undone = rate(), 0, 0.0, math.inf
    now, every = 0.0, round(1 / share)
    while now < seconds:
        wait = it.wait_time(now, (1.0, 10.0)) if it.active else 0.0
        now += max(wait, 1 / speed)
        it.wait_time(now, (1.0, 10.0))
        if now >= it.samples.next_at:
            grant(it, granted, granted * 10)
            it.add_sample(now, number, -math.inf)
        it.take((1.0, 10.0))
        number += 1
        if number % every if chance is None else chance.random() >= share:
            granted += 1
            continue
        grant(it, granted, granted * 10)
        if refuse(it, now, (1.0, 10.0), number, dimension=dimension) == "undone":
            undone = min(undone, now)
    return it, number, undone


@pytest.mark.parametrize(("share", "until"), [(0.02, 50.0), (0.05, 6.0), (0.1, 6.0), (0.2, 3.0)])
def test_refusals_at_any_rate_do_not_slow_down(share: float, until: float) -> None:
    """The first cuts are undone, and from then on the share is tolerated. Few refusals take longer to tell."""
    it, number, undone = noisy(share, 60.0)
    assert undone < until
    assert it.unnamed.noise == pytest.approx(share, rel=0.5)
    assert number > 20 * 50


@pytest.mark.parametrize(("share", "until"), [(0.02, 50.0), (0.05, 16.0), (0.1, 6.0), (0.2, 3.0)])
def test_a_name_is_no_proof(share: float, until: float) -> None:
    """A gateway that fails by chance sends the words of a limit too."""
    it, _, undone = noisy(share, 60.0, dimension="requests")
    assert undone < until
    assert it.named.noise == pytest.approx(share, rel=0.5)
    assert it.unnamed.noise == 0.0


@pytest.mark.parametrize("dimension", [None, "requests"])
@pytest.mark.parametrize(("share", "kept"), [(0.01, 0.5), (0.03, 0.6), (0.1, 0.95)])
def test_refusals_by_chance_do_not_slow_down_for_long(
    share: float, kept: float, dimension: Dimension | None
) -> None:
    """Ten minutes at 50 requests a second; 8 to 30 % of them were sent when a rate had no memory of higher ones."""
    _, number, _ = noisy(share, 600.0, dimension=dimension, chance=random.Random(1))
    assert number >= kept * 50 * 600


def test_the_tolerance_ends_when_the_share_of_refusals_grows() -> None:
    it, number, _ = noisy(0.1, 60.0)
    assert it.unnamed.noise > 0.05
    effects = [
        cut(it, 70.0 + step, number + step, sent_at=70.0 + step, sent=number + step) for step in range(1, 60)
    ]
    assert effects[0] == "tolerated"
    assert "cut" in effects


def test_after_a_wrong_guess_twice_as_many_refusals_are_needed() -> None:
    """The limit was real: the rate is cut at once, also within a second."""
    it = anchored()
    assert cut(it, 16.5, 146) == "cut"
    assert cut(it, 18.0, 148) == "undone"
    assert not it.active
    effects = [cut(it, 18.1, 160, sent_at=18.05, sent=160 + step) for step in range(12)]
    assert effects[:2] == ["tolerated"] * 2
    assert "cut" in effects
    assert "undone" not in effects[effects.index("cut") :]


def test_many_refusals_in_a_row_are_those_of_a_limit() -> None:
    """The measurement was wrong, and so the rate falls again and again."""
    it = anchored()
    effects = [cut(it, 15.0 + 1.5 * step, 144, sent=144 + step) for step in range(1, 20)]
    assert set(effects) == {"cut"}
    assert it.plateau[0] == 0.5


def test_a_server_that_names_its_limits_means_something_else_where_it_names_none() -> None:
    """Up to two, and three of ten."""
    it = rate()
    requests = run(it, 0.0, 10.0, 10.0)
    assert cut(it, 10.0, requests, dimension="requests") == "cut"
    plateau = list(it.plateau)
    for step in range(1, 10):
        assert cut(it, 11.5 + step, requests + 8 * step) == "tolerated"
    assert it.plateau == plateau
    assert cut(it, 22.0, requests + 80, dimension="requests") == "cut"
    effects = [cut(it, 24.0 + step / 10, requests + 80 + step) for step in range(9)]
    assert effects[:3] == ["tolerated"] * 2 + ["cut"]


def test_the_tolerance_fades_with_the_refusals() -> None:
    it, number, _ = noisy(0.1, 60.0)
    for step in range(1, 12):
        number += 300
        cut(it, 70.0 + step, number, sent=number)
    assert it.unnamed.noise < 0.01


def test_a_limit_is_not_taken_for_noise() -> None:
    """A bucket of ten requests a second, one of them held: the share falls when the rate does."""
    it, level, at, granted, number, refused = rate(), 10.0, 0.0, 0.0, 0, 0
    now = 0.0
    while now < 120.0:
        wait = it.wait_time(now, (1.0, 10.0)) if it.active else 0.0
        now += max(wait, 1 / 50)
        it.wait_time(now, (1.0, 10.0))
        if now >= it.samples.next_at:
            grant(it, granted, granted * 10)
            it.add_sample(now, number, -math.inf)
        it.take((1.0, 10.0))
        number += 1
        level, at = min(10.0, level + 10 * (now - at)), now
        if level >= 1:
            level -= 1
            granted += 1
            continue
        refused += 1
        grant(it, granted, granted * 10)
        assert refuse(it, now, (1.0, 10.0), number) != "undone"
        now += 0.5
    assert granted > 0.9 * 10 * 120
    assert refused < 0.05 * number


# Samples


def test_samples_restart_after_a_second_without_a_request() -> None:
    """The bucket of an idle server may have been full, and a process that was stopped measured itself."""
    for gap, held_until, kept in ((1.4, 0.0, True), (1.6, 0.0, False), (5.0, 14.0, True)):
        samples = GrantSamples()
        samples.restart(10.0, 0, (0.0, 0.0), 1.0)
        samples.add(10.0 + gap, 10, (10.0, 0.0), 1.0, held_until)
        assert samples.anchored is kept
        assert samples.span(10.0 + gap) == (pytest.approx(gap) if kept else 0.0)


def test_the_anchor_stays_for_four_seconds() -> None:
    """A shorter cycle is measured from the beginning of the longer cycle."""
    for now, span in ((13.9, 3.9), (14.0, 0.0)):
        samples = GrantSamples()
        samples.restart(10.0, 0, (0.0, 0.0), 1.0)
        samples.restart(now, 20, (20.0, 0.0), 1.0)
        assert samples.span(now) == pytest.approx(span)
        assert samples.anchored


def test_sixty_samples_are_kept() -> None:
    """The anchor is dropped when it is older than the samples."""
    samples = GrantSamples()
    samples.restart(0.0, 0, (0.0, 0.0), 1.0)
    for step in range(1, 60):
        samples.add(step / 2, step, (float(step), 0.0), 1.0, 0.0)
    assert (samples.anchored, samples.span(30.0)) == (True, 30.0)
    samples.add(30.0, 60, (60.0, 0.0), 1.0, 0.0)
    assert (samples.anchored, samples.span(30.0)) == (False, 29.5)


def test_a_refused_request_is_removed_from_the_samples_since_it_was_sent() -> None:
    samples = GrantSamples()
    samples.restart(0.0, 0, (0.0, 0.0), 1.0)
    samples.add(1.0, 10, (10.0, 100.0), 1.0, 0.0)
    # The eleventh was sent at the moment of the sample, which does not contain it.
    samples.subtract(11, (1.0, 30.0))
    samples.subtract(10, (1.0, 30.0))
    assert samples.since((20.0, 200.0)) == (20.0, 200.0)
    samples.restart(5.0, 10, (10.0, 100.0), 1.0)
    samples.subtract(10, (1.0, 30.0))
    assert samples.since((20.0, 200.0)) == (11.0, 130.0)


def test_tokens_are_measured_with_the_burst_of_tokens() -> None:
    """Two hundred tokens make one request."""
    samples = GrantSamples()
    samples.add(0.0, 0, (0.0, 0.0), 1.0, 0.0)
    assert samples.rate(10.0, (11.0, 0.0), (1.0, math.inf)) == pytest.approx(1.0)
    assert samples.rate(10.0, (0.0, 6_000.0), (math.inf, 200.0)) == pytest.approx(2.0)
    assert samples.rate(10.0, (11.0, 6_000.0), (1.0, 200.0)) == pytest.approx(2.0)
