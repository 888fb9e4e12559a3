"""What answers to packed requests teach."""

from __future__ import annotations

import pytest

from llmopt.engine.request import PackingTrust


@pytest.mark.parametrize("status", [400, 415, 422])
def test_a_refusal_that_only_packed_bodies_meet_ends_packing(status: int) -> None:
    """Whatever words it comes in; told once, though several requests were under way."""
    trust = PackingTrust()
    assert trust.doubts(status)
    assert trust.doubts(status)
    assert trust.compare(status, 200)
    assert not trust.compare(status, 200)
    assert not trust.on


@pytest.mark.parametrize("status", [401, 403, 404, 408, 413, 429, 500, 503, 304])
def test_other_answers_say_nothing_of_packing(status: int) -> None:
    """They have policies of their own."""
    trust = PackingTrust()
    assert not trust.doubts(status)
    assert trust.doubts(400)


def test_a_bad_request_is_bad_either_way() -> None:
    """Nothing is concluded, so that the next refusal is looked at as well."""
    trust = PackingTrust()
    for _ in range(3):
        assert trust.doubts(400)
        assert not trust.compare(400, 400)
    assert trust.on


@pytest.mark.parametrize("plain", [401, 403, 408, 429, 500, 503])
@pytest.mark.parametrize("packed", [400, 415, 422])
def test_what_has_nothing_to_do_with_packing_ends_nothing(packed: int, plain: int) -> None:
    """A rate limit, a refused key, an outage in the moment of the second sending."""
    trust = PackingTrust()
    assert trust.doubts(packed)
    assert not trust.compare(packed, plain)
    assert trust.on


def test_a_body_that_is_read_only_unpacked_ends_packing() -> None:
    """415 for how it came, 400 for what stands in it; a 400 that becomes another 4xx may have any cause."""
    assert PackingTrust().compare(415, 400)
    assert not PackingTrust().compare(400, 404)


def test_who_has_taken_packed_bodies_is_believed() -> None:
    """Eight times in a row; each body that is taken begins that anew."""
    trust = PackingTrust()
    assert not trust.doubts(200)
    assert [trust.doubts(400) for _ in range(5)] == [False] * 5
    assert not trust.doubts(200)
    assert [trust.doubts(422) for _ in range(9)] == [False] * 8 + [True]
    # Somebody else stands in front of it now.
    assert trust.compare(422, 200)
    assert not trust.on


def test_an_unsupported_encoding_is_doubted_always() -> None:
    """415 can hardly mean anything else."""
    trust = PackingTrust()
    assert not trust.doubts(200)
    assert trust.doubts(415)


def test_what_was_under_way_when_packing_ended_is_sent_again_too() -> None:
    """Its refusal is no news, and is not believed either."""
    trust = PackingTrust()
    trust.doubts(200)
    assert trust.doubts(415)
    assert trust.compare(415, 200)
    assert trust.doubts(400)
    assert not trust.doubts(200)
    assert trust.doubts(400)
