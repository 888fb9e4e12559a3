"""The backoff of a quota after a 429, and the probe."""

from __future__ import annotations

from typing import Any, cast

import pytest

from llmopt.policies.quota import Backoff, Lease


def lease(granted_at: float = 0.0, number: int = 1) -> Lease:
    return Lease(cast("Any", None), 0.0, granted_at, number, 1.0, 0.0)


def refuse(pause: Backoff, now: float, retry_after: float | None = None, **more: Any) -> None:
    pause.throttled(now, retry_after, more.get("lease") or lease(more.get("sent_at", now), 100))


def test_without_a_refusal_there_is_no_backoff() -> None:
    """No pause, and no probe."""
    pause = Backoff()
    assert (pause.remaining(0.0), pause.remaining(-1e9), pause.probe, pause.wants_probe) == (
        0.0,
        0.0,
        None,
        False,
    )


def test_the_pause_lasts_as_long_as_retry_after() -> None:
    """Counted from the refusal."""
    pause = Backoff()
    refuse(pause, 10.0, 1.5)
    assert pause.remaining(10.0) == 1.5
    assert pause.remaining(11.0) == 0.5
    assert pause.remaining(12.0) == 0.0
    assert not pause.wants_probe


def test_a_pause_is_at_most_an_hour() -> None:
    """An absurd Retry-After is not obeyed."""
    pause = Backoff()
    refuse(pause, 0.0, 86_400)
    assert pause.remaining(0.0) == 3_600
    pause = Backoff()
    refuse(pause, 0.0, 1e9)
    assert pause.remaining(0.0) == 60


@pytest.mark.parametrize("retry_after", [None, 0.0, -1.0])
def test_without_retry_after_the_pause_doubles_from_half_a_second(retry_after: float | None) -> None:
    """Up to half a minute."""
    pause = Backoff()
    now, pauses = 0.0, []
    for _ in range(9):
        refuse(pause, now, retry_after)
        pauses.append(pause.remaining(now))
        now = pause.until
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_later_refusal_never_shortens_the_pause() -> None:
    pause = Backoff()
    refuse(pause, 0.0, 10.0)
    refuse(pause, 1.0, 2.0)
    assert pause.remaining(1.0) == 9.0
    refuse(pause, 1.0, 20.0)
    assert pause.remaining(1.0) == 20.0


def test_refusals_of_requests_in_flight_are_not_counted_again() -> None:
    """Such a refusal may prolong the pause by its own Retry-After, but adds no further throttle."""
    pause = Backoff()
    refuse(pause, 10.0, sent_at=9.0)
    for _ in range(5):
        refuse(pause, 10.2, sent_at=9.5)
    assert pause.remaining(10.0) == 0.5
    assert not pause.wants_probe
    refuse(pause, 10.3, 3.0, sent_at=9.9)
    assert pause.remaining(10.3) == 3.0
    # The next request sent after the pause began is the second throttle, not the eighth.
    refuse(pause, 14.0, sent_at=13.9)
    assert pause.remaining(14.0) == 1.0


def test_a_request_sent_in_the_moment_the_pause_began_counts() -> None:
    """The boundary is included."""
    pause = Backoff()
    refuse(pause, 10.0)
    refuse(pause, 11.0, sent_at=10.0)
    assert pause.remaining(11.0) == 1.0


def test_a_pause_of_two_seconds_or_three_throttles_needs_a_probe() -> None:
    """Shorter and fewer do not."""
    for seconds, wanted in ((1.99, False), (2.0, True)):
        pause = Backoff()
        refuse(pause, 0.0, seconds)
        assert pause.wants_probe is wanted
    pause = Backoff()
    for strike, wanted in ((1, False), (2, False), (3, True)):
        refuse(pause, float(strike), 0.1)
        assert pause.wants_probe is wanted


def test_all_others_wait_for_the_probe() -> None:
    """As long as the pause was, at least a second; the cause is no longer the server's pause."""
    for length, probe_wait in ((3.0, 3.0), (0.2, 1.0)):
        pause = Backoff()
        refuse(pause, 0.0, length)
        first = lease(length)
        pause.probe_sent(length, first)
        assert pause.probe is first
        assert pause.until == length + probe_wait
        assert pause.remaining(length) == 0.0


def test_a_response_to_the_probe_ends_the_backoff() -> None:
    """A response to another request does not."""
    pause = Backoff()
    refuse(pause, 0.0, 3.0)
    first = lease(3.0)
    pause.probe_sent(3.0, first)
    pause.succeeded(lease(3.1))
    assert pause.probe is first
    assert pause.wants_probe
    pause.succeeded(first)
    assert (pause.probe, pause.wants_probe) == (None, False)
    assert pause.until == -float("inf")
    assert pause.remaining(-1e12) == 0.0


def test_a_response_resets_the_throttles_unless_it_is_old() -> None:
    """A request that was sent before the pause began says nothing about it."""
    pause = Backoff()
    refuse(pause, 10.0)
    pause.succeeded(lease(9.0))
    refuse(pause, 11.0)
    assert pause.remaining(11.0) == 1.0
    pause.succeeded(lease(11.0))
    refuse(pause, 12.5)
    assert pause.remaining(12.5) == 0.5


def test_a_pause_ends_when_later_requests_are_accepted() -> None:
    """The refusal then concerned its own request. An earlier request proves nothing."""
    pause = Backoff()
    refuse(pause, 1.0, 30.0, sent_at=0.5, lease=lease(0.5, 5))
    assert pause.wants_probe
    pause.succeeded(lease(0.4, 4))
    assert pause.remaining(1.0) == 30.0
    pause.succeeded(lease(0.6, 6))
    assert (pause.remaining(1.0), pause.wants_probe, pause.server_stated) == (0.0, False, False)


def test_a_pause_stays_when_later_requests_are_refused_too() -> None:
    """More than two must be accepted for each of them; then a further refusal does not pause again."""
    pause = Backoff()
    refuse(pause, 1.0, 3.0, sent_at=0.5, lease=lease(0.5, 5))
    refuse(pause, 1.1, 3.0, sent_at=0.6, lease=lease(0.6, 6))
    for number in (7, 8):
        pause.succeeded(lease(0.7, number))
        assert pause.remaining(1.1) == pytest.approx(3.0)
    pause.succeeded(lease(0.7, 9))
    assert pause.remaining(1.1) == 0.0
    for number in (10, 11):
        pause.succeeded(lease(0.7, number))
    refuse(pause, 1.2, 3.0, sent_at=0.8, lease=lease(0.8, 12))
    assert pause.remaining(1.2) == 0.0
    refuse(pause, 1.2, 3.0, sent_at=0.8, lease=lease(0.8, 13))
    assert pause.remaining(1.2) == pytest.approx(3.0)


def test_an_unsent_probe_makes_room_for_another() -> None:
    """At once; a refund of another request changes nothing."""
    pause = Backoff()
    refuse(pause, 0.0, 3.0)
    first = lease(3.0)
    pause.probe_sent(3.0, first)
    pause.not_sent(3.5, lease(3.0))
    assert (pause.probe, pause.until) == (first, 6.0)
    pause.not_sent(3.5, first)
    assert (pause.probe, pause.until) == (None, 3.5)
    assert pause.wants_probe


def test_a_refused_probe_begins_a_longer_pause() -> None:
    """The next request is a probe again."""
    pause = Backoff()
    refuse(pause, 0.0, 3.0)
    first = lease(3.0)
    pause.probe_sent(3.0, first)
    refuse(pause, 3.2, sent_at=3.0, lease=first)
    assert pause.probe is None
    assert pause.wants_probe
    # The second throttle without Retry-After pauses for a second; the wait for the probe was longer.
    assert pause.until == 6.0
    other = lease(6.0)
    pause.probe_sent(6.0, other)
    refuse(pause, 6.5, 10.0, sent_at=6.0, lease=other)
    assert pause.remaining(6.5) == 10.0
    pause.probe_sent(16.5, lease(16.5))
    assert pause.until == 26.5


def test_a_refusal_of_another_request_leaves_the_probe_in_place() -> None:
    pause = Backoff()
    refuse(pause, 0.0, 3.0)
    first = lease(3.0)
    pause.probe_sent(3.0, first)
    refuse(pause, 3.1, sent_at=2.0, lease=lease(2.0))
    refuse(pause, 3.1, sent_at=2.0)
    assert pause.probe is first
