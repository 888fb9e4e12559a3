"""Ctrl-C and other signals: the work stops, and finished rows are kept."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import IO

import numpy as np
import pyarrow.parquet as pq
import pytest

import llmopt
from llmopt.cli.progress import Interrupts
from tests.cli.run import LLMOPT, names
from tests.cli.server import EmbeddingServer
from tests.cli.waiting import until
from tests.support.scale import NIGHTLY

# A shell makes a test runner in the background ignore SIGINT; its child processes inherit that.
_PROGRAM = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from llmopt.cli.app import main; main()"


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def temporary_bytes() -> int:
    """Size of the temporary file."""
    return max((path.stat().st_size for path in Path().glob(".llmopt-*.tmp")), default=0)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# One handler serves all signals: test_a_signal_waits_for_the_end_of_a_deferred_block sends each in every run.
@pytest.mark.parametrize("number", SIGNALS if NIGHTLY else SIGNALS[:1], ids=lambda number: number.name)
def test_finished_rows_are_kept(number: signal.Signals) -> None:
    """A signal in the middle of a run: exit code 130, and the rows so far in FILE.partial."""
    texts = [f"text number {row} of very many texts" for row in range(200_000)]
    Path("in.txt").write_text("\n".join(texts))
    process = start("embed", "in.txt", "--model", "local/default", "--out", "out.npy")
    until(lambda: temporary_bytes() > 4096 * 1024, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, b"")
    kept = np.load("out.npy.partial", mmap_mode="r")
    assert err.decode() == f"llmopt: interrupted. {len(kept):,} finished rows are kept in out.npy.partial.\n"
    assert names() == ["in.txt", "out.npy.partial"]
    assert 4096 <= len(kept) < len(texts)
    with llmopt.Client({}) as client:
        np.testing.assert_array_equal(kept[:4096], client.embed("local/default", texts[:4096]).vectors)
        np.testing.assert_array_equal(
            kept[-10:], client.embed("local/default", texts[len(kept) - 10 : len(kept)]).vectors
        )


def test_finished_rows_are_kept_in_parquet_too() -> None:
    """The shorter file is a complete Parquet file."""
    Path("in.txt").write_text("".join(f"text number {row}\n" for row in range(200_000)))
    process = start("embed", "in.txt", "--model", "local/default", "--out", "out.parquet")
    until(lambda: temporary_bytes() > 8 << 20, process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    table = pq.read_table("out.parquet.partial")
    assert table["index"].to_pylist() == list(range(len(table)))


def test_an_interrupt_before_the_first_row_leaves_no_file(served: EmbeddingServer, here: Path) -> None:
    """While the command waits for the first response."""
    requested, released = Event(), Event()

    def hold(request: int, texts: list[str]) -> None:
        requested.set()
        released.wait(60)

    served.refuse = hold
    Path("in.txt").write_text("one\n")
    process = start("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--json")
    try:
        assert requested.wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    finally:
        released.set()
    assert (process.returncode, err) == (130, b"llmopt: interrupted. No vectors were written.\n")
    assert names() == ["in.txt", "llmopt.toml"]


def test_an_interrupt_while_the_command_waits_for_standard_input() -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            _PROGRAM,
            "embed",
            "-",
            "--model",
            "local/default",
            "--out",
            "out.npy",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"one text, and then nothing for a long time\n")
    process.stdin.flush()
    until(lambda: unread(process.stdin) == 0, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, names()) == (130, [])
    assert err.startswith(b"llmopt: interrupted.")


def unread(pipe: IO[bytes] | None) -> int:
    """Number of bytes in a pipe that its reader has not read."""
    assert pipe is not None
    count = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b"\0" * 4)
    return int.from_bytes(count, sys.byteorder)


def test_an_ignored_signal_stays_ignored() -> None:
    """Under ``nohup`` the run goes on to its end."""
    Path("in.txt").write_text("".join(f"text number {row}\n" for row in range(15_000)))
    process = subprocess.Popen(
        [
            "sh",
            "-c",
            "trap '' HUP; exec \"$@\"",
            "sh",
            *LLMOPT,
            "embed",
            "in.txt",
            "--model",
            "local/default",
            "--out",
            "out.npy",
            "--quiet",
        ]
    )
    until(lambda: temporary_bytes() > 128, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0
    assert len(np.load("out.npy", mmap_mode="r")) == 15_000


@pytest.fixture
def no_ignored_signals() -> Iterator[None]:
    """A test runner in the background ignores SIGINT, and an ignored signal would stay ignored."""
    former = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_waits_for_the_end_of_a_deferred_block(
    number: signal.Signals, no_ignored_signals: None
) -> None:
    """No write is cut in half."""
    steps = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        with interrupts.deferred():
            os.kill(os.getpid(), number)
            steps.append("block")
        steps.append("never")
    assert steps == ["block"]


def test_defer_all_holds_every_signal_back() -> None:
    """The command saves the finished rows undisturbed."""
    with Interrupts() as interrupts:
        interrupts.defer_all()
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_former_signal_handlers_are_restored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
