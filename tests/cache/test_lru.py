"""What was used last is kept, up to so many bytes: against a plain list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmopt.cache.store import LRUCache

EACH = 200


def test_a_value_may_change_while_it_is_kept() -> None:
    """What it took when it came is what is given back when it goes."""
    kept: LRUCache[str, list[int]] = LRUCache(10_000, len)
    value = [1] * 50
    kept.put("a", value)
    value.extend([2] * 500)
    kept.remove("a")
    assert kept.bytes == 0


def test_too_large_alone() -> None:
    """It is not kept, and nothing goes for it, but for what it was to replace."""
    kept: LRUCache[str, bytes] = LRUCache(1_000, len)
    kept.put("a", b"")
    kept.put("b", b"old")
    assert kept.put("b", b"x" * 1_000) == 0
    assert dict(kept.items()) == {"a": b""}


def test_exactly_full_is_not_too_full() -> None:
    """Neither for one value nor for all."""
    kept: LRUCache[str, bytes] = LRUCache(2 * EACH + 100, len)
    kept.put("a", bytes(EACH + 100))
    assert len(kept) == 1
    kept.put("a", bytes(60))
    assert kept.put("b", bytes(40)) == 0
    assert len(kept) == 2
    assert kept.put("b", bytes(41)) == 1


OPS = st.lists(st.tuples(st.sampled_from("gprc"), st.integers(0, 8), st.integers(0, 600)), max_size=60)


@given(OPS)
def test_like_a_plain_list(operations: list[tuple[str, int, int]]) -> None:
    """The same contents, in the same order, within the same bound."""
    kept: LRUCache[int, bytes] = LRUCache(2_000, len)
    plain: list[tuple[int, int]] = []
    gone = 0
    for what, key, size in operations:
        there = next((each for each in plain if each[0] == key), None)
        if what == "c" and size < 50:
            kept.clear()
            plain.clear()
        elif what == "g":
            assert kept.get(key) == (None if there is None else bytes(there[1]))
            if there is not None:
                plain.remove(there)
                plain.append(there)
        elif what == "r":
            kept.remove(key)
            if there is not None:
                plain.remove(there)
        elif what == "p":
            if there is not None:
                plain.remove(there)
            plain.append((key, size))
            while sum(each[1] + EACH for each in plain) > 2_000:
                plain.pop(0)
                gone += 1
            kept.put(key, bytes(size))
        assert [(each, len(value)) for each, value in kept.items()] == plain
        assert kept.bytes == sum(each[1] + EACH for each in plain) <= 2_000
        assert len(kept) == len(plain)
    assert kept.evicted == gone
