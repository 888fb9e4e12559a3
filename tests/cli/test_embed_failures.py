"""``llmopt embed`` keeps the finished rows when texts or the whole run fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.cli.run import invoke, json_of, llmopt, names
from tests.cli.server import EmbeddingServer, refused, vector

TEXTS = [f"text number {number}" for number in range(320)]


@pytest.fixture(autouse=True)
def texts() -> None:
    """An input of ten requests."""
    Path("in.txt").write_text("\n".join(TEXTS) + "\n")


def revoke_key_after(number: int, served: EmbeddingServer) -> None:
    served.refuse = lambda request, texts: refused(401, "the key was revoked") if request > number else None


def test_a_failed_run_keeps_the_finished_rows(served: EmbeddingServer) -> None:
    """They are in FILE.partial, with NaN for the others; FILE itself stays as it was."""
    revoke_key_after(2, served)
    Path("out.npy").write_bytes(b"old")
    done = invoke("embed", "in.txt", "--model", "near/small", "--out", "out.npy")
    assert done.exit_code == 1
    assert done.stdout == ""
    message = done.stderr
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


def test_json_output_of_a_failed_run(served: EmbeddingServer) -> None:
    """It has the rows and lines of the failed texts."""
    revoke_key_after(2, served)
    done = invoke("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--json")
    table = json_of(done)
    assert (table["complete"], table["file"]) == (False, "out.npy.partial")
    assert "the key was revoked" in table["error"]["message"]
    assert table["errors"][0]["type"] == "AuthError"
    assert table["errors"][0]["line"] == table["errors"][0]["index"] + 1
    assert table["texts"] - table["failed"] == 64


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl", "out.parquet"])
def test_a_run_without_any_vector_leaves_no_file(served: EmbeddingServer, name: str) -> None:
    """Neither the file, nor a partial or temporary one."""
    revoke_key_after(0, served)
    for errors in ("raise", "return"):
        done = invoke("embed", "in.txt", "--model", "near/small", "--out", name, "--errors", errors)
        assert done.exit_code == 1
        assert "No vectors were written." in done.stderr
        assert names() == ["in.txt", "llmopt.toml"]


def test_errors_return_writes_nan_for_failed_rows(served: EmbeddingServer) -> None:
    """Five of them are listed with their lines; the exit code is 1."""
    revoke_key_after(2, served)
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


def test_errors_return_in_jsonl_and_parquet(served: EmbeddingServer) -> None:
    """The vector is null, and the row has its error."""
    revoke_key_after(2, served)
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


def test_errors_return_accepts_an_empty_text() -> None:
    """It is a failed row; without the option it is an error before any request."""
    Path("in.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "three"}\n')
    done = invoke("embed", "in.jsonl", "--model", "local/default", "--out", "out.npy")
    assert done.exit_code == 2
    assert "in.jsonl, line 2: text 1 is empty" in done.stderr
    done = invoke("embed", "in.jsonl", "--model", "local/default", "--out", "out.npy", "--errors", "return")
    assert done.exit_code == 1
    assert np.isnan(np.load("out.npy")).all(axis=1).tolist() == [False, True, False]
    assert "llmopt: line 2: text 1 is empty" in done.stderr


def test_a_bad_line_of_a_pipe_keeps_the_rows_before_it() -> None:
    """A pipe can be read only once, so it is embedded while it is read."""
    content = b"good\n" * 3000 + b"bad \xff\n" + b"good\n"
    done = llmopt("embed", "-", "--model", "local/default", "--out", "out.npy", stdin=content)
    assert done.returncode == 2
    assert b"standard input, line 3001: byte 15005 of the input (0xFF) is not UTF-8" in done.stderr
    assert b"3,000 finished rows are kept in out.npy.partial" in done.stderr
    assert np.load("out.npy.partial").shape == (3000, 256)


def test_an_exceeded_deadline_fails_the_run(served: EmbeddingServer) -> None:
    done = invoke("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--deadline", "0.000001")
    assert done.exit_code == 1
    assert "deadline" in done.stderr
