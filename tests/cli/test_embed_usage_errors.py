"""Usage errors of ``llmopt embed``: each is one sentence, before any work begins."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.run import LLMOPT, invoke, names


def file(name: str, content: bytes) -> Callable[[], object]:
    return lambda: Path(name).write_bytes(content)


INPUTS = [
    ("missing.txt", lambda: None, (), "missing.txt cannot be read: No such file or directory."),
    ("folder", lambda: Path("folder").mkdir(), (), "folder is a directory; name a file in it."),
    ("a.txt", file("a.txt", b""), (), "a.txt is empty: there is no text to embed in it."),
    ("a.txt", file("a.txt", b"\n  \n\r\n"), (), "a.txt is empty: there is no text to embed in it."),
    ("a.csv", file("a.csv", b"text\n"), (), "a.csv is empty"),
    (
        "a.bin",
        file("a.bin", b"one\ntwo\0"),
        (),
        "a.bin is binary, not UTF-8 text: byte 8, in line 2, is a NUL.",
    ),
    ("a.txt", file("a.txt", "one".encode("utf-16")), (), "a.txt is UTF-16, not UTF-8; convert it first"),
    (
        "a.txt",
        file("a.txt", b"one\ntw\xe9\n"),
        (),
        "a.txt, line 2: byte 7 of the input (0xE9) is not UTF-8; convert it first",
    ),
    (
        "a.jsonl",
        file("a.jsonl", b'{"text": "\xff"}'),
        (),
        "a.jsonl, line 1: byte 11 of the input (0xFF) is not UTF-8",
    ),
    ("a.jsonl", file("a.jsonl", b'{"text": "a"}\n{"text"'), (), "a.jsonl, line 2: not valid JSON"),
    ("a.jsonl", file("a.jsonl", b'{"text": "a"}\n[1]'), (), "a.jsonl, line 2: this is a list, not an object"),
    ("a.jsonl", file("a.jsonl", b'"text"'), (), "a.jsonl, line 1: this is text, not an object"),
    (
        "a.jsonl",
        file("a.jsonl", b'{"id": 1, "body": "x"}'),
        (),
        "a.jsonl, line 1: there is no field \"text\"; the fields there are 'id', 'body' (choose one with --field).",
    ),
    (
        "a.jsonl",
        file("a.jsonl", b"{}"),
        (),
        'a.jsonl, line 1: there is no field "text"; the fields there are none',
    ),
    (
        "a.jsonl",
        file("a.jsonl", b'{"text": 5}'),
        (),
        'a.jsonl, line 1: the field "text" holds a number, not text.',
    ),
    (
        "a.jsonl",
        file("a.jsonl", b'{"text": null}'),
        (),
        'a.jsonl, line 1: the field "text" holds null, not text.',
    ),
    ("a.jsonl", file("a.jsonl", b"[" * 100_000), (), "a.jsonl, line 1: not valid JSON"),
    (
        "a.csv",
        file("a.csv", b"id,body\n1,x\n"),
        (),
        "a.csv, line 1: there is no column 'text'; the columns there are 'id', 'body' (choose one with --column).",
    ),
    ("a.csv", file("a.csv", b"text,text\n1,x\n"), (), "a.csv, line 1: the column 'text' is there 2 times."),
    (
        "a.csv",
        file("a.csv", b'id,text\n1,"a\nb"\n2\n'),
        (),
        "a.csv, line 4: 1 columns, 'text' is column 2 of the header.",
    ),
    ("a.csv", file("a.csv", b'text\n"never closed\nmore\n'), (), "a.csv, line 2: not valid CSV"),
    ("a.txt", file("a.txt", b"x"), ("--field", "f"), "--field is for .jsonl, and this is txt"),
    ("a.jsonl", file("a.jsonl", b"x"), ("--column", "f"), "--column is for .csv, and this is jsonl"),
    ("a.txt", file("a.txt", b"x"), ("--with-text",), "--with-text needs .jsonl or .parquet"),
]


@pytest.mark.parametrize(("name", "make", "options", "message"), INPUTS)
def test_bad_input(name: str, make: Callable[[], object], options: tuple[str, ...], message: str) -> None:
    """One sentence with the line, exit code 2, and no file."""
    make()
    before = names()
    done = invoke("embed", name, "--model", "local/default", "--out", "out.npy", *options)
    assert done.stderr.startswith(f"llmopt: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert (done.exit_code, done.stdout) == (2, "")
    assert names() == before


def test_unreadable_input(monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may read everything, so the permission is simulated.
    Path("a.txt").write_text("x")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    done = invoke("embed", "a.txt", "--model", "local/default", "--out", "out.npy")
    assert done.stderr == "llmopt: a.txt cannot be read: Permission denied.\n"
    assert done.exit_code == 2


def test_empty_and_closed_standard_input() -> None:
    result = invoke("embed", "-", "--model", "local/default", "--out", "out.npy", stdin=b"")
    assert (result.exit_code, result.stderr) == (
        2,
        "llmopt: standard input is empty: there is no text to embed in it. No vectors were written.\n",
    )
    assert names() == []
    done = subprocess.run(
        [
            "sh",
            "-c",
            'exec "$@" <&-',
            "sh",
            *LLMOPT,
            "embed",
            "-",
            "--model",
            "local/default",
            "--out",
            "out.npy",
        ],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        b"llmopt: standard input is closed; give a file, or pipe the texts in.\n",
    )
    assert names() == []


def listening(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(name)


OUTPUTS = [
    ("out.txt", lambda: None, "--out out.txt: the extension must be .npy, .jsonl or .parquet"),
    ("out", lambda: None, "--out out: the extension must be"),
    ("-", lambda: None, "--out must name a file"),
    ("no/out.npy", lambda: None, "--out no/out.npy: the directory "),
    ("d.npy", lambda: Path("d.npy").mkdir(), "--out d.npy is a directory; name a file in it."),
    ("p.npy", lambda: os.mkfifo("p.npy"), "--out p.npy is not a regular file"),
    ("s.npy", lambda: listening("s.npy"), "--out s.npy is not a regular file"),
    ("/dev/null", lambda: None, "--out /dev/null is not a regular file"),
    ("in.txt", lambda: None, "--out in.txt is the input itself; name another file."),
    (
        "./l.npy",
        lambda: Path("l.npy").hardlink_to("in.txt"),
        "--out ./l.npy is the input itself; name another file.",
    ),
    (
        "l.npy",
        lambda: Path("l.npy").symlink_to("in.txt"),
        "--out l.npy is the input itself; name another file.",
    ),
    ("x" * 300 + ".npy", lambda: None, f"--out {'x' * 300}.npy cannot be written: File name too long."),
]


@pytest.mark.parametrize(("out", "make", "message"), OUTPUTS, ids=[each[0][:20] for each in OUTPUTS])
def test_bad_output(out: str, make: Callable[[], object], message: str) -> None:
    """The error comes before any work, and no file changes."""
    Path("in.txt").write_text("one\n")
    make()
    before = {name: stat.S_IFMT(os.lstat(name).st_mode) for name in names()}
    form = ("--format", "npy") if out in ("-", "/dev/null", "in.txt") else ()
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", out, *form)
    assert done.stderr.startswith(f"llmopt: {message}")
    assert (done.exit_code, done.stdout) == (2, "")
    assert {name: stat.S_IFMT(os.lstat(name).st_mode) for name in names()} == before
    assert Path("in.txt").read_text() == "one\n"


@pytest.mark.parametrize("denied", ["out.npy", "."])
def test_output_that_may_not_be_written(denied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in.txt").write_text("one\n")
    Path("out.npy").write_bytes(b"old")
    target = Path(denied).resolve()
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == target and mode & os.W_OK))
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.npy")
    assert done.exit_code == 2
    assert "Permission denied" in done.stderr
    assert Path("out.npy").read_bytes() == b"old"


def test_output_onto_the_redirected_input_is_refused() -> None:
    Path("both.npy").write_text("one\n")
    with Path("both.npy").open("rb") as source:
        done = subprocess.run(
            [*LLMOPT, "embed", "-", "--model", "local/default", "--out", "both.npy"],
            stdin=source,
            capture_output=True,
            check=False,
        )
    assert (done.returncode, Path("both.npy").read_text()) == (2, "one\n")
    assert b"--out both.npy is the input itself" in done.stderr


MODELS = [
    ("default", 2, "the model 'default' must have the form 'provider/model', such as 'local/default'."),
    ("nobody/x", 3, "no plugin 'nobody' for provider 'nobody' is installed"),
    (
        "mistral/mistral-embed",
        3,
        "providers.mistral: there is no key; set the environment variable MISTRAL_API_KEY",
    ),
    ("local/unknown", 1, "all texts failed; the first, in line 1: "),
]


@pytest.mark.parametrize(("model", "code", "message"), MODELS)
def test_bad_model(model: str, code: int, message: str) -> None:
    """A model without a provider, or without a key."""
    Path("in.txt").write_text("one\n")
    done = invoke("embed", "in.txt", "--model", model, "--out", "out.npy")
    assert done.stderr.startswith(f"llmopt: {message}")
    assert done.exit_code == code
    assert names() == ["in.txt"]


def test_bad_configuration() -> None:
    """Exit code 3."""
    Path("in.txt").write_text("one\n")
    Path("llmopt.toml").write_text("[providers.local]\nbatch = 3\n")
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.npy")
    assert done.exit_code == 3
    assert "providers.local.batch" in done.stderr
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.npy", "--config", "no.toml")
    assert done.exit_code == 3
    assert "no.toml cannot be read" in done.stderr


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install."""
    Path("in.txt").write_text("one\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.parquet")
    assert 'pip install "llmopt[parquet]"' in done.stderr
    assert done.exit_code == 3
    assert names() == ["in.txt"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("in.txt",),
        ("in.txt", "--model", "local/default"),
        ("in.txt", "--model", "m/x", "--out", "o.npy", "--limit", "0"),
        ("in.txt", "--model", "m/x", "--out", "o.npy", "--deadline", "0"),
        ("in.txt", "--model", "m/x", "--out", "o.npy", "--errors", "ignore"),
        ("in.txt", "--model", "m/x", "--out", "o.npy", "--format", "csv"),
        ("in.txt", "--model", "m/x", "--out", "o.npy", "--nonsense"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Exit code 2, with a hint at --help."""
    done = invoke("embed", *arguments)
    assert done.exit_code == 2
    assert "llmopt embed --help" in done.stderr
