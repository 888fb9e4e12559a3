"""``llmopt embed`` from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import llmopt as library
from tests.cli.run import invoke, json_of, llmopt, names
from tests.cli.server import EmbeddingServer, vector

TEXTS = [
    "The cat sat on the mat.",
    "Stocks fell on Monday.",
    "Ein Zug fährt ab.",
    "猫が座った",
    "The cat sat on the mat.",
]


@pytest.fixture(scope="module")
def expected() -> NDArray[np.float32]:
    """The vectors as the library gives them."""
    with library.Client({}) as client:
        return client.embed("local/default", TEXTS).vectors


def write(name: str, content: str) -> str:
    Path(name).write_bytes(content.encode())
    return name


def test_lines_of_text_become_rows_of_npy(expected: NDArray[np.float32]) -> None:
    """In order; the summary is on standard error, and standard output stays empty."""
    write("in.txt", "".join(f"{text}\n" for text in TEXTS))
    done = llmopt("embed", "in.txt", "--model", "local/default", "--out", "out.npy")
    assert (done.returncode, done.stdout) == (0, b"")
    line = done.stderr.decode()
    assert line.startswith("5 texts -> float32 5 x 256 in out.npy, 1 request, ")
    assert "texts/s" in line
    assert "tokens" in line
    vectors = np.load("out.npy", mmap_mode="r")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected)
    assert names() == ["in.txt", "out.npy"]


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("llmopt")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"llmopt {library.__version__}\n"


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("in.md", "\ufeff" + "\r\n".join(TEXTS), ()),
        ("in.JSONL", "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS), ()),
        ("in.ndjson", "\n\n".join(json.dumps({"body": text}) for text in TEXTS), ("--field", "body")),
        ("in.csv", "text\n" + "\n".join(f'"{text}"' for text in TEXTS), ()),
        ("in.csv", "id,body\n" + "\n".join(f"1,{text}" for text in TEXTS), ("--column", "body")),
        ("in.log", "id,text\r\n" + "\r\n".join(f"1,{text}" for text in TEXTS), ("--input-format", "csv")),
    ],
    ids=["other extension", "jsonl", "jsonl field", "csv", "csv column", "input format"],
)
def test_every_input_format_gives_the_same_vectors(
    name: str, content: str, options: tuple[str, ...], expected: NDArray[np.float32]
) -> None:
    """Byte order marks, Windows line ends, blank lines and quotes make no difference."""
    write(name, content)
    done = invoke("embed", name, "--model", "local/default", "--out", "out.npy", *options)
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_standard_input(expected: NDArray[np.float32]) -> None:
    """``-`` reads one text per line, or the format of --input-format."""
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    done = llmopt("embed", "-", "--model", "local/default", "--out", "out.npy", stdin=content)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load("out.npy"), expected)
    lines = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    options = ("--model", "local/default", "--out", "out.npy", "--input-format", "jsonl")
    result = invoke("embed", "-", *options, stdin=lines)
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_jsonl_output(expected: NDArray[np.float32]) -> None:
    """One object per line, with its line of the input; the text only with --with-text."""
    write("in.txt", f"\n{TEXTS[0]}\n  \n{TEXTS[1]}\n")
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.jsonl")
    assert "2 blank lines skipped" in done.stderr
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(row["index"], row["line"], set(row)) for row in rows] == [
        (0, 2, {"index", "line", "embedding"}),
        (1, 4, {"index", "line", "embedding"}),
    ]
    np.testing.assert_array_equal(
        np.array([row["embedding"] for row in rows], dtype=np.float32), expected[:2]
    )
    invoke("embed", "in.txt", "--model", "local/default", "--out", "out.jsonl", "--with-text")
    assert [json.loads(line)["text"] for line in Path("out.jsonl").read_text().splitlines()] == TEXTS[:2]


def test_halves_of_surrogate_pairs_are_told() -> None:
    """A text that was cut inside of an emoji is embedded with U+FFFD in the place of the half."""
    write("in.jsonl", '{"text": "one"}\n{"text": "a \\ud83d b", "score": NaN}\n')
    done = invoke("embed", "in.jsonl", "--model", "local/default", "--out", "out.jsonl", "--with-text")
    assert "1 half surrogate pair replaced with U+FFFD" in done.stderr
    texts = [json.loads(line)["text"] for line in Path("out.jsonl").read_text().splitlines()]
    assert texts == ["one", "a \N{REPLACEMENT CHARACTER} b"]


def test_parquet_output(expected: NDArray[np.float32]) -> None:
    """The columns are index, line and embedding, a list of fixed size."""
    write("in.txt", "".join(f"{text}\n" for text in TEXTS))
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.parquet")
    assert done.exit_code == 0, done.stderr
    table = pq.read_table("out.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("index", "int64"),
        ("line", "int64"),
        ("embedding", "fixed_size_list<element: float>[256]"),
    ]
    assert table["line"].to_pylist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), expected)


def test_json_output_is_one_object_and_nothing_else() -> None:
    write("in.txt", "one\n\ntwo\n")
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.npy", "--json")
    assert done.stderr == ""
    table = json_of(done)
    assert table.pop("seconds") >= 0
    assert table.pop("texts_per_second") >= 0
    assert table.pop("tokens") > 0
    assert table == {
        "complete": True,
        "file": "out.npy",
        "model": "default",
        "texts": 2,
        "shape": [2, 256],
        "failed": 0,
        "requests": 1,
        "errors": [],
        "skipped": 1,
        "replaced": 0,
        "error": None,
    }


def test_quiet_prints_nothing() -> None:
    write("in.txt", "one\n")
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.npy", "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_limit_dimensions_and_format() -> None:
    write("in.txt", "one\ntwo\nthree\n")
    options = ("--limit", "2", "--dimensions", "64", "--format", "npy")
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "vectors.bin", *options)
    assert done.exit_code == 0, done.stderr
    assert np.load("vectors.bin").shape == (2, 64)


def test_output_replaces_the_file_behind_a_link() -> None:
    write("in.txt", "one\n")
    Path("real.npy").write_bytes(b"old")
    Path("link.npy").symlink_to("real.npy")
    assert invoke("embed", "in.txt", "--model", "local/default", "--out", "link.npy").exit_code == 0
    assert Path("link.npy").is_symlink()
    assert np.load("real.npy").shape == (1, 256)


def test_many_batches_through_a_server(served: EmbeddingServer) -> None:
    """Rows are in order although many requests run at once."""
    texts = [f"text number {number} {'x' * (number % 50)}" for number in range(500)]
    write("in.txt", "\n".join(texts))
    done = invoke("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--json")
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(
        np.load("out.npy"), np.array([vector(text) for text in texts], dtype=np.float32)
    )
    table = json_of(done)
    assert (table["requests"], table["tokens"]) == (served.requests, 500)
