"""The fair share of a rate limit: how response headers and refusals change it.

The numbers are calculated by hand for a limit of 10 a second with a bucket that holds 30: three seconds, the whole zone
of the controller. Requests cost 1.25, so that 24 of them are as much.
"""

from __future__ import annotations

import math

import pytest

from llmopt.policies.token_bucket import FairShare, QuotaSample

RATE = 10.0


def sample(
    at: float, remaining: float, own: float = 0.0, *, cost: float = 1.25, full: float = 0.0
) -> QuotaSample:
    return QuotaSample(sent_at=at, remaining=remaining, spent=own, cost=cost, full=full)


def observe(share: FairShare, *samples: QuotaSample) -> FairShare:
    for each in samples:
        share.update(each, RATE)
    return share


def contended(slow: float = math.log(0.5)) -> FairShare:
    """A client that knows of others: for 5 s they have used half of the limit, and it the other half."""
    share = observe(FairShare(), sample(0.0, 30.0))
    share._inflow, share._others, share._own = 50.0, 25.0, 25.0
    share._slow = slow
    return share


def share_after(slow: float, aim: float, seconds: float, lag: float = 6.0) -> tuple[float, float]:
    """The logarithm behind the filter, and the share."""
    slow += (aim - slow) * (1 - math.exp(-seconds / lag))
    return slow, math.exp(0.25 * aim + 0.75 * slow)


def test_a_client_starts_uncontended_with_the_whole_limit() -> None:
    """Until the first response."""
    share = FairShare()
    assert (share.factor, share.uncontended, share.starting, share.deep) == (1.0, True, False, False)


@pytest.mark.parametrize(
    ("cost", "reserve"),
    [(4.0, 30.0), (1.0, 24.0), (0.8, 20.0), (0.1, 20.0)],
    ids=("zone", "requests", "s", "least"),
)
def test_twenty_four_requests_are_held_in_reserve_at_least_two_seconds_and_at_most_the_zone(
    cost: float, reserve: float
) -> None:
    """Half of the reserve remains, whose price is 1.5."""
    share = contended()
    share.cost = cost
    observe(share, sample(1.0, reserve / 2, cost=cost))
    unit = max(1.0, 4 * cost / RATE)
    assert share._slow == pytest.approx(share_after(math.log(0.5), -1.5, 1.0 / unit)[0])


# The first second


@pytest.mark.parametrize(("remaining", "first"), [(30.0, 1.0), (10.0, 0.5), (4.0, 0.2), (0.0, 0.05)])
def test_the_first_response_lowers_the_rate_to_what_remains_over_two_seconds(
    remaining: float, first: float
) -> None:
    """Others may have begun at the same moment: eight of them then spend no more than there is."""
    share = observe(FairShare(), sample(0.0, remaining, full=30.0))
    assert not share.uncontended
    assert share.starting
    assert share._slow == pytest.approx(math.log(first))
    aim = min(0.3, 5 * (remaining / 30 - 0.8))
    assert share.factor == pytest.approx(max(0.1, math.exp(0.25 * aim + 0.75 * math.log(first))))


def test_a_bank_is_spent_before_it_is_known_who_else_spends_it() -> None:
    """The faster the more of it there is, at most within two seconds; a bank is no reason to begin with nothing."""
    for seconds, factor in ((60.0, 1 + 57 / 10), (4.0, 1 + 1 / 10), (3.1, 1.01)):
        share = observe(FairShare(), sample(0.0, seconds * RATE))
        assert share.factor == pytest.approx(factor)
        assert not share.starting
    share = FairShare()
    share.update(sample(0.0, 1_000.0, cost=100.0), 10.0)
    # Four requests take 40 s to flow in, so the zone is the whole bucket, and there is no bank.
    assert share.starting


def test_after_a_second_without_use_by_others_a_client_finds_itself_alone() -> None:
    """It then uses the whole limit, whatever remains."""
    share = observe(FairShare(), sample(0.0, 20.0), sample(0.5, 15.0, 10.0))
    assert not share.uncontended
    observe(share, sample(1.1, 11.0, 20.0))
    assert share.uncontended
    assert share._others / share._inflow == pytest.approx(0.0)
    assert share.factor == 1.0
    assert share._slow == 0.0


@pytest.mark.parametrize(("others", "alone"), [(1.27, True), (1.28, False)])
def test_contention_begins_at_seven_hundredths_of_the_limit(others: float, alone: bool) -> None:
    """Of all that flowed in, most of it lately: 10 in this second, and 10 faded to 8.2 in the one before."""
    share = observe(FairShare(), sample(0.0, 30.0), sample(1.0, 20.0, 20.0))
    assert share.uncontended
    observe(share, sample(2.0, 20.0 - others, 30.0))
    assert share._others / share._inflow == pytest.approx(others / (10 * math.exp(-1 / 5) + 10))
    assert share.uncontended is alone
    assert (share.factor == 1.0) is alone


# What others use


def test_missing_capacity_was_used_by_others() -> None:
    """In half a second 5 flow in; 2 were ours and 4 more are missing."""
    share = contended()
    share._last = sample(0.0, 15.0)
    observe(share, sample(0.5, 14.0, 2.0))
    keep = math.exp(-0.5 / 5)
    assert share._others == pytest.approx(25 * keep + 4)
    assert share._own == pytest.approx(25 * keep + 2)
    assert share._inflow == pytest.approx(50 * keep + 5)
    assert share._others > 0


def test_requests_that_overtake_each_other_cancel_out() -> None:
    """A sample may show what was not yet sent as missing; the next one gives it back."""
    share = contended()
    share._others = 0.0
    share._last = sample(0.0, 20.0)
    observe(share, sample(1e-4, 17.0))
    assert share._others > 2.9
    observe(share, sample(2e-4, 20.0))
    assert share._others == pytest.approx(0.0, abs=0.05)


def test_samples_of_one_moment_count_as_a_millisecond_apart() -> None:
    """Time does not run backwards either."""
    share = contended()
    share._last = sample(1.0, 15.0)
    observe(share, sample(0.9, 15.0))
    assert share._inflow == pytest.approx(50 * math.exp(-1e-3 / 5) + 0.01)


def test_what_flows_past_a_full_bucket_counts_as_use_by_others_only_under_contention() -> None:
    """A client that believes to be alone sees that nothing is missing; another one has to use it to find out."""
    share = observe(FairShare(), sample(0.0, 30.0), sample(1.0, 29.0, 11.0))
    assert share.uncontended
    observe(share, sample(3.0, 29.0, 12.0))
    assert share._others / share._inflow == pytest.approx(0.0)
    share = contended()
    observe(share, sample(2.0, 29.0, 1.0))
    assert share._others == pytest.approx(25 * math.exp(-2 / 5) + 20)


@pytest.mark.parametrize(("remaining", "learned"), [(45.0, True), (45.1, False)])
def test_a_rise_beyond_what_flows_in_is_a_new_window(remaining: float, learned: bool) -> None:
    """By more than the zone; it says nothing about others."""
    share = contended()
    share._last = sample(0.0, 5.0)
    observe(share, sample(1.0, remaining))
    assert (share._inflow != 50.0) is learned


def in_window(at: float, remaining: float, own: float) -> QuotaSample:
    return QuotaSample(sent_at=at, remaining=remaining, spent=own, full=30.0, reset_s=2.0 - at % 2)


def test_a_bucket_that_is_filled_once_per_window_gains_nothing_in_between() -> None:
    """Its reset time falls with what remains, where that of a steadily filled one rises."""
    share = observe(FairShare(), in_window(0.1, 19.0, 1.0), in_window(0.5, 15.0, 5.0))
    assert share._others == 0.0
    observe(share, in_window(1.0, 10.0, 10.0), in_window(1.9, 5.0, 15.0))
    assert share._others == 0.0
    assert share.uncontended
    # The new window is nobody's negative use, and what a reset of this kind says about the depth is ignored.
    observe(share, in_window(2.2, 18.0, 17.0))
    assert share._others == 0.0
    assert share._depth_s == 1.9
    # A bucket that fills up while its reset comes nearer is a steady one.
    steady = observe(FairShare(), *(sample_with_reset(0.5 * n, 10.0 + n) for n in range(4)))
    assert not steady._windowed
    observe(steady, sample_with_reset(3.0, 11.0), sample_with_reset(3.5, 11.0))
    assert not steady._windowed


def sample_with_reset(at: float, remaining: float) -> QuotaSample:
    return QuotaSample(
        sent_at=at, remaining=remaining, spent=0.0, full=30.0, reset_s=(30.0 - remaining) / RATE
    )


def test_after_fifty_seconds_without_a_sample_the_estimate_starts_anew() -> None:
    """Ten times of a second, here."""
    share = contended()
    observe(share, sample(10.0, 20.0))
    assert not share.starting
    assert share._inflow > 0
    observe(share, sample(20.01, 20.0))
    assert share.starting
    assert (share._inflow, share._others, share._own) == (0.0, 0.0, 0.0)


def test_slow_limits_have_slow_times() -> None:
    """Four requests of 100 take 40 s to flow in: nothing is known before, and the memory lasts 200 s."""
    share = FairShare()
    for at in (0.0, 30.0, 39.0):
        share.update(sample(at, 900.0, 10 * at, cost=100.0), RATE)
        assert not share.uncontended
    assert share._inflow == pytest.approx(300 * math.exp(-9 / 200) + 90)
    share.update(sample(50.0, 900.0, 500.0, cost=100.0), RATE)
    assert share.uncontended
    share.update(sample(440.0, 900.0, 4_400.0, cost=100.0), RATE)
    assert share._inflow > 0
    share.update(sample(841.0, 900.0, 8_410.0, cost=100.0), RATE)
    assert share._inflow == 0.0


def test_the_cost_of_a_request_is_a_running_average() -> None:
    share = observe(FairShare(), sample(0.0, 30.0, cost=10.0))
    assert share.cost == 10.0
    observe(share, sample(1.0, 30.0, cost=20.0))
    assert share.cost == pytest.approx(11.0)


# The common price


@pytest.mark.parametrize("remaining", [24.0, 15.0, 3.0])
@pytest.mark.parametrize("slow", [math.log(0.5), math.log(0.2)])
def test_the_share_follows_what_remains(remaining: float, slow: float) -> None:
    """A quarter of the change at once, the rest within six seconds; the same number for all clients."""
    share = contended(slow)
    observe(share, sample(2.0, remaining))
    aim = 5 * (remaining / RATE / 3.0 - 0.8)
    wanted, factor = share_after(slow, aim, 2.0, 6.0 if aim < 0 else 1.0)
    assert share._slow == pytest.approx(wanted)
    assert share.factor == pytest.approx(max(0.1, factor))


def test_shares_that_began_apart_meet() -> None:
    """Whatever each of two clients believed, the remaining allowance that both see brings them together."""
    first, second = contended(math.log(0.9)), contended(math.log(0.1))
    for second_of_time in range(1, 31):
        for share in (first, second):
            share._others = share._inflow  # they see each other
            observe(share, sample(float(second_of_time), 18.0))
    assert first.factor == pytest.approx(second.factor, rel=0.02)
    assert first.factor == pytest.approx(math.exp(5 * (18 / 30 - 0.8)), rel=0.02)


def test_a_nearly_full_bucket_raises_the_share_within_a_second_a_little_beyond_the_limit() -> None:
    """Otherwise a client that is alone would never see that nobody else uses what it leaves."""
    share = contended()
    observe(share, sample(1.0, 30.0))
    assert share._slow == pytest.approx(share_after(math.log(0.5), 0.3, 1.0, 1.0)[0])
    for second_of_time in range(2, 8):
        share._others = share._inflow
        observe(share, sample(float(second_of_time), 30.0))
    assert share.factor == pytest.approx(math.exp(0.3), rel=0.01)


def test_a_long_time_without_samples_counts_as_three_seconds() -> None:
    """One sample changes no more than that."""
    share = contended()
    observe(share, sample(9.0, 15.0))
    assert share._slow == pytest.approx(share_after(math.log(0.5), -1.5, 3.0)[0])


def test_the_zone_is_three_seconds_or_the_whole_bucket() -> None:
    """A bucket of a minute is used down to the last seconds, and one of a second as a whole."""
    deep = contended()
    observe(deep, sample(1.0, 600.0))
    assert deep.factor == pytest.approx(1 + 57 / 10)
    # A bank leaves the share that was measured: half.
    assert deep._slow == pytest.approx(math.log(25 / (25 + deep._others / math.exp(-1 / 5))), rel=0.2)
    observe(deep, sample(2.0, 15.0))
    assert deep.factor == pytest.approx(share_after(deep._slow, -1.5, 0.0)[1])
    small = observe(FairShare(), sample(0.0, 10.0))
    small._inflow, small._others = 50.0, 25.0
    slow = small._slow
    observe(small, sample(1.0, 5.0))
    assert small.factor == pytest.approx(share_after(slow, -1.5, 1.0)[1])


def test_the_share_measured_while_a_bank_is_spent_is_that_of_what_was_sent() -> None:
    """So that nobody begins with the whole limit when the bank is gone; at least a twentieth."""
    for own, others, part in ((10.0, 30.0, 0.25), (0.0, 50.0, 0.05), (20.0, -5.0, 1.0)):
        share = contended()
        share._own, share._others, share._inflow = own, others, 1e9
        share._last = sample(0.0, 500.0)
        share.uncontended = False
        share._factor(50.0, 3.0, 3.0, 0.0)
        assert share._slow == pytest.approx(math.log(part))


def test_a_reset_time_tells_a_newcomer_how_much_the_bucket_holds() -> None:
    """Otherwise it would take the little that it sees for a full bucket, and more than the others."""
    known, unknown = FairShare(), FairShare()
    for share, full in ((known, 30.0), (unknown, 0.0)):
        observe(share, sample(0.0, 12.0, full=full))
        share._inflow, share._others = 50.0, 25.0
        observe(share, sample(1.0, 12.0, full=full))
    assert known.factor < 0.5 < unknown.factor


def test_only_refusals_lower_the_share_below_a_tenth() -> None:
    """A client that takes less is not noticed by one that believes to be alone."""
    share = contended(-20.0)
    observe(share, sample(0.01, 0.0))
    assert share.factor == 0.1
    share.refused()
    observe(share, sample(0.02, 0.0))
    assert share.factor == pytest.approx(0.07, rel=0.01)
    for _ in range(20):
        share.refused()
    observe(share, sample(0.03, 0.0))
    assert share.factor == pytest.approx(0.005, rel=0.01)
    # A fiftieth comes back each second.
    observe(share, sample(5.03, 0.0))
    assert share.factor == pytest.approx(0.1 * (0.05 + 0.02 * 5.0), rel=0.02)
    for second_of_time in range(10, 90, 5):
        observe(share, sample(float(second_of_time), 0.0))
    assert share.factor == 0.1


# Buckets of few requests


def test_what_remains_of_few_requests_says_nothing() -> None:
    """Their share is cut by each refusal, and grows by a fiftieth a second."""
    share = observe(FairShare(), sample(0.0, 5.9))
    assert (share.deep, share.uncontended, share.factor, share.starting) == (False, True, 1.0, True)
    observe(share, sample(2.0, 0.0))
    assert (share.uncontended, share.factor) == (True, 1.0)
    share.refused()
    observe(share, sample(3.0, 0.0))
    assert share.factor == pytest.approx(0.7 + 0.02)
    assert not share.uncontended
    for second_of_time in range(4, 40):
        observe(share, sample(float(second_of_time), 0.0))
    # A client that was refused once keeps to the margins of a shared limit.
    assert (share.factor, share.uncontended) == (1.0, False)


def test_six_requests_are_enough() -> None:
    share = observe(FairShare(), sample(0.0, 6.0, cost=1.0))
    assert share.deep
    assert not share.uncontended
    share = observe(FairShare(), sample(0.0, 300.0, cost=51.0))
    assert not share.deep
