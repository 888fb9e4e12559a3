"""The disk store in several processes, some of which are killed; `tests.cache.kill_loop` does it more often."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.cache.kill_loop import run
from tests.cache.stores import item, key, opened


@pytest.mark.row("K04")
@pytest.mark.timeout(180)
def test_killed_processes_leave_an_intact_database(tmp_path: Path) -> None:
    """No process sees an exception or a wrong value."""
    result = run(tmp_path / "kept", kills=4, processes=4, between=0.4)
    assert result.integrity == "ok"
    assert result.errors == []
    assert result.quarantined == 0


@pytest.mark.row("K04")
async def test_two_stores_share_one_folder(tmp_path: Path) -> None:
    """Each reads what the other writes, and the size of the write-ahead log is bounded."""
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        for turn in range(20):
            await one.put([item(turn * 100 + each, bytes(5_000)) for each in range(100)])
            await one.size()
            values = await other.get([key(turn * 100 + each) for each in range(100)])
            assert all(value is not None for value in values)
            await other.remove([key(turn * 100)])
            assert await one.get([key(turn * 100)]) == [None]
        assert (tmp_path / "cache-1.db-wal").stat().st_size < 16 << 20
    # The last store to close moves the log into the database.
    assert not (tmp_path / "cache-1.db-wal").exists()


async def test_every_transaction_begins_as_a_write(tmp_path: Path) -> None:
    """One that begins as a read fails at its first write if another process wrote meanwhile."""
    statements: list[str] = []
    async with opened(tmp_path) as store:
        await store.size()
        connection = store._worker._database._connection  # type: ignore[union-attr] # it runs
        await store._run(lambda _: connection.set_trace_callback(statements.append), None)
        await store.put([item(1)])
        await store.remove([key(1)])
        await store.clear()
        await store.size()
    begins = [each for each in statements if each.startswith("BEGIN")]
    assert begins
    assert set(begins) == {"BEGIN IMMEDIATE"}


async def test_the_settings_of_a_connection(tmp_path: Path) -> None:
    """They keep a cache of several processes intact."""
    async with opened(tmp_path) as store:
        await store.size()
        connection = store._worker._database._connection  # type: ignore[union-attr] # it runs

        def read_pragma(name: str) -> object:
            return connection.execute(f"PRAGMA {name}").fetchone()[0]

        async def of(name: str) -> object:
            return await store._run(lambda _: read_pragma(name), None)

        assert await of("journal_mode") == "wal"
        assert await of("synchronous") == 1
        assert await of("trusted_schema") == 0
        assert await of("busy_timeout") == 5_000
        assert await of("journal_size_limit") == 64 << 20
        assert await of("auto_vacuum") == 2
        own = sqlite3.sqlite_version_info < (3, 51, 3)
        assert await of("wal_autocheckpoint") == (0 if own else 1_000)
