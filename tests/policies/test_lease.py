"""A lease says each thing once, to whom it is from."""

from __future__ import annotations

from typing import Any

import pytest

from llmopt.policies.quota import Lease
from llmopt.values.calls import RateLimits


class Lender:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def settle(self, lease: Lease, tokens: float | None) -> None:
        self.told.append(("settle", lease, tokens))
        lease.open = False

    def refund(self, lease: Lease) -> None:
        self.told.append(("refund", lease))

    def observe(self, limits: RateLimits, lease: Lease) -> bool:
        self.told.append(("observe", limits, lease))
        return True

    def penalize(
        self, retry_after: float | None, lease: Lease, *, limits: RateLimits | None, counted: bool
    ) -> bool:
        self.told.append(("penalize", retry_after, lease, limits, counted))
        return True


def made(lender: Lender) -> Lease:
    return Lease(lender, 70.0, 5.0, 3, 8.0, 90.0)


def test_it_holds_what_it_was_made_with() -> None:
    """And nothing was said of it yet."""
    lease = made(Lender())
    assert (lease.tokens, lease.granted_at, lease.number) == (70.0, 5.0, 3)
    assert (lease.requests_mark, lease.tokens_mark) == (8.0, 90.0)
    assert (lease.waited, lease.cause, lease.open) == (0.0, "", True)
    assert repr(lease) == "Lease(tokens=70, waited=0.000, open=True)"


def test_leaving_the_block_settles_as_estimated_once() -> None:
    """Also with an exception; not where something was said already."""
    lender = Lender()
    with made(lender) as lease:
        pass
    assert lender.told == [("settle", lease, None)]
    with pytest.raises(KeyError), made(lender):
        raise KeyError
    assert len(lender.told) == 2
    with made(lender) as lease:
        lease.settle(5)
    assert lender.told[2:] == [("settle", lease, 5)]


def test_every_word_reaches_the_lender() -> None:
    """With all that it says."""
    lender, limits = Lender(), RateLimits()
    lease = made(lender)
    lease.settle()
    lease.refund()
    assert lease.observe(limits) is True
    assert lease.penalize(2.5, limits=limits, counted=True) is True
    assert lease.penalize() is True
    assert lender.told == [
        ("settle", lease, None),
        ("refund", lease),
        ("observe", limits, lease),
        ("penalize", 2.5, lease, limits, True),
        ("penalize", None, lease, None, False),
    ]
