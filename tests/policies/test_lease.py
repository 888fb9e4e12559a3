"""A lease says each thing once, to whom it is from."""

from __future__ import annotations

from typing import Any

import pytest

from llmopt.policies.quota import Lease
from llmopt.values.calls import RateLimits


class LeaseOwner:
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

    def throttled(
        self, retry_after: float | None, lease: Lease, *, limits: RateLimits | None, tokens_counted: bool
    ) -> bool:
        self.told.append(("throttled", retry_after, lease, limits, tokens_counted))
        return True


def made(owner: LeaseOwner) -> Lease:
    return Lease(owner, 70.0, 5.0, 3, 8.0, 90.0)


def test_it_holds_what_it_was_made_with() -> None:
    """And nothing was said of it yet."""
    lease = made(LeaseOwner())
    assert (lease.tokens, lease.granted_at, lease.number) == (70.0, 5.0, 3)
    assert (lease.requests_spent, lease.tokens_spent) == (8.0, 90.0)
    assert (lease.waited, lease.cause, lease.open) == (0.0, "", True)
    assert repr(lease) == "Lease(tokens=70, waited=0.000, open=True)"


def test_leaving_the_block_settles_as_estimated_once() -> None:
    """Also with an exception; not where something was said already."""
    owner = LeaseOwner()
    with made(owner) as lease:
        pass
    assert owner.told == [("settle", lease, None)]
    with pytest.raises(KeyError), made(owner):
        raise KeyError
    assert len(owner.told) == 2
    with made(owner) as lease:
        lease.settle(5)
    assert owner.told[2:] == [("settle", lease, 5)]


def test_every_word_reaches_the_lender() -> None:
    """With all that it says."""
    owner, limits = LeaseOwner(), RateLimits()
    lease = made(owner)
    lease.settle()
    lease.refund()
    assert lease.observe(limits) is True
    assert lease.throttled(2.5, limits=limits, tokens_counted=True) is True
    assert lease.throttled() is True
    assert owner.told == [
        ("settle", lease, None),
        ("refund", lease),
        ("observe", limits, lease),
        ("throttled", 2.5, lease, limits, True),
        ("throttled", None, lease, None, False),
    ]
