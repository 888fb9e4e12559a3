"""The disk store with files that are corrupt, foreign, misplaced or full: no call fails."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import llmopt
from llmopt.cache.disk import DiskStore
from llmopt.cache.files import CacheFiles
from llmopt.cache.sqlite import Database, LockTimeout, classify_sqlite_error, file_lock
from tests.cache.stores import item, key, opened, works
from tests.support.faults import FaultServer, answer_openai

DB = "cache-1.db"
AS_ROOT = os.geteuid() == 0


async def create_database(folder: Path, entries: int = 400) -> Path:
    async with opened(folder) as store:
        await store.put([item(number, os.urandom(3_000)) for number in range(entries)])
    return folder / DB


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(os.urandom(50_000)),
    "text": lambda path: path.write_bytes(b"this is no database " * 1_000),
    "header broken": lambda path: overwrite(path, 0, b"SQLite fooled you"),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2 // 4096 * 4096 + 100),
    "truncated to a page": lambda path: os.truncate(path, 4096),
    "first page zero": lambda path: overwrite(path, 100, bytes(3_996)),
    "schema broken": lambda path: overwrite(path, 2_500, b"nothing " * 190),
}


@pytest.mark.row("K01")
@pytest.mark.parametrize("fault", CORRUPTIONS)
async def test_a_corrupt_file_is_quarantined_and_replaced(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With one warning; only one corrupt file is kept, however often it happens."""
    folder = tmp_path / "kept"
    for _ in range(2):
        path = await create_database(folder)
        CORRUPTIONS[fault](path)
        caplog.clear()
        async with opened(folder) as store:
            for _ in range(3):
                await store.get([key(number) for number in range(400)])
                await store.put([item(1, b"after")])
        assert await works(folder)
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "damaged" in warnings[0].getMessage()
        assert len(list(folder.glob(f"{DB}.corrupt-*"))) == 1
    assert stat.S_IMODE((folder / DB).stat().st_mode) == 0o600


@pytest.mark.row("K01")
@pytest.mark.parametrize("at", ["start", "middle", "end"])
async def test_overwritten_pages_fail_no_call(at: str, tmp_path: Path) -> None:
    """Whenever SQLite notices the damage; in the end the store works again."""
    path = await create_database(tmp_path, 2_000)
    size = path.stat().st_size
    offset = {"start": 8_192, "middle": size // 2, "end": size - 65_536}[at]
    overwrite(path, offset // 4096 * 4096, os.urandom(60_000))
    async with opened(tmp_path) as store:
        for _ in range(3):
            await store.get([key(number) for number in range(2_000)])
            await store.put([item(number, b"new") for number in range(2_000)])
            await store.clear("unused-group")
            await store.size()
            await store.clear()
    assert await works(tmp_path)


@pytest.mark.row("K01")
async def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    """Nothing is quarantined."""
    (tmp_path / DB).touch(mode=0o600)
    assert await works(tmp_path)
    assert not list(tmp_path.glob("*.corrupt-*"))


@pytest.mark.row("K01")
async def test_a_file_corrupted_while_it_is_open_is_replaced(tmp_path: Path) -> None:
    """A read notices the damage, and the next call opens a new file."""
    async with opened(tmp_path) as store:
        await store.put([item(number, os.urandom(3_000)) for number in range(2_000)])
        await store.size()
        # Pages in the write-ahead log would hide the damage to the file.
        connection = sqlite3.connect(tmp_path / DB)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()
        overwrite(tmp_path / DB, 0, os.urandom(200_000))
        for _ in range(3):
            await store.get([key(number) for number in range(2_000)])
            await store.put([item(1)])
            await store.size()
    assert await works(tmp_path)


@pytest.mark.row("K01")
@pytest.mark.parametrize("version", [0, 2, 999])
async def test_a_foreign_schema_makes_the_store_use_another_name(version: int, tmp_path: Path) -> None:
    """The file of another version or program does not change."""
    path = tmp_path / DB
    connection = sqlite3.connect(path)
    connection.executescript(
        f"CREATE TABLE theirs (x); INSERT INTO theirs VALUES (7); PRAGMA user_version={version}"
    )
    connection.close()
    path.chmod(0o600)
    before = path.read_bytes()
    assert await works(tmp_path)
    assert path.read_bytes() == before
    assert (tmp_path / "cache-1.2.db").exists()


@pytest.mark.row("K01")
async def test_without_a_free_name_nothing_is_cached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in ("", ".2", ".3", ".4"):
        connection = sqlite3.connect(tmp_path / f"cache-1{number}.db")
        connection.execute("CREATE TABLE theirs (x)")
        connection.close()
    assert not await works(tmp_path)
    assert "other databases" in caplog.text


@pytest.mark.row("K01")
async def test_a_schema_that_contradicts_its_version_is_corrupt(tmp_path: Path) -> None:
    path = await create_database(tmp_path, 5)
    connection = sqlite3.connect(path)
    connection.executescript("DROP TABLE entries; CREATE TABLE entries (other TEXT)")
    connection.close()
    async with opened(tmp_path) as store:
        assert await store.get([key(1)]) == [None]
        await store.put([item(1)])
    assert await works(tmp_path)


def as_directory(folder: Path) -> None:
    (folder / DB).mkdir(parents=True)


def as_link(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder.parent / "target").write_bytes(b"precious")
    (folder / DB).symlink_to(folder.parent / "target")


def as_dangling_link(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / DB).symlink_to(folder.parent / "elsewhere")


def with_a_linked_wal(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder.parent / "target").write_bytes(b"precious")
    (folder / f"{DB}-wal").symlink_to(folder.parent / "target")


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def open_to_the_group(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def in_a_folder_open_to_all(folder: Path) -> None:
    folder.parent.chmod(0o777)


def a_file_in_place_of_the_folder(folder: Path) -> None:
    folder.write_bytes(b"precious")


def folder_of_another_user(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12_345, 12_345)


def file_of_another_user(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / DB).touch()
    os.chown(folder / DB, 12_345, 12_345)


REFUSED = [as_directory, as_link, as_dangling_link, with_a_linked_wal, open_to_all, open_to_the_group]
REFUSED += [in_a_folder_open_to_all, a_file_in_place_of_the_folder]
OF_ANOTHER_USER = [folder_of_another_user, file_of_another_user]


@pytest.mark.row("K01")
@pytest.mark.parametrize("prepare", [*REFUSED, *OF_ANOTHER_USER], ids=lambda each: each.__name__)
async def test_a_place_that_is_not_private_is_not_used(
    prepare: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written there, one warning says why, and calls succeed without the disk cache."""
    if prepare in OF_ANOTHER_USER and not AS_ROOT:
        pytest.skip("only root can change the owner of a file")
    folder = tmp_path / "inner" / "kept"
    folder.parent.mkdir()
    prepare(folder)
    async with FaultServer() as server:
        server.default(answer_openai)
        settings = {"providers": {"s": {"plugin": "local", "base_url": server.base_url}}}
        for _ in range(2):
            async with llmopt.AsyncClient(settings, cache=folder) as client:
                assert len(await client.list_models("s")) == 1
                assert (await client.embed("s/m", ["a", "b"])).vectors.shape == (2, 4)
                # The memory cache still works.
                assert len(await client.list_models("s")) == 1
    assert len(server.requests) == 4
    warnings = {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}
    assert len(warnings) == 1
    assert "cannot be used" in warnings.pop()
    target = folder.parent / "target"
    assert not target.exists() or target.read_bytes() == b"precious"
    assert not (folder.parent / "elsewhere").exists()


@pytest.mark.row("K01")
async def test_a_sticky_folder_open_to_all_is_accepted(tmp_path: Path) -> None:
    """Such as /tmp: no other user can replace a folder in it."""
    tmp_path.chmod(0o1777)
    assert await works(tmp_path / "kept")


@pytest.mark.row("K01")
@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
async def test_a_file_that_others_may_write_is_quarantined(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names its mode and does not call it damaged. A file that others may only read is made private."""
    path = await create_database(tmp_path, 5)
    path.chmod(0o644)
    async with opened(tmp_path) as store:
        assert (await store.get([key(1)]))[0] is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert caplog.messages == []
    path.chmod(mode)
    async with opened(tmp_path) as store:
        assert await store.get([key(1)]) == [None]
    (message,) = caplog.messages
    assert (
        f"could be written by other users (its mode is {mode:04o}); it was renamed to *.writable-*" in message
    )
    assert "damaged" not in message
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(tmp_path.glob("*.writable-*"))) == 1


READ_ONLY = """
import asyncio, logging, os, sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from tests.cache.stores import works
# Another user could not import anything after setresuid.
assert asyncio.run(works(Path({top!r}) / "first"))
os.setresuid(12345, 12345, 12345)
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
print(asyncio.run(works(Path({folder!r}))))
"""


@pytest.mark.row("K01")
@pytest.mark.skipif(not AS_ROOT, reason="needs a second user")
@pytest.mark.parametrize("exists", [False, True], ids=["without a file", "with a file"])
def test_in_a_read_only_folder_nothing_is_cached_and_no_call_fails(exists: bool) -> None:
    # Other users may not enter the temporary folders of pytest.
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        folder = Path(top) / "kept"
        folder.mkdir(mode=0o700)
        if exists:
            asyncio.run(create_database(folder, 5))
            for path in folder.iterdir():
                os.chown(path, 12_345, 12_345)
                path.chmod(0o400)
        os.chown(folder, 12_345, 12_345)
        folder.chmod(0o500)
        code = READ_ONLY.format(root=str(Path(__file__).parents[2]), top=top, folder=str(folder))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "False"
        assert "nothing is cached on disk for now" in done.stdout or "tried again in a minute" in done.stdout


@pytest.mark.row("K01")
async def test_a_deleted_folder_is_created_again(tmp_path: Path) -> None:
    """The user may delete it while the store is open."""
    folder = tmp_path / "kept"
    async with opened(folder) as store:
        await store.put([item(1)])
        assert (await store.size()).entries == 1
        shutil.rmtree(folder)
        assert await store.get([key(1)]) == [None]
        await store.put([item(2)])
        assert await store.get([key(2)]) == [b"value 2"]
    assert (folder / DB).exists()


@pytest.mark.row("K02")
async def test_a_full_database_pauses_writing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reading goes on, and after a minute the store writes again."""
    now = [1_000.0]
    async with opened(tmp_path, now=lambda: now[0]) as store:
        await store.put([item(1)])
        await store.size()
        worker = store._worker

        def bounded(pages: int) -> None:
            worker._database._connection.execute(f"PRAGMA max_page_count={pages}")

        await store._run(lambda _: bounded(20), None)
        await store.put([item(number, os.urandom(5_000)) for number in range(100)])
        assert await store.get([key(1)]) == [b"value 1"]
        await store._run(lambda _: bounded(1_000_000), None)
        await store.put([item(2)])
        assert (await store.size()).entries == 1
        now[0] += 61
        await store.put([item(3)])
        assert (await store.size()).entries == 2
    assert caplog.text.count("tried again in a minute") == 1


LIMITED = """
import asyncio, logging, os, resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
sys.path[:0] = [{root!r}]
from tests.cache.stores import item, key, opened
async def main():
    async with opened(Path({folder!r})) as store:
        await store.put([item(1)])
        await store.size()
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        for _ in range(3):
            await store.put([item(number, os.urandom(5_000)) for number in range(2, 400)])
            assert await store.get([key(1)]) == [b"value 1"]
asyncio.run(main())
print("fine")
"""


@pytest.mark.row("K02")
def test_a_file_size_limit_pauses_writing(tmp_path: Path) -> None:
    """The operating system refuses to let the file grow; existing entries are still read."""
    code = LIMITED.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "fine", done.stderr
    assert done.stdout.count("tried again in a minute") == 1


@pytest.mark.row("K04")
async def test_a_lock_held_by_another_process_times_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.put([item(1)])
    if sqlite3.sqlite_version_info >= (3, 51, 3):
        pytest.skip("this SQLite needs no lock")
    import fcntl

    file = os.open(tmp_path / f"{DB}.lock", os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    time = [0.0]

    def sleep(seconds: float) -> None:
        time[0] += seconds

    try:
        with (
            pytest.raises(LockTimeout),
            file_lock(tmp_path / f"{DB}.lock", sleep=sleep, now=lambda: time[0]),
        ):
            pass
        assert 5.0 <= time[0] < 5.1
    finally:
        os.close(file)
    assert await works(tmp_path)


@pytest.mark.row("K04")
async def test_a_busy_database_loses_one_write(tmp_path: Path) -> None:
    """After SQLITE_BUSY that batch is dropped; the next one is written."""
    async with opened(tmp_path) as store:
        await store.put([item(1)])
        await store.size()
        worker = store._worker
        await store._run(lambda _: worker._database._connection.execute("PRAGMA busy_timeout=10"), None)
        other = sqlite3.connect(tmp_path / DB, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await store.put([item(2)])
        assert await store.get([key(1)]) == [b"value 1"]
        other.execute("ROLLBACK")
        other.close()
        await store.put([item(3)])
        assert (await store.size()).entries == 2


def test_classification_of_sqlite_errors() -> None:
    """By the result code, and by the message where the code is not specific."""

    def of(code: int | None, text: str = "") -> str:
        error = sqlite3.OperationalError(text)
        if code is not None:
            error.sqlite_errorcode = code
        return classify_sqlite_error(error)

    assert of(11) == of(26) == of(11 | 1 << 8) == of(10 | 2 << 8) == "corrupt"
    assert of(5) == of(5 | 2 << 8) == of(6) == of(18) == "busy"
    assert of(13) == of(10) == of(10 | 3 << 8) == of(8) == "unwritable"
    assert of(8 | 4 << 8) == "replaced"
    assert of(14) == of(99) == of(None) == "unusable"
    assert of(1, "no such table: entries") == of(None, "database disk image is malformed") == "corrupt"


@pytest.mark.row("S06")
async def test_planted_pickles_and_triggers_never_run(tmp_path: Path) -> None:
    """A pickle as a value is read as bytes; a schema with triggers is not used."""
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (ran,))

    folder = tmp_path / "kept"
    async with FaultServer() as server:
        server.default(answer_openai)
        settings = {"providers": {"s": {"plugin": "local", "base_url": server.base_url}}}
        async with llmopt.AsyncClient(settings, cache=folder) as client:
            await client.embed("s/m", ["a"])
            await client.list_models("s")
        connection = sqlite3.connect(folder / DB)
        connection.execute("UPDATE entries SET value=?", (pickle.dumps(Evil()),))
        connection.executescript(
            "CREATE TRIGGER boo AFTER UPDATE ON entries BEGIN SELECT load_extension('/tmp/x'); END;"
        )
        connection.commit()
        connection.close()
        (folder / "planted.pkl").write_bytes(pickle.dumps(Evil()))
        async with llmopt.AsyncClient(settings, cache=folder) as client:
            assert (await client.embed("s/m", ["a"])).usage.requests == 1
            assert len(await client.list_models("s")) == 1
    assert not ran.exists()
    assert len(server.requests) == 4


async def test_values_of_other_types_are_misses(tmp_path: Path) -> None:
    """SQLite does not enforce the types of columns."""
    path = await create_database(tmp_path, 3)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE entries SET value='text' WHERE key=?", (key(0),))
    connection.execute("UPDATE entries SET value=7, used='never', until='x' WHERE key=?", (key(1),))
    connection.execute("UPDATE entries SET family=CAST(x'ff00ff' AS TEXT) WHERE key=?", (key(2),))
    connection.commit()
    connection.close()
    async with opened(tmp_path) as store:
        values = await store.get([key(0), key(1), key(2)])
        assert [value is None for value in values] == [True, True, False]
        assert (await store.size()).entries == 3


async def test_two_processes_quarantine_a_corrupt_file_once(tmp_path: Path) -> None:
    """The second does not quarantine the new file of the first."""
    path = await create_database(tmp_path, 3)
    inode = path.stat().st_ino
    files = CacheFiles(tmp_path, max_bytes=1 << 20)
    files.quarantine(path, inode)
    assert await works(tmp_path)
    files.quarantine(path, inode)
    async with opened(tmp_path) as store:
        assert await store.get([key(77)]) == [b"value 77"]
    files.quarantine(tmp_path / "nothing.db", 1)


async def test_the_write_ahead_log_of_a_corrupt_file_is_quarantined_too(tmp_path: Path) -> None:
    """SQLite would replay it into a new file of that name."""
    path = await create_database(tmp_path, 3)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).touch()
    CacheFiles(tmp_path, max_bytes=1 << 20).quarantine(path, path.stat().st_ino)
    assert {each.name.partition(".corrupt")[0] for each in tmp_path.iterdir()} == {DB, f"{DB}.lock"}


async def test_a_store_that_cannot_be_opened_is_tried_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []
    real = CacheFiles.open
    monkeypatch.setattr(CacheFiles, "open", lambda files: attempts.append(1) or real(files))
    now = [0.0]
    folder = tmp_path / "kept"
    folder.write_bytes(b"a file, not a folder")
    async with opened(folder, now=lambda: now[0]) as store:
        for seconds in (0, 1, 59, 60, 61):
            now[0] = seconds
            assert await store.get([key(1)]) == [None]
        assert len(attempts) == 2
        folder.unlink()
        now[0] = 121
        await store.put([item(1)])
        assert await store.get([key(1)]) == [b"value 1"]


def test_a_folder_that_cannot_be_created_raises_nothing() -> None:

    async def main() -> bool:
        return await works(Path("/proc/nowhere/at/all"))

    assert not asyncio.run(main())
    assert DiskStore("~/x").folder.is_absolute()


def test_a_file_that_vanishes_while_it_is_opened_leaves_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.13 warns of one that is not closed."""
    made: list[sqlite3.Connection] = []

    def configure_and_delete(connection: sqlite3.Connection, **_: object) -> None:
        made.append(connection)
        (tmp_path / DB).unlink()

    monkeypatch.setattr("llmopt.cache.sqlite.configure", configure_and_delete)
    (tmp_path / DB).touch()
    with pytest.raises(FileNotFoundError):
        Database(tmp_path / DB, max_bytes=1 << 20, wall=lambda: 0.0, lock=tmp_path / "lock")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        made[0].execute("SELECT 1")
