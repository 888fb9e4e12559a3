"""A provider's sentence repeats neither key nor text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmopt.engine.responses import redact

CANARY = "canary-text-f3a9c1"


@given(st.text(max_size=80), st.text(max_size=80), st.integers(12, 18))
def test_s02_no_stretch_of_a_text_gets_through(before: str, after: str, length: int) -> None:
    """Whole or cut off, the echo is gone."""
    echo = CANARY[:length]
    assert echo not in redact(f"{before} {echo} {after}", texts=[f"hello {CANARY} world"])


def test_short_texts_are_taken_out_whole() -> None:
    """A text of few characters may be a password too."""
    assert redact("cannot embed 'hunter2'", texts=["hunter2"]) == "cannot embed '[text]'"


def test_s04_control_characters_become_spaces() -> None:
    """Neither a terminal nor a log file can be steered by an error."""
    assert redact("a\x1b[31mred\r\nb\u2028c") == "a [31mred  b c"


def test_keys_are_taken_out() -> None:
    """Some providers repeat the key that they refuse."""
    assert redact("Incorrect key: test-key-1.", secrets=["test-key-1"]) == "Incorrect key: [key]."


def test_s02_part_of_a_key_is_taken_out() -> None:
    """A message is cut at a length, perhaps in the middle of the key."""
    assert redact("you sent Bearer test-key-1", secrets=["test-key-1234567890"]) == "you sent Bearer [key]"


def test_s02_white_space_hides_nothing() -> None:
    """An error's line breaks are made spaces, so those of the text are too."""
    assert redact("bad: one two three four", texts=["one  two\n\tthree four"]) == "bad: [text]"


def test_the_rest_stays() -> None:
    """What is useful is left alone."""
    message = "maximum context length is 8192 tokens, requested 9000"
    assert redact(message, texts=["something else entirely", "x" * 100]) == message
