"""The two clocks of a stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmopt.policies.timeouts import StreamTimeouts


def clocks(idle: float = 60, content: float = 120, first: float = 0) -> StreamTimeouts:
    return StreamTimeouts(idle=idle, content=content, first=first)


def test_each_wait_has_the_whole_time_for_a_byte() -> None:
    """However many there were."""
    made = clocks()
    assert made.read_timeout == 60
    made.bytes_received(50)
    assert made.read_timeout == 60
    made.bytes_received(20)
    assert made.read_timeout == 50


def test_only_words_set_the_second_clock_back() -> None:
    """And its sentence says which of them ran out."""
    made = clocks()
    made.bytes_received(59)
    made.bytes_received(59)
    assert made.read_timeout == 2
    assert made.describe() == "only signs of life came for 120 s, and nothing of the answer"
    made.content_received()
    assert made.read_timeout == 60
    assert made.describe() == "nothing came for 60 s"


def test_before_the_first_word_a_model_may_think() -> None:
    """As long as its first event may take; never shorter than usual."""
    made = clocks(first=300)
    assert made.read_timeout == 300
    made.bytes_received(290)
    assert made.read_timeout == 10
    made.content_received()
    assert made.read_timeout == 60
    assert clocks(first=1).read_timeout == 60


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=50), st.floats(0, 300))
def test_the_bound_is_never_more_than_either_clock_allows(
    waits: list[tuple[float, bool]], first: float
) -> None:
    """Whatever happens, silence is noticed in time."""
    made = clocks(first=first)
    quiet, spoken = 0.0, False
    for seconds, spoke in waits:
        made.bytes_received(seconds)
        quiet += seconds
        if spoke:
            made.content_received()
            quiet, spoken = 0.0, True
        idle, content = (60, 120) if spoken else (max(60, first), max(120, first))
        assert made.read_timeout == min(idle, content - quiet)
