"""Ctrl-C and other signals: the work stops, and finished rows are kept."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
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

# A test runner in the background of a shell was told to ignore SIGINT, and its children with it.
_HEEDING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from llmopt.cli.app import main; main()"


def started(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _HEEDING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def written() -> int:
    """Bytes in the temporary file."""
    return max((path.stat().st_size for path in Path().glob(".llmopt-*.tmp")), default=0)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_finished_rows_are_kept(number: signal.Signals) -> None:
    """In the middle of a run: exit code 130, and the rows so far in FILE.partial."""
    texts = [f"text number {row} of very many texts" for row in range(400_000)]
    Path("in.txt").write_text("\n".join(texts))
    process = started("embed", "in.txt", "--model", "local/default", "--out", "out.npy")
    until(lambda: written() > 4096 * 1024, process)
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
    """The file is whole, as far as it goes."""
    Path("in.txt").write_text("".join(f"text number {row}\n" for row in range(400_000)))
    process = started("embed", "in.txt", "--model", "local/default", "--out", "out.parquet")
    until(lambda: written() > 8 << 20, process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    table = pq.read_table("out.parquet.partial")
    assert table["index"].to_pylist() == list(range(len(table)))


def test_nothing_finished_leaves_nothing(served: EmbeddingServer, here: Path) -> None:
    """An interrupt while the first answer is awaited."""
    reached, over = Event(), Event()

    def hold(request: int, texts: list[str]) -> None:
        reached.set()
        over.wait(60)

    served.refuse = hold
    Path("in.txt").write_text("one\n")
    process = started("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--json")
    try:
        assert reached.wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    finally:
        over.set()
    assert (process.returncode, err) == (130, b"llmopt: interrupted. No vectors were written.\n")
    assert names() == ["in.txt", "llmopt.toml"]


def test_interrupt_while_waiting_for_standard_input() -> None:
    """Somebody who pipes in nothing can still leave."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            _HEEDING,
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
    """Bytes in a pipe that its reader has not taken."""
    assert pipe is not None
    found = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b"\0" * 4)
    return int.from_bytes(found, sys.byteorder)


def test_an_ignored_signal_stays_ignored() -> None:
    """As under ``nohup``: the run goes on to its end."""
    Path("in.txt").write_text("".join(f"text number {row}\n" for row in range(60_000)))
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
    until(lambda: written() > 128, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0
    assert len(np.load("out.npy", mmap_mode="r")) == 60_000


def test_a_signal_waits_for_the_end_of_a_held_block() -> None:
    """Nothing is cut in half."""
    done = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("block")
        done.append("never")
    assert done == ["block"]


def test_after_hold_no_signal_comes_through() -> None:
    """What was earned is saved in peace."""
    with Interrupts() as interrupts:
        interrupts.defer_all()
        os.kill(os.getpid(), signal.SIGTERM)


def test_handlers_are_given_back() -> None:
    """The process is as it was before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before
