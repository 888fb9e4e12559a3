"""Cutting texts into batches."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llmopt import BatchLimit
from llmopt.operations.embed_batches import Batcher, body_bytes, certainly_too_long, make_batches

texts = st.lists(st.text(min_size=1, max_size=40), max_size=60)
limits = st.builds(
    BatchLimit,
    max_items=st.none() | st.integers(1, 10),
    max_tokens=st.none() | st.integers(1, 200),
    max_bytes=st.none() | st.integers(600, 1_200),
)


def estimate(text: str) -> int:
    return len(text)


@given(texts, limits)
def test_every_text_is_in_exactly_one_batch_in_order(given_texts: list[str], limit: BatchLimit) -> None:
    """Nothing is lost, doubled or moved, and `start` counts the texts before."""
    batches = list(make_batches(given_texts, Batcher(lambda: limit, estimate)))
    assert [text for batch in batches for text in batch.texts] == given_texts
    assert [batch.start for batch in batches] == [
        sum(len(before.texts) for before in batches[:number]) for number in range(len(batches))
    ]


@given(texts, limits)
def test_no_batch_is_over_a_limit_unless_one_text_alone_is(given_texts: list[str], limit: BatchLimit) -> None:
    """Items, tokens and bytes hold together."""
    for batch in make_batches(given_texts, Batcher(lambda: limit, estimate)):
        assert batch.texts
        assert batch.tokens == sum(map(estimate, batch.texts))
        if limit.max_items is not None:
            assert len(batch.texts) <= limit.max_items
        if len(batch.texts) > 1:
            assert limit.max_tokens is None or batch.tokens <= limit.max_tokens
            assert limit.max_bytes is None or sum(map(body_bytes, batch.texts)) + 512 <= limit.max_bytes


@given(texts, limits)
def test_batches_are_as_full_as_they_can_be(given_texts: list[str], limit: BatchLimit) -> None:
    """The first text of a batch would not have fitted into the one before."""
    batches = list(make_batches(given_texts, Batcher(lambda: limit, estimate)))
    for before, after in pairwise(batches):
        grown = (*before.texts, after.texts[0])
        assert (
            (limit.max_items is not None and len(grown) > limit.max_items)
            or (limit.max_tokens is not None and sum(map(estimate, grown)) > limit.max_tokens)
            or (limit.max_bytes is not None and sum(map(body_bytes, grown)) + 512 > limit.max_bytes)
        )


def test_a_limit_that_changes_under_way_holds_for_the_next_batch() -> None:
    """The limit is asked for anew with each batch."""
    sizes = iter([3, 1, 2])
    batcher = Batcher(lambda: BatchLimit(max_items=next(sizes, 5)), estimate)
    assert [len(batch.texts) for batch in make_batches(list("abcdefg"), batcher)] == [3, 1, 2, 1]


def test_skip_leaves_a_position_out() -> None:
    """A position that holds no text still counts."""
    batcher = Batcher(BatchLimit, estimate)
    batcher.skip()
    batcher.add("a")
    batch = batcher.flush()
    assert batch is not None
    assert batch.start == 1


def test_wire_bytes_are_those_of_utf8() -> None:
    """Two quotes and a comma, and the text in UTF-8."""
    assert body_bytes("abc") == 6
    assert body_bytes("é") == 5
    assert body_bytes("🙂") == 7


def test_only_hopeless_texts_are_surely_too_long() -> None:
    """What some tokenizer might squeeze in is sent."""
    limit = BatchLimit(max_item_tokens=10)
    assert not certainly_too_long("a" * 2_000, limit)
    assert certainly_too_long("a" * 3_000, limit)
    assert not certainly_too_long("a" * 3_000, BatchLimit(max_item_tokens=10, truncates=True))
    assert not certainly_too_long("a" * 10_000_000, BatchLimit())
    assert certainly_too_long("a" * 600, BatchLimit(max_bytes=1_000))
