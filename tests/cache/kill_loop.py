"""Several processes write, read, evict and clear in one folder, and are killed at any moment.

    python -m tests.cache.kill_loop --kills 50 --processes 8

Prints the result; the exit code is 1 if the database is damaged or any process saw an exception.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attrs import define

from llmopt.cache.disk import DiskStore
from llmopt.cache.store import CacheItem, read_record, write_record

KIND = b"KILL"
KEYS = 3_000
MAX_BYTES = 8 << 20


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def item_of(number: int, chance: random.Random) -> CacheItem:
    body = chance.randbytes(chance.choice((40, 1_500, 6_200)))
    value = write_record(KIND, key_of(number), time.time(), str(number).encode(), body)
    return CacheItem(key=key_of(number), group=f"g{number % 5}", value=value, expires_at=time.time() + 3600)


async def work(folder: Path, seconds: float) -> None:
    """Use the store in every way; a wrong value or an exception ends the process with a traceback."""
    chance = random.Random(os.getpid())
    until = time.monotonic() + seconds
    store = DiskStore(folder, max_bytes=MAX_BYTES)
    hits = 0
    while time.monotonic() < until:
        numbers = chance.sample(range(KEYS), chance.choice((1, 50, 700)))
        match chance.randrange(20):
            case 0:
                await store.clear(f"g{chance.randrange(5)}")
            case 1:
                await store.remove([key_of(number) for number in numbers])
            case 2:
                await store.aclose()
            case 3:
                await store.size()
            case turn if turn < 12:
                await store.put([item_of(number, chance) for number in numbers])
            case _:
                for number, value in zip(
                    numbers, await store.get([key_of(each) for each in numbers]), strict=True
                ):
                    if value is not None:
                        record = read_record(KIND, key_of(number), value)
                        assert record is not None, f"a value of {number} is damaged"
                        assert record.head == str(number).encode(), "another key's value"
                        hits += 1
    await store.aclose()
    print(hits)


@define
class Result:
    """The state of the database, and the errors of the processes."""

    kills: int
    errors: list[str]
    integrity: str
    entries: int
    hits: int
    quarantined: int


def run(folder: Path, *, kills: int, processes: int, between: float) -> Result:
    """Start processes; ``kills`` times kill one of them at random and start another."""
    chance = random.Random(7)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.cache.kill_loop", "--work", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "SECONDS_OF_WORK": "600"},
        )

    running = [start() for _ in range(processes)]
    errors: list[str] = []
    for _ in range(kills):
        time.sleep(chance.uniform(0, 2 * between))
        victim = running.pop(chance.randrange(len(running)))
        if victim.poll() is not None:
            errors.append(victim.communicate()[1])
        victim.send_signal(signal.SIGKILL)
        errors.append(victim.communicate()[1])
        running.append(start())
    for each in running:
        each.send_signal(signal.SIGKILL)
        errors.append(each.communicate()[1])
    # A process that ends normally reads what they left.
    last = subprocess.run(
        [sys.executable, "-m", "tests.cache.kill_loop", "--work", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "SECONDS_OF_WORK": "1"},
        check=False,
    )
    errors.append(last.stderr)
    connection = sqlite3.connect(folder / "cache-1.db")
    (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    (entries,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    connection.close()
    return Result(
        kills=kills + processes,
        errors=[each for each in errors if each.strip()],
        integrity=integrity,
        entries=entries,
        hits=int(last.stdout or 0),
        quarantined=len(list(folder.glob("*.corrupt-*"))),
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--between", type=float, default=0.5)
    options = parser.parse_args()
    if options.work is not None:
        asyncio.run(work(options.work, float(os.environ["SECONDS_OF_WORK"])))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            Path(folder) / "kept", kills=options.kills, processes=options.processes, between=options.between
        )
    print(result)
    return 0 if result.integrity == "ok" and not result.errors and not result.quarantined else 1


if __name__ == "__main__":
    sys.exit(main())
