"""The fair share of a rate limit: how response headers and refusals change it.

The numbers are calculated by hand for a limit of 10 a second with a bucket that holds 10.
"""

from __future__ import annotations

import math

import pytest

from llmopt.policies.token_bucket import FairShare, QuotaSample

RATE = BURST = 10.0


def sample(at: float, remaining: float, own: float, expected: float | None = None) -> QuotaSample:
    return QuotaSample(
        sent_at=at,
        remaining=remaining,
        spent=own,
        expected_remaining=remaining if expected is None else expected,
    )


def observe(share: FairShare, *samples: QuotaSample) -> None:
    for each in samples:
        share.update(each, RATE, BURST)


def shared_limit(part: float = 0.5) -> FairShare:
    """A fair share that knows of other clients, and has seen a full bucket."""
    share = FairShare()
    observe(share, sample(0.0, 10.0, 0.0))
    share.uncontended = False
    share._others = 0.5
    share._share = part
    return share


def test_a_client_starts_uncontended_with_the_whole_limit() -> None:
    """Until a response shows other clients."""
    share = FairShare()
    assert (share.factor, share.uncontended) == (1.0, True)
    assert share.bucket_fits(0.0)
    assert repr(share) == "FairShare(1.00, others=0.00)"


# The first sample


def test_a_first_sample_with_only_our_requests_keeps_the_whole_limit() -> None:
    """What is missing from the bucket is our own use."""
    share = FairShare()
    observe(share, sample(0.0, 7.0, 3.0))
    assert (share.uncontended, share.factor, share._others) == (True, 1.0, 0.0)
    # Also when less is missing than we used: the rest may have flowed in again.
    share = FairShare()
    observe(share, sample(0.0, 9.0, 3.0))
    assert (share.uncontended, share._others) == (True, 0.0)


def test_a_first_sample_with_other_clients_lowers_the_share() -> None:
    """Six are missing and two were ours: others used 0.4 of a bucket, and a third is our share."""
    share = FairShare()
    observe(share, sample(0.0, 4.0, 2.0))
    assert not share.uncontended
    assert share._others == pytest.approx(0.4)
    assert share._share == pytest.approx(1 / 3)
    assert share.factor == pytest.approx(1 / 3)


def test_others_that_use_a_tenth_of_the_limit_count_as_contention() -> None:
    share = FairShare()
    observe(share, sample(0.0, 7.0, 2.0))
    assert share._others == pytest.approx(0.1)
    assert not share.uncontended
    share = FairShare()
    observe(share, sample(0.0, 7.001, 2.0))
    assert share.uncontended


def test_the_first_sample_sets_a_share_between_a_tenth_and_the_whole() -> None:
    """However much others used."""
    share = FairShare()
    observe(share, sample(0.0, 0.0, 0.1))
    assert share._share == pytest.approx(0.1)
    share = FairShare()
    observe(share, sample(0.0, 8.5, 0.0))
    assert share._share == pytest.approx(0.1)


# What others use


def test_missing_capacity_was_used_by_others() -> None:
    """In half a second 5 flow in; 2 were ours and 4 more are missing: others use 0.8 of the limit for that time."""
    share = shared_limit()
    share._last = sample(0.0, 5.0, 0.0)
    observe(share, sample(0.5, 4.0, 2.0))
    weight = math.exp(-0.5 / 5)
    assert share._others == pytest.approx(0.5 * weight + (4 / 0.5 / 10) * (1 - weight))
    assert not share.uncontended
    # No deeper than any sample showed: of a bucket that held five, six cannot be missing.
    share = shared_limit()
    share._max_remaining = 5.0
    share._last = sample(0.0, 5.0, 0.0)
    observe(share, sample(0.5, 4.0, 0.5))
    assert share._others == pytest.approx(0.5 * weight + (0.5 / 0.5 / 10) * (1 - weight))


def test_a_bucket_that_may_have_overflowed_is_ignored_under_contention() -> None:
    """It was full before, for an unknown time."""
    share = shared_limit()
    observe(share, sample(2.0, 9.0, 1.0))
    assert share._others == 0.5
    share = shared_limit()
    share._last = sample(0.0, 5.0, 0.0)
    observe(share, sample(0.5, 5.0, 0.0))
    # A level of exactly full counts: only the inflow of half a second is missing.
    weight = math.exp(-0.1)
    assert share._others == pytest.approx(0.5 * weight + (5 / 0.5 / 10) * (1 - weight))


def test_an_uncontended_client_learns_from_a_full_bucket_too() -> None:
    """No other client uses the limit."""
    share = FairShare()
    observe(share, sample(0.0, 10.0, 0.0), sample(1.0, 8.0, 2.0))
    assert share._others == 0.0
    assert share.uncontended
    observe(share, sample(2.0, 6.0, 3.0))
    # Full again except for later use: ten, of which one is ours, and three more are missing.
    assert share._others == pytest.approx(3 / 10 * (1 - math.exp(-1 / 5)))


def test_reordered_requests_may_make_the_use_of_others_negative() -> None:
    """Down to the whole limit."""
    share = FairShare()
    observe(share, sample(0.0, 10.0, 0.0), sample(1.0, 10.0, 4.0))
    assert share._others == pytest.approx(-4 / 10 * (1 - math.exp(-1 / 5)))
    assert share.uncontended
    observe(share, sample(1.001, 10.0, 1_000.0))
    assert share._others == -1.0


def test_samples_of_one_moment_count_as_a_millisecond_apart() -> None:
    """A rate over no time would be infinite."""
    share = shared_limit()
    share._last = sample(1.0, 5.0, 0.0)
    observe(share, sample(1.0, 4.0, 0.0))
    weight = math.exp(-1e-3 / 5)
    assert share._others == pytest.approx(0.5 * weight + (1.01 / 1e-3 / 10) * (1 - weight))


def test_remaining_is_limited_to_the_depth_of_our_bucket() -> None:
    """The server's bucket may hold a minute; ours holds a second."""
    share = FairShare()
    observe(share, sample(0.0, 600.0, 0.0), sample(1.0, 9.0, 1.0))
    assert not share.bucket_fits(10.0)
    assert not share.bucket_fits(599.0)
    assert share.bucket_fits(600.0)
    # Of the ten in our bucket, one is our own use and none is missing.
    assert share._others == 0.0


def test_contention_starts_at_a_tenth_and_ends_below_half_of_that() -> None:
    """The distance avoids a state that changes with every sample."""
    for others, uncontended, expected in (
        (0.0999, True, True),
        (0.1001, True, False),
        (0.0501, False, False),
        (0.0499, False, True),
    ):
        share = shared_limit()
        share.uncontended = uncontended
        share._others = others
        share._last = sample(0.0, 20.0, 0.0)  # more than full, which says nothing about use
        if uncontended:
            # An uncontended client learns from a full bucket: this level keeps its estimate unchanged.
            weight = math.exp(-1 / 5)
            used = others * RATE
            share._last = sample(0.0, 10.0, 0.0)
            observe(share, sample(1.0, 10.0 - used, 0.0))
            assert share._others == pytest.approx(others * weight + others * (1 - weight))
        else:
            observe(share, sample(1.0, 10.0, 0.0))
            assert share._others == others
        assert share.uncontended is expected


# The controller


def test_an_uncontended_client_uses_everything_and_remembers_what_others_left() -> None:
    """Its share starts there when contention begins."""
    share = FairShare()
    observe(share, sample(0.0, 10.0, 0.0), sample(1.0, 9.5, 0.0))
    others = 0.5 / 10 * (1 - math.exp(-1 / 5))
    assert share.factor == 1.0
    assert share._share == pytest.approx(1 - others)
    observe(share, sample(2.0, 10.0, 4.0))
    assert share._share == 1.0


@pytest.mark.parametrize(("part", "filled"), [(0.5, 0.9), (0.5, 0.2), (0.2, 0.5), (1.0, 1.0)])
def test_the_share_is_controlled_to_a_set_point_of_the_remaining(part: float, filled: float) -> None:
    """The set point is half a bucket for a share of 0 and 0.85 of it for a share of 1; the controller is a PI controller."""
    share = shared_limit(part)
    observe(share, sample(1.0, 10.0, 0.0, expected=10 * filled))
    error = filled - (0.5 + 0.35 * part)
    wanted = min(1.0, part * math.exp(0.5 * error * 1.0))
    assert share._share == pytest.approx(max(0.1, wanted))
    assert share.factor == pytest.approx(min(1.0, max(0.1, wanted * math.exp(error))))


def test_the_control_error_is_at_most_a_whole_bucket() -> None:
    """However deep the debt or the server's bucket."""
    for expected, error in ((-100.0, -1.0), (100.0, 1.0)):
        share = shared_limit(0.5)
        observe(share, sample(1.0, 10.0, 0.0, expected=expected))
        assert share._share == pytest.approx(min(1.0, 0.5 * math.exp(0.5 * error)))
        assert share.factor == pytest.approx(min(1.0, share._share * math.exp(error)))


def test_a_long_time_without_samples_counts_as_three_seconds() -> None:
    """One sample changes no more than that."""
    share = shared_limit(0.2)
    observe(share, sample(60.0, 10.0, 0.0, expected=9.0))
    error = 0.9 - (0.5 + 0.35 * 0.2)
    assert share._share == pytest.approx(0.2 * math.exp(0.5 * error * 3))


def test_only_refusals_lower_the_share_below_a_tenth() -> None:
    """The controller stops there; a lower share rises only by growth."""
    share = shared_limit(0.12)
    observe(share, sample(1.0, 10.0, 0.0, expected=-10.0))
    assert share._share == 0.1
    assert share.factor == pytest.approx(0.1)
    share = shared_limit(0.05)
    observe(share, sample(1.0, 10.0, 0.0, expected=-10.0))
    assert share._share == 0.05
    assert share.factor == pytest.approx(0.05)
    share = shared_limit(0.05)
    observe(share, sample(1.0, 10.0, 0.0, expected=10.0))
    error = 1 - (0.5 + 0.35 * 0.05)
    assert share._share == pytest.approx(0.05 * math.exp(0.5 * error))


def test_the_share_is_at_most_the_whole_limit() -> None:
    """However much remains."""
    share = shared_limit(0.95)
    observe(share, sample(3.0, 10.0, 0.0, expected=10.0))
    assert share._share <= 1.0
    assert share.factor == 1.0


# Buckets without depth, and refusals


def test_the_share_of_a_bucket_without_depth_grows_by_a_twentieth_a_second() -> None:
    """Its remaining is 0 after every request, and says nothing."""
    share = FairShare()
    observe(share, sample(0.0, 0.0, 5.0))
    assert not share.uncontended
    part = share._share
    assert part == pytest.approx(0.5)
    observe(share, sample(2.0, 0.0, 6.0))
    assert share._share == pytest.approx(part + 0.1)
    assert share.factor == pytest.approx(part + 0.1)
    observe(share, sample(60.0, 0.0, 6.0))
    assert share._share == pytest.approx(part + 0.25)
    for number in range(10):
        observe(share, sample(100.0 * (number + 1), 0.0, 6.0))
    assert (share._share, share.factor) == (1.0, 1.0)


def test_an_uncontended_bucket_without_depth_changes_nothing() -> None:
    """No other client shares the limit."""
    share = FairShare()
    observe(share, sample(0.0, 0.0, 10.0), sample(1.0, 0.0, 20.0))
    assert (share.uncontended, share.factor, share._share) == (True, 1.0, 1.0)


def test_two_unexpected_refusals_count_as_contention() -> None:
    """One may be an accident."""
    share = FairShare()
    share.refused()
    assert (share.uncontended, share.factor) == (True, 1.0)
    assert share._others == pytest.approx(0.05)
    share.refused()
    assert not share.uncontended
    assert share._others == pytest.approx(0.1)
    assert share.factor == pytest.approx(0.7)
    share.refused()
    assert share.factor == pytest.approx(0.49)


def test_a_refusal_raises_a_negative_estimate_of_others_to_zero_first() -> None:
    share = FairShare()
    share._others = -0.8
    share.refused()
    assert share._others == pytest.approx(0.05)


def test_a_refusal_never_ends_contention() -> None:
    """Even if others seem to use next to nothing."""
    share = shared_limit(0.5)
    share._others = -1.0
    share.refused()
    assert not share.uncontended
    assert share.factor == pytest.approx(0.35)


def test_refusals_leave_a_share_of_a_hundredth() -> None:
    """The share can grow again from there."""
    share = shared_limit(0.011)
    share.refused()
    assert share._share == 0.01
    assert share.factor == 0.01
