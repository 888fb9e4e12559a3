"""A client under faults for a long time: two event loops and eight threads, and a server that fails a quarter of its requests.

    python -m tests.client.chaos --minutes 35

It prints the calls by outcome and the memory over time. The exit code is 1 if one vector was wrong, an exception was
none of llmopt's, memory or open descriptors grew, or fewer calls than `ANSWERED` were answered. ``--every-fault`` draws from all faults of
the matrix, also from those that no retry can mend, and asks for no share of answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

import llmopt
from tests.client.scale import Resources
from tests.support.faults.fault import Fault
from tests.support.faults.openai import answer_openai, vector_for
from tests.support.faults.request import Request
from tests.support.faults.rows import ROWS
from tests.support.faults.script import Reply, reply_of
from tests.support.faults.server import FaultServer

FAULTY = 0.25  # the share of requests that meet a fault
ANSWERED = 0.95  # the least share of calls with a whole answer
THREADS, LOOPS, TASKS = 8, 2, 8  # TASKS calls at a time in each loop
SAMPLE_S = 10.0
More = Callable[[], bool]
MODEL = "server/m"
MESSAGES = [{"role": "user", "content": "Hello?"}]
REPLY = "Hello world"
TIMEOUTS = {
    "connect": 1.0,
    "read": 1.0,
    "read_large": 1.0,
    "chat": 1.0,
    "first_event": 1.0,
    "idle": 2.0,
    "idle_content": 2.0,
}

UNDETECTABLE = (
    "P11",
    "big-endian",
    "vectors shorter",
    "vector shorter",
    "vector longer",
    "2 GiB",
    "bomb",
    "10,000 headers",
    "P13",
    "N19",
    "N14",
)
"""Faults whose numbers look right, and faults that cost the server more than the client."""
LASTING = ("H03", "H04", "H07", "H11: 401", "H11: 403", "H11: 404", "H16: limit suddenly 1")
"""Statements about the account and waits of minutes: llmopt believes them, and all calls behind them wait or fail."""
TRANSIENT_STATUS = (
    "H08: 500",
    "H08: 502",
    "H08: 503",
    "H08: 504",
    "H08: 52",
    "H12: 408",
    "H01",
    "H06",
    "H02: Retry-After '0'",
)
TRANSIENT_WIRE = ("N05", "N08", "N12", "N15", "N18: half", "N18: empty", "N10: one", "N10: 103 then")
TRANSIENT_BODY = ("H14", "H18: gzip cut", "P07: cut", "P01")


def faults(prefixes: Sequence[str] | None) -> list[Fault]:
    """The faults of the matrix whose names begin with one of these; all that can be detected for None."""

    def wanted(fault: Fault) -> bool:
        name = str(fault)
        if any(part in name for part in UNDETECTABLE):
            return False
        if prefixes is None:
            return not name.startswith(LASTING)
        return name.startswith(tuple(prefixes))

    return [fault for fault in ROWS if fault.reply is not None and wanted(fault)]


def serve(seed: int, *, every_fault: bool) -> None:
    """Serve on a port of the loopback until standard input ends; prints the URL first."""
    chance = random.Random(seed)
    prefixes = None if every_fault else (*TRANSIENT_STATUS, *TRANSIENT_WIRE, *TRANSIENT_BODY)
    drawn = faults(prefixes)
    # The faults of these rows are wrong embeddings: no answer to a chat.
    for_chats = [fault for fault in drawn if not fault.row.startswith(("P", "N06"))]

    def answer(request: Request) -> Reply:
        if chance.random() >= FAULTY:
            return answer_openai(request)
        fault = chance.choice(drawn if request.path.endswith("/embeddings") else for_chats)
        assert fault.reply is not None
        return reply_of(fault.reply, request)

    async def run() -> None:
        async with FaultServer() as server:
            server.default(answer)
            print(server.base_url, flush=True)
            end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
            while not (await asyncio.wait([end], timeout=1))[0]:
                server.requests.clear()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(run())


@define
class Tally:
    """What the calls gave. Threads add to it, so that every change is one operation of a `Counter` under a lock."""

    outcomes: Counter[str] = field(factory=Counter)
    wrong: list[str] = field(factory=list)
    foreign: list[str] = field(factory=list)
    resources: Resources = field(factory=Resources)
    _lock: threading.Lock = field(factory=threading.Lock)

    def add(self, outcome: str) -> None:
        """Count one call."""
        with self._lock:
            self.outcomes[outcome] += 1

    def check(self, texts: Sequence[str], vectors: NDArray[np.float32], failed: Container[int]) -> None:
        """Compare every vector that came with the one that belongs to its text."""
        for index, text in enumerate(texts):
            if index not in failed and not np.array_equal(vectors[index], vector_for(text)):
                self.wrong.append(f"{text}: {vectors[index]}")

    def check_reply(self, text: str) -> None:
        """Compare the text of a chat with the server's only reply."""
        if text != REPLY:
            self.wrong.append(f"a chat: {text!r}")

    @property
    def answered(self) -> float:
        """The share of calls with a whole answer."""
        return self.outcomes["answered"] / max(1, self.outcomes.total())

    @contextlib.contextmanager
    def counting(self, texts: Sequence[str]) -> Iterator[None]:
        """Count the call that the block makes; the rows that a `PartialFailure` brings are compared too."""
        try:
            yield
        except Exception as error:
            if isinstance(error, llmopt.PartialFailure):
                self.check(texts, error.result.vectors, error.result.errors)
            elif not isinstance(error, llmopt.LLMOptError):
                self.foreign.append("".join(traceback.format_exception(error)))
            self.add(type(error).__name__)
        else:
            self.add("answered")


@frozen
class Texts:
    """Texts that no call had before, so that each has a vector of its own."""

    chance: random.Random

    def __call__(self) -> list[str]:
        number = self.chance.getrandbits(64)
        return [f"text {number}.{index}" for index in range(self.chance.choice((1, 1, 3, 40)))]


async def calls(client: llmopt.AsyncClient, texts: Texts, tally: Tally, more: More) -> None:
    """Make one call after another on an event loop: embeddings, chats and streamed chats."""
    while more():
        batch = texts()
        with tally.counting(batch):
            match texts.chance.randrange(10):
                case 0:
                    tally.check_reply((await client.chat(MODEL, MESSAGES, when_open="wait")).text)
                case 1:
                    async with client.stream(MODEL, MESSAGES, when_open="wait") as stream:
                        tally.check_reply("".join([event.text async for event in stream]))
                case _:
                    tally.check(batch, (await client.embed(MODEL, batch, when_open="wait")).vectors, ())


def run_loop(config: dict[str, Any], texts: Texts, tally: Tally, more: More) -> None:
    """One event loop with a client of its own and `TASKS` calls at a time."""

    async def run() -> None:
        async with llmopt.AsyncClient(config) as client:
            await asyncio.gather(*(calls(client, texts, tally, more) for _ in range(TASKS)))

    asyncio.run(run())


def run_thread(client: llmopt.Client, texts: Texts, tally: Tally, more: More) -> None:
    """One thread of those that share a blocking client."""
    while more():
        batch = texts()
        with tally.counting(batch):
            tally.check(batch, client.embed(MODEL, batch, when_open="wait").vectors, ())


def watch(tally: Tally, done: threading.Event, say: Callable[[str], None]) -> None:
    """Write down memory and descriptors from time to time, and say what the calls gave so far."""
    while not done.wait(SAMPLE_S):
        tally.resources.sample()
        total = tally.outcomes.total()
        now = f"{tally.resources.mebibytes[-1]} MiB, {tally.resources.descriptors[-1]} descriptors"
        say(f"{total:9,} calls, {tally.answered:.1%} answered, {len(tally.wrong)} wrong, {now}")


def chaos(
    more: More,
    *,
    seed: int,
    every_fault: bool,
    total_s: float = 60.0,
    say: Callable[[str], None] = print,
) -> Tally:
    """Make calls from all loops and threads.

    Args:
        more: asked before each call, in any thread: whether to make it.
        seed: of the server's faults and of the callers' texts.
        every_fault: whether the server also makes faults that no retry can mend.
        total_s: the timeout of a call with all its attempts.
        say: takes lines of progress.
    """
    tally, done = Tally(), threading.Event()
    arguments = ["--serve", "--seed", str(seed), *(["--every-fault"] if every_fault else [])]
    command = [sys.executable, "-m", "tests.client.chaos", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        config = config_for(server.stdout.readline().strip(), total_s)
        texts = [Texts(random.Random(seed + number)) for number in range(LOOPS + THREADS)]
        with llmopt.Client(config) as client, ThreadPoolExecutor(LOOPS + THREADS + 1) as pool:
            watching = pool.submit(watch, tally, done, say)
            loops = [pool.submit(run_loop, config, each, tally, more) for each in texts[:LOOPS]]
            threads = [pool.submit(run_thread, client, each, tally, more) for each in texts[LOOPS:]]
            wait([*loops, *threads])
            done.set()
            for job in (*loops, *threads, watching):
                job.result()
        server.stdin.close()
    return tally


def config_for(base_url: str, total_s: float) -> dict[str, Any]:
    """Three retries and short timeouts: a fault that is silence costs a second."""
    return {
        "cache": False,
        "providers": {
            "server": {
                "plugin": "openai",
                "base_url": f"{base_url}/v1",
                "api_key": "no-secret",
                "max_retries": 3,
                "timeouts": {**TIMEOUTS, "total": total_s},
            }
        },
    }


def report(tally: Tally) -> str:
    """The outcomes as a table, then what was measured."""
    total = tally.outcomes.total()
    rows = [f"{count:9,}  {count / total:7.2%}  {name}" for name, count in tally.outcomes.most_common()]
    found = [*tally.wrong[:5], *tally.foreign[:5]]
    return "\n".join(
        (
            *rows,
            str(tally.resources),
            f"{len(tally.wrong)} wrong, {len(tally.foreign)} foreign exceptions",
            *found,
        )
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.client.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-fault", action="store_true", help="also faults that no retry can mend")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.seed, every_fault=options.every_fault)
        return 0
    until = time.monotonic() + options.minutes * 60
    tally = chaos(lambda: time.monotonic() < until, seed=options.seed, every_fault=options.every_fault)
    print(report(tally))
    enough = options.every_fault or tally.answered >= ANSWERED
    return 0 if enough and not tally.wrong and not tally.foreign and tally.resources.flat else 1


if __name__ == "__main__":
    sys.exit(main())
