"""Readers return the texts of a file, whatever the texts are and however the bytes arrive."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.cli import readers
from llmopt.cli.console import InputError
from llmopt.cli.readers import InputFormat, LineReader, Source, Texts

plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
texts = st.lists(plain, min_size=1, max_size=20)
sizes = st.integers(1, 40)


class BlockSource(Source):
    """A source whose bytes come in blocks of one size."""

    def __init__(self, content: bytes, size: int) -> None:
        self.name = "chopped"  # type: ignore[misc] # instead of the real one's
        self._content, self._size = content, size

    def blocks(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), self._size):
            yield self._content[start : start + self._size]


def read(content: bytes, form: InputFormat, **options: str) -> list[tuple[int, str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in"
        path.write_bytes(content)
        result = Texts(str(path), form, name=options.get("name"), limit=None, check_texts=False)
        assert result.total() == len(list(result))
        return list(result)


@given(texts)
def test_lines_of_text(texts: list[str]) -> None:
    """Every line that is not blank, with its number; only a line feed ends a line."""
    content = "\n".join(texts)
    expected = [
        (number, line.removesuffix("\r"))
        for number, line in enumerate(content.removeprefix("\ufeff").split("\n"), 1)
        if line.strip() and not line.isspace()
    ]
    if expected:
        assert read(content.encode(), "txt") == expected


@given(texts, st.sampled_from(["text", "body", "ä b", '"']))
def test_jsonl_round_trip(texts: list[str], field: str) -> None:
    """Any text, escaped or not, in any field."""
    for ascii_only in (True, False):
        content = "\n".join(json.dumps({"id": 1, field: text}, ensure_ascii=ascii_only) for text in texts)
        assert read(content.encode(), "jsonl", name=field) == list(enumerate(texts, 1))


halves = st.text(
    st.sampled_from(["a", "é", "\ud83d", "\ude00", "\U0001f600", '"', "\\", "\ufffd"]), min_size=1
)


def whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_counted(content: bytes, form: InputFormat) -> tuple[list[str], int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in"
        path.write_bytes(content)
        result = Texts(str(path), form, name=None, limit=None, check_texts=True)
        assert result.total() is not None
        return [text for _, text in result], result.replaced


@given(st.lists(halves, min_size=1), st.sampled_from([None, 1.0, math.nan, -math.inf]))
def test_halves_of_surrogate_pairs_are_joined_or_replaced(texts: list[str], other: float | None) -> None:
    """Escaped in JSON, or encoded one by one; the replaced ones are counted, and the texts can be sent."""
    expected = list(map(whole, texts))
    replaced = sum(
        new.count("\ufffd") - old.count("\ufffd") for new, old in zip(expected, texts, strict=True)
    )
    lines = [json.dumps({"other": other, "text": text, "more": text}) for text in texts]
    assert read_counted("\n".join(lines).encode(), "jsonl") == (expected, replaced)
    assert read_counted("\n".join(texts).encode("utf-8", "surrogatepass"), "txt") == (expected, replaced)


@pytest.mark.parametrize(
    "line", ['{"text": "a\\ud83', '{"text": NaN}', '{"text": "a", "n": nan}', '{"text": "a",}']
)
def test_lines_that_no_writer_means_are_named(line: str) -> None:
    content = '{"text": "one"}\n' + line
    with pytest.raises(InputError, match=r"line 2"):
        read_counted(content.encode(), "jsonl")


@given(st.lists(plain.filter(lambda text: "\r" not in text), min_size=1, max_size=20))
def test_csv_round_trip(texts: list[str]) -> None:
    """Texts with quotes, commas and line breaks; each with the first line of its record."""
    made = io.StringIO()
    writer = csv.writer(made, quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "text"])
    writer.writerows([str(row), text] for row, text in enumerate(texts))
    result = read(made.getvalue().encode(), "csv")
    assert [text for _, text in result] == texts
    lines = 2
    for number, text in result:
        assert number == lines
        lines += 1 + text.count("\n")


@given(plain, sizes)
def test_lines_do_not_depend_on_the_blocks(content: str, size: int) -> None:
    """A block may end inside a character, a byte order mark or a line."""
    pieces = list(LineReader(BlockSource(content.encode(), size)).chunks())
    assert "".join(pieces) == content.removeprefix("\ufeff")
    assert all(piece.endswith("\n") for piece in pieces[:-1])


@given(texts, sizes, st.binary(max_size=4))
def test_an_invalid_byte_is_an_error_after_the_lines_before_it(
    texts: list[str], size: int, tail: bytes
) -> None:
    """The error has its line and position."""
    before = "".join(f"{text}\n" for text in texts).encode()
    result: list[str] = []
    # The lines before the error stay in the list.
    with pytest.raises(InputError) as caught:
        result.extend(LineReader(BlockSource(before + b"\xff" + tail, size)).chunks())
    assert "".join(result).encode() == before.removeprefix("\ufeff".encode())
    assert f"line {before.count(10) + 1}: byte {len(before) + 1} of the input (0xFF)" in str(caught.value)


def test_a_line_above_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's memory is bounded."""
    monkeypatch.setattr(readers, "_MAX_LINE_BYTES", 100)
    with pytest.raises(InputError, match="has a line of more than"):
        list(LineReader(BlockSource(b"x" * 1000, 10)).chunks())


def test_a_slow_pipe_yields_each_text_as_it_arrives(here: Path) -> None:
    """The reader does not wait for a full block."""
    os.mkfifo("pipe")
    first_was_read = threading.Event()

    def write() -> None:
        with Path("pipe").open("wb", buffering=0) as pipe:
            pipe.write(b"first\n")
            first_was_read.wait(50)
            pipe.write(b"second\n")

    writer = threading.Thread(target=write)
    writer.start()
    result = iter(Texts("pipe", None, name=None, limit=None, check_texts=True))
    first = next(result)
    first_was_read.set()
    assert [first, *result] == [(1, "first"), (2, "second")]
    writer.join()


def test_the_number_of_texts_in_a_pipe_is_unknown(here: Path) -> None:
    """A pipe can be read only once."""
    os.mkfifo("pipe")
    result = Texts("pipe", None, name=None, limit=None, check_texts=True)
    assert result.total() is None


def test_a_very_large_file_is_not_checked_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the number of its texts is unknown."""
    Path("in.txt").write_text("one\ntwo\n")
    monkeypatch.setattr(readers, "_MAX_CHECKED_BYTES", 3)
    assert Texts("in.txt", None, name=None, limit=None, check_texts=True).total() is None


def test_a_failed_read_is_an_input_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def broken(file: object) -> bytes:
        raise OSError(5, "Input/output error")

    Path("in.txt").write_text("one\n")
    monkeypatch.setattr(readers, "_read_available", broken)
    with pytest.raises(InputError, match=r"in\.txt cannot be read: Input/output error\."):
        list(Texts("in.txt", None, name=None, limit=None, check_texts=True))
