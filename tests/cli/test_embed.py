"""``llmopt embed`` from end to end, in processes of its own."""

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
from tests.cli.run import found, invoke, llmopt, names
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


def test_text_a_line_into_npy(expected: NDArray[np.float32]) -> None:
    """A row a line, in order; the closing line has the numbers; standard output stays empty."""
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


def test_console_script() -> None:
    """The installed program is the same one."""
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
def test_every_input_gives_the_same(
    name: str, content: str, options: tuple[str, ...], expected: NDArray[np.float32]
) -> None:
    """Byte order marks, Windows line ends, blank lines and quotes make no difference."""
    write(name, content)
    done = invoke("embed", name, "--model", "local/default", "--out", "out.npy", *options)
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_standard_input(expected: NDArray[np.float32]) -> None:
    """``-`` reads a text a line, or what --input-format says."""
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    done = llmopt("embed", "-", "--model", "local/default", "--out", "out.npy", stdin=content)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load("out.npy"), expected)
    lines = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()
    done = llmopt(
        "embed", "-", "--model", "local/default", "--out", "out.npy", "--input-format", "jsonl", stdin=lines
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_jsonl_output(expected: NDArray[np.float32]) -> None:
    """An object a line, with the line of the input it belongs to; the text only when asked for."""
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


def test_parquet_output(expected: NDArray[np.float32]) -> None:
    """The columns index, line and embedding, a list of fixed size."""
    write("in.txt", "".join(f"{text}\n" for text in TEXTS))
    done = llmopt("embed", "in.txt", "--model", "local/default", "--out", "out.parquet")
    assert done.returncode == 0, done.stderr
    table = pq.read_table("out.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("index", "int64"),
        ("line", "int64"),
        ("embedding", "fixed_size_list<element: float>[256]"),
    ]
    assert table["line"].to_pylist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), dtype=np.float32), expected)


def test_json_is_all_of_standard_output() -> None:
    """One object for machines, and nothing else."""
    write("in.txt", "one\n\ntwo\n")
    done = llmopt("embed", "in.txt", "--model", "local/default", "--out", "out.npy", "--json")
    assert done.stderr == b""
    table = found(done)
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
        "error": None,
    }


def test_quiet_says_nothing() -> None:
    """--quiet leaves errors alone."""
    write("in.txt", "one\n")
    done = llmopt("embed", "in.txt", "--model", "local/default", "--out", "out.npy", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_limit_dimensions_and_format() -> None:
    """The first texts only, shorter vectors, and a format that the extension does not name."""
    write("in.txt", "one\ntwo\nthree\n")
    options = ("--limit", "2", "--dimensions", "64", "--format", "npy")
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "vectors.bin", *options)
    assert done.exit_code == 0, done.stderr
    assert np.load("vectors.bin").shape == (2, 64)


def test_output_replaces_what_was_there() -> None:
    """A link is followed, and stays one."""
    write("in.txt", "one\n")
    Path("real.npy").write_bytes(b"old")
    Path("link.npy").symlink_to("real.npy")
    assert invoke("embed", "in.txt", "--model", "local/default", "--out", "link.npy").exit_code == 0
    assert Path("link.npy").is_symlink()
    assert np.load("real.npy").shape == (1, 256)


def test_many_batches_through_a_server(served: EmbeddingServer) -> None:
    """A configured server gives rows in order as well, many requests at once."""
    texts = [f"text number {number} {'x' * (number % 50)}" for number in range(500)]
    write("in.txt", "\n".join(texts))
    done = invoke("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--json")
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(
        np.load("out.npy"), np.array([vector(text) for text in texts], dtype=np.float32)
    )
    table = found(done)
    assert (table["requests"], table["tokens"]) == (served.requests, 500)
