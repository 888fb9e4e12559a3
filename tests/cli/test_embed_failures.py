"""``llmopt embed`` when texts fail, or the run does: the finished rows are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.cli.run import found, invoke, llmopt, names
from tests.cli.server import EmbeddingServer, refused, vector

TEXTS = [f"text number {number}" for number in range(320)]


@pytest.fixture(autouse=True)
def texts() -> None:
    """An input of ten requests."""
    Path("in.txt").write_text("\n".join(TEXTS) + "\n")


def without_key_after(number: int, served: EmbeddingServer) -> None:
    served.refuse = lambda request, texts: refused(401, "the key was revoked") if request > number else None


def test_failure_keeps_what_was_finished(served: EmbeddingServer) -> None:
    """The file under its name is not touched; the finished rows are in FILE.partial, the others NaN."""
    without_key_after(2, served)
    Path("out.npy").write_bytes(b"old")
    done = llmopt("embed", "in.txt", "--model", "near/small", "--out", "out.npy")
    assert done.returncode == 1
    assert done.stdout == b""
    message = done.stderr.decode()
    assert "the key was revoked" in message
    assert "64 finished rows are kept in out.npy.partial" in message
    assert len(message.splitlines()) == 1
    assert Path("out.npy").read_bytes() == b"old"
    kept = np.load("out.npy.partial")
    good = ~np.isnan(kept).all(axis=1)
    assert good.sum() == 64
    rows = np.array([vector(text) for text in TEXTS[: len(kept)]], dtype=np.float32)
    np.testing.assert_array_equal(kept[good], rows[good])
    assert names() == ["in.txt", "llmopt.toml", "out.npy", "out.npy.partial"]


def test_failure_as_json(served: EmbeddingServer) -> None:
    """Machines are told as much, with the rows and lines of the texts that failed."""
    without_key_after(2, served)
    done = invoke("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--json")
    table = found(done)
    assert (table["complete"], table["file"]) == (False, "out.npy.partial")
    assert "the key was revoked" in table["error"]["message"]
    assert table["errors"][0]["type"] == "AuthError"
    assert table["errors"][0]["line"] == table["errors"][0]["index"] + 1
    assert table["texts"] - table["failed"] == 64


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl", "out.parquet"])
def test_nothing_succeeded_leaves_nothing(served: EmbeddingServer, name: str) -> None:
    """Not a single vector: no file, no partial file, no temporary one."""
    without_key_after(0, served)
    for errors in ("raise", "return"):
        done = invoke("embed", "in.txt", "--model", "near/small", "--out", name, "--errors", errors)
        assert done.exit_code == 1
        assert "No vectors were written." in done.stderr
        assert names() == ["in.txt", "llmopt.toml"]


def test_return_leaves_failed_rows_empty(served: EmbeddingServer) -> None:
    """--errors return: NaN rows, five of them told with their lines, exit code 1."""
    without_key_after(2, served)
    done = invoke("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--errors", "return")
    assert done.exit_code == 1
    vectors = np.load("out.npy")
    assert vectors.shape == (320, 4)
    assert np.isnan(vectors).all(axis=1).sum() == 256
    lines = done.stderr.splitlines()
    assert len(lines) == 7
    assert all(line.startswith("llmopt: line ") for line in lines[:5])
    assert lines[5] == "llmopt: and 251 more."
    assert "256 failed" in lines[6]


def test_return_in_jsonl_and_parquet(served: EmbeddingServer) -> None:
    """null for a vector, and the error beside it."""
    without_key_after(2, served)
    invoke("embed", "in.txt", "--model", "near/small", "--out", "out.jsonl", "--errors", "return")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(320))
    assert sum(row["embedding"] is None and "revoked" in row["error"] for row in rows) == 256
    served.requests = 0
    invoke(
        "embed",
        "in.txt",
        "--model",
        "near/small",
        "--out",
        "out.parquet",
        "--errors",
        "return",
        "--with-text",
    )
    table = pq.read_table("out.parquet")
    assert table.column_names == ["index", "line", "embedding", "error", "text"]
    assert table["embedding"].null_count == 256
    assert table["error"].null_count == 64
    for row in table.to_pylist():
        assert row["embedding"] in (None, vector(row["text"]))


def test_return_takes_texts_that_cannot_be_sent() -> None:
    """An empty text is a failed row then; else it is a bad input, told before anything is sent."""
    Path("in.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "three"}\n')
    done = invoke("embed", "in.jsonl", "--model", "local/default", "--out", "out.npy")
    assert done.exit_code == 2
    assert "in.jsonl, line 2: text 1 is empty" in done.stderr
    done = invoke("embed", "in.jsonl", "--model", "local/default", "--out", "out.npy", "--errors", "return")
    assert done.exit_code == 1
    assert np.isnan(np.load("out.npy")).all(axis=1).tolist() == [False, True, False]
    assert "llmopt: line 2: text 1 is empty" in done.stderr


def test_bad_line_of_a_pipe_keeps_the_rows_before_it() -> None:
    """What can be read only once is read as it comes: the rows before a bad line are kept."""
    content = b"good\n" * 3000 + b"bad \xff\n" + b"good\n"
    done = llmopt("embed", "-", "--model", "local/default", "--out", "out.npy", stdin=content)
    assert done.returncode == 2
    assert b"standard input, line 3001: byte 15005 of the input (0xFF) is not UTF-8" in done.stderr
    assert b"3,000 finished rows are kept in out.npy.partial" in done.stderr
    assert np.load("out.npy.partial").shape == (3000, 256)


def test_deadline_ends_the_run(served: EmbeddingServer) -> None:
    """A deadline that has passed is a failure like any other."""
    done = invoke("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--deadline", "0.000001")
    assert done.exit_code == 1
    assert "deadline" in done.stderr
