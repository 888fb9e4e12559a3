"""The backoff of a quota after a 429, and the probe."""

from __future__ import annotations

from typing import Any, cast

import pytest

from llmopt.policies.quota import Backoff, Lease


def lease(granted_at: float = 0.0) -> Lease:
    return Lease(cast("Any", None), 0.0, granted_at, 1, 1.0, 0.0)


def refuse(pause: Backoff, now: float, retry_after: float | None = None, **more: Any) -> None:
    pause.throttled(now, more.pop("sent_at", now), retry_after, more.pop("lease", None))


def test_at_first_there_is_none() -> None:
    """Nothing is paused, nobody tries."""
    pause = Backoff()
    assert (pause.remaining(0.0), pause.remaining(-1e9), pause.probe, pause.wants_probe) == (
        0.0,
        0.0,
        None,
        False,
    )


def test_as_long_as_the_server_asks() -> None:
    """To the moment, from the refusal on."""
    pause = Backoff()
    refuse(pause, 10.0, 1.5)
    assert pause.remaining(10.0) == 1.5
    assert pause.remaining(11.0) == 0.5
    assert pause.remaining(12.0) == 0.0
    assert not pause.wants_probe


def test_an_hour_at_most() -> None:
    """Whatever it asks; what is absurd is not kept to."""
    pause = Backoff()
    refuse(pause, 0.0, 86_400)
    assert pause.remaining(0.0) == 3_600
    pause = Backoff()
    refuse(pause, 0.0, 1e9)
    assert pause.remaining(0.0) == 60


@pytest.mark.parametrize("hint", [None, 0.0, -1.0])
def test_without_a_hint_half_a_second_and_twice_as_long_each_time(hint: float | None) -> None:
    """Up to half a minute."""
    pause = Backoff()
    now, found = 0.0, []
    for _ in range(9):
        refuse(pause, now, hint)
        found.append(pause.remaining(now))
        now = pause.until
    assert found == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_pause_is_never_cut_short() -> None:
    """A later refusal with a shorter wish does not end the longer one."""
    pause = Backoff()
    refuse(pause, 0.0, 10.0)
    refuse(pause, 1.0, 2.0)
    assert pause.remaining(1.0) == 9.0
    refuse(pause, 1.0, 20.0)
    assert pause.remaining(1.0) == 20.0


def test_what_was_under_way_when_it_began_is_no_news() -> None:
    """It may prolong the pause by its own wish, and is no further strike."""
    pause = Backoff()
    refuse(pause, 10.0, sent_at=9.0)
    for _ in range(5):
        refuse(pause, 10.2, sent_at=9.5)
    assert pause.remaining(10.0) == 0.5
    assert not pause.wants_probe
    refuse(pause, 10.3, 3.0, sent_at=9.9)
    assert pause.remaining(10.3) == 3.0
    # The next one that was sent in the pause's own time is the second throttle, not the eighth.
    refuse(pause, 14.0, sent_at=13.9)
    assert pause.remaining(14.0) == 1.0


def test_sent_in_the_very_moment_it_began_is_news() -> None:
    """The boundary counts."""
    pause = Backoff()
    refuse(pause, 10.0)
    refuse(pause, 11.0, sent_at=10.0)
    assert pause.remaining(11.0) == 1.0


def test_two_seconds_or_three_throttles_want_a_probe() -> None:
    """Shorter and fewer do not."""
    for seconds, wanted in ((1.99, False), (2.0, True)):
        pause = Backoff()
        refuse(pause, 0.0, seconds)
        assert pause.wants_probe is wanted
    pause = Backoff()
    for strike, wanted in ((1, False), (2, False), (3, True)):
        refuse(pause, float(strike), 0.1)
        assert pause.wants_probe is wanted


def test_behind_a_probe_nobody_is_paused_but_all_wait() -> None:
    """As long as the pause was, at least a second; the server wants nothing of that any more."""
    for length, patience in ((3.0, 3.0), (0.2, 1.0)):
        pause = Backoff()
        refuse(pause, 0.0, length)
        first = lease(length)
        pause.probe_sent(length, first)
        assert pause.probe is first
        assert pause.until == length + patience
        assert pause.remaining(length) == 0.0


def test_an_answer_to_the_probe_ends_it() -> None:
    """And to nobody else's request."""
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


def test_an_answer_starts_the_throttles_over_unless_it_is_old() -> None:
    """One that was sent before the pause began says nothing of it."""
    pause = Backoff()
    refuse(pause, 10.0)
    pause.succeeded(lease(9.0))
    refuse(pause, 11.0)
    assert pause.remaining(11.0) == 1.0
    pause.succeeded(lease(11.0))
    refuse(pause, 12.5)
    assert pause.remaining(12.5) == 0.5


def test_a_probe_that_was_not_sent_makes_room_for_another() -> None:
    """At once; what others gave back changes nothing."""
    pause = Backoff()
    refuse(pause, 0.0, 3.0)
    first = lease(3.0)
    pause.probe_sent(3.0, first)
    pause.not_sent(3.5, lease(3.0))
    assert (pause.probe, pause.until) == (first, 6.0)
    pause.not_sent(3.5, first)
    assert (pause.probe, pause.until) == (None, 3.5)
    assert pause.wants_probe


def test_a_probe_that_is_refused_too_begins_a_longer_pause() -> None:
    """And the next one is a probe again."""
    pause = Backoff()
    refuse(pause, 0.0, 3.0)
    first = lease(3.0)
    pause.probe_sent(3.0, first)
    refuse(pause, 3.2, sent_at=3.0, lease=first)
    assert pause.probe is None
    assert pause.wants_probe
    # The second throttle without a hint is a second; the probe's own wait went on for longer.
    assert pause.until == 6.0
    other = lease(6.0)
    pause.probe_sent(6.0, other)
    refuse(pause, 6.5, 10.0, sent_at=6.0, lease=other)
    assert pause.remaining(6.5) == 10.0
    pause.probe_sent(16.5, lease(16.5))
    assert pause.until == 26.5


def test_a_refusal_of_another_leaves_the_probe_alone() -> None:
    """It still tries."""
    pause = Backoff()
    refuse(pause, 0.0, 3.0)
    first = lease(3.0)
    pause.probe_sent(3.0, first)
    refuse(pause, 3.1, sent_at=2.0, lease=lease(2.0))
    refuse(pause, 3.1, sent_at=2.0)
    assert pause.probe is first


def test_its_repr_tells_the_state() -> None:
    """For whoever debugs."""
    pause = Backoff()
    refuse(pause, 1.0, 2.0)
    assert repr(pause) == "Backoff(until=3.000, consecutive_throttles=1, probe=None)"
