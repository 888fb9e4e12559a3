"""What the engine learns from responses to compressed requests."""

from __future__ import annotations

import pytest

from llmopt.engine.request import CompressionSupport


@pytest.mark.parametrize("status", [400, 415, 422])
def test_a_refusal_that_only_compressed_bodies_meet_ends_compression(status: int) -> None:
    """Whatever words it comes in; told once, though several requests were under way."""
    support = CompressionSupport()
    assert support.should_resend(status)
    assert support.should_resend(status)
    assert support.record_resend(status, 200)
    assert not support.record_resend(status, 200)
    assert not support.enabled


@pytest.mark.parametrize("status", [401, 403, 404, 408, 413, 429, 500, 503, 304])
def test_other_answers_say_nothing_of_compression(status: int) -> None:
    """They have policies of their own."""
    support = CompressionSupport()
    assert not support.should_resend(status)
    assert support.should_resend(400)


def test_a_bad_request_is_bad_either_way() -> None:
    """Nothing is concluded, so that the next refusal is looked at as well."""
    support = CompressionSupport()
    for _ in range(3):
        assert support.should_resend(400)
        assert not support.record_resend(400, 400)
    assert support.enabled


@pytest.mark.parametrize("plain", [401, 403, 408, 429, 500, 503])
@pytest.mark.parametrize("compressed", [400, 415, 422])
def test_what_has_nothing_to_do_with_compression_ends_nothing(compressed: int, plain: int) -> None:
    """A rate limit, a refused key, an outage in the moment of the second sending."""
    support = CompressionSupport()
    assert support.should_resend(compressed)
    assert not support.record_resend(compressed, plain)
    assert support.enabled


def test_a_body_that_is_read_only_uncompressed_ends_packing() -> None:
    """415 for how it came, 400 for what stands in it; a 400 that becomes another 4xx may have any cause."""
    assert CompressionSupport().record_resend(415, 400)
    assert not CompressionSupport().record_resend(400, 404)


def test_who_has_taken_compressed_bodies_is_believed() -> None:
    """Eight times in a row; each body that is taken begins that anew."""
    support = CompressionSupport()
    assert not support.should_resend(200)
    assert [support.should_resend(400) for _ in range(5)] == [False] * 5
    assert not support.should_resend(200)
    assert [support.should_resend(422) for _ in range(9)] == [False] * 8 + [True]
    # Somebody else stands in front of it now.
    assert support.record_resend(422, 200)
    assert not support.enabled


def test_an_unsupported_encoding_is_doubted_always() -> None:
    """415 can hardly mean anything else."""
    support = CompressionSupport()
    assert not support.should_resend(200)
    assert support.should_resend(415)


def test_what_was_under_way_when_compression_ended_is_sent_again_too() -> None:
    """Its refusal is no news, and is not believed either."""
    support = CompressionSupport()
    support.should_resend(200)
    assert support.should_resend(415)
    assert support.record_resend(415, 200)
    assert support.should_resend(400)
    assert not support.should_resend(200)
    assert support.should_resend(400)
