"""Readers: what was written comes back, whatever the texts and however the bytes arrive."""

from __future__ import annotations

import csv
import io
import json
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


class Chopped(Source):
    """A source whose bytes come in blocks of a given size."""

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
        found = Texts(str(path), form, name=options.get("name"), limit=None, check_texts=False)
        assert found.total() == len(list(found))
        return list(found)


@given(texts)
def test_text_a_line(texts: list[str]) -> None:
    """Every line that is not blank, with its number; only line feeds end a line."""
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
    """Any text, escaped or not, from any field."""
    for ascii_only in (True, False):
        content = "\n".join(json.dumps({"id": 1, field: text}, ensure_ascii=ascii_only) for text in texts)
        assert read(content.encode(), "jsonl", name=field) == list(enumerate(texts, 1))


@given(st.lists(plain.filter(lambda text: "\r" not in text), min_size=1, max_size=20))
def test_csv_round_trip(texts: list[str]) -> None:
    """Quotes, commas and line breaks inside of a text; each with the line its record begins in."""
    made = io.StringIO()
    writer = csv.writer(made, quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "text"])
    writer.writerows([str(row), text] for row, text in enumerate(texts))
    found = read(made.getvalue().encode(), "csv")
    assert [text for _, text in found] == texts
    lines = 2
    for number, text in found:
        assert number == lines
        lines += 1 + text.count("\n")


@given(plain, sizes)
def test_lines_however_the_bytes_arrive(content: str, size: int) -> None:
    """Blocks may end in the middle of a character, a mark or a line."""
    pieces = list(LineReader(Chopped(content.encode(), size)).chunks())
    assert "".join(pieces) == content.removeprefix("\ufeff")
    assert all(piece.endswith("\n") for piece in pieces[:-1])


@given(texts, sizes, st.binary(max_size=4))
def test_a_bad_byte_is_named_and_nothing_before_it_lost(texts: list[str], size: int, tail: bytes) -> None:
    """All whole lines before the bad byte come first; then its line and its position."""
    before = "".join(f"{text}\n" for text in texts).encode()
    found: list[str] = []
    # What came before the error stays in the list.
    with pytest.raises(InputError) as caught:
        found.extend(LineReader(Chopped(before + b"\xff" + tail, size)).chunks())
    assert "".join(found).encode() == before.removeprefix("\ufeff".encode())
    assert f"line {before.count(10) + 1}: byte {len(before) + 1} of the input (0xFF)" in str(caught.value)


def test_a_line_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded even where no line feed ever comes."""
    monkeypatch.setattr(readers, "_MAX_LINE_BYTES", 100)
    with pytest.raises(InputError, match="has a line of more than"):
        list(LineReader(Chopped(b"x" * 1000, 10)).chunks())


def test_what_comes_slowly_is_given_as_it_comes(here: Path) -> None:
    """A pipe is not read to the end of a block before the first text is there."""
    os.mkfifo("pipe")
    given = threading.Event()

    def write() -> None:
        with Path("pipe").open("wb", buffering=0) as pipe:
            pipe.write(b"first\n")
            given.wait(50)
            pipe.write(b"second\n")

    writer = threading.Thread(target=write)
    writer.start()
    found = iter(Texts("pipe", None, name=None, limit=None, check_texts=True))
    first = next(found)
    given.set()
    assert [first, *found] == [(1, "first"), (2, "second")]
    writer.join()


def test_a_pipe_is_never_read_twice(here: Path) -> None:
    """The number of its texts is not known before they were read."""
    os.mkfifo("pipe")
    found = Texts("pipe", None, name=None, limit=None, check_texts=True)
    assert found.total() is None


def test_a_very_large_file_is_not_checked_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length is not known then."""
    Path("in.txt").write_text("one\ntwo\n")
    monkeypatch.setattr(readers, "_MAX_CHECKED_BYTES", 3)
    assert Texts("in.txt", None, name=None, limit=None, check_texts=True).total() is None


def test_a_read_that_fails_is_a_bad_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives up in the middle is told like any other input that cannot be read."""

    def broken(file: object) -> bytes:
        raise OSError(5, "Input/output error")

    Path("in.txt").write_text("one\n")
    monkeypatch.setattr(readers, "_read_available", broken)
    with pytest.raises(InputError, match=r"in\.txt cannot be read: Input/output error\."):
        list(Texts("in.txt", None, name=None, limit=None, check_texts=True))
