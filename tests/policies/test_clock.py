"""Deadlines of calls, and the values accepted for one (fault row C15)."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from llmopt.errors import ConfigError
from llmopt.policies.clock import Deadline, valid_seconds
from llmopt.testing.clock import SimulatedClock


def test_the_remaining_time_counts_down_to_zero() -> None:
    clock = SimulatedClock(start=50.0)
    deadline = Deadline.after(10, clock.now)

    assert (deadline.at, deadline.remaining(), deadline.expired()) == (60.0, 10.0, False)
    clock.advance(9.5)
    assert (deadline.remaining(), deadline.expired()) == (0.5, False)
    clock.advance(0.5)
    assert (deadline.remaining(), deadline.expired()) == (0.0, True)
    clock.advance(5)
    assert (deadline.remaining(), deadline.expired()) == (0.0, True)


def test_none_means_no_deadline() -> None:
    """Every wait fits."""
    clock = SimulatedClock()
    deadline = Deadline.after(None, clock.now)

    clock.advance(1e12)

    assert not deadline.bounded
    assert not deadline.expired()
    assert deadline.remaining() == math.inf
    assert deadline.clamp(30.0) == 30.0
    assert deadline.leaves(1e15)


def test_a_far_deadline_is_still_a_deadline() -> None:
    assert Deadline.after(1e300, SimulatedClock().now).bounded


def test_clamp_limits_a_wait_and_leaves_checks_it() -> None:
    """A wait fits when the reserved time still comes after it."""
    clock = SimulatedClock(start=0.0)
    deadline = Deadline.after(10, clock.now)

    assert deadline.clamp(4.0) == 4.0
    assert deadline.clamp(40.0) == 10.0
    assert deadline.leaves(9.0, spare=1.0)
    assert not deadline.leaves(9.1, spare=1.0)
    assert deadline.leaves(10.0)
    clock.advance(2)
    assert not deadline.leaves(9.0)


@pytest.mark.row("C15")
@pytest.mark.parametrize("seconds", [0, 0.0, -0.0, -1, -1e300])
def test_a_deadline_of_zero_or_less_is_expired_at_once(seconds: float) -> None:
    """A caller may have computed it as the time left over."""
    deadline = Deadline.after(seconds, SimulatedClock().now)

    assert deadline.expired()
    assert deadline.remaining() == 0.0


@pytest.mark.row("C15")
def test_a_nanosecond_is_a_deadline() -> None:
    """It expires as soon as the clock moves."""
    clock = SimulatedClock(start=0.0)
    deadline = Deadline.after(1e-9, clock.now)

    assert not deadline.expired()
    clock.advance(1e-6)
    assert deadline.expired()


@pytest.mark.row("C15")
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "not nan"),
        (math.inf, "not inf"),
        (-math.inf, "not -inf"),
        (10**400, "not inf"),
        ("5", "not str"),
        (b"5", "not bytes"),
        (True, "not bool"),
        ([], "not list"),
        (dt.timedelta(seconds=5), "not timedelta"),
        (Decimal(5), "not Decimal"),
        (5 + 0j, "not complex"),
    ],
)
def test_a_value_that_is_no_time_is_refused(value: Any, words: str) -> None:
    """The message names the option, the value, and how to set no deadline."""
    with pytest.raises(ConfigError, match=r"deadline must be .* or None for no bound") as caught:
        Deadline.after(value, SimulatedClock().now)

    assert words in caught.value.message


@pytest.mark.parametrize("value", [2, 2.0, Fraction(2), np.float32(2), np.int64(2)])
def test_any_real_number_is_accepted(value: Any) -> None:
    """Numbers of other libraries become floats."""
    seconds = valid_seconds(value, "deadline")

    assert seconds == 2.0
    assert type(seconds) is float


def test_repr_and_equality_use_the_moment_only() -> None:
    clock = SimulatedClock(start=1.0)

    assert repr(Deadline.after(2, clock.now)) == "Deadline(at=3.0)"
    assert Deadline.after(2, clock.now) == Deadline.after(2.0, SimulatedClock(start=1.0).now)
