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
from llmopt.cache.sqlite import FileLock, LockTimeout, classify_sqlite_error
from tests.cache.stores import item, key, opened, works
from tests.support.faults import FaultServer, answer_openai

DB = "cache-1.db"
AS_ROOT = os.geteuid() == 0


async def filled(folder: Path, entries: int = 400) -> Path:
    async with opened(folder) as store:
        await store.put([item(number, os.urandom(3_000)) for number in range(entries)])
    return folder / DB


def overwritten(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


BROKEN: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(os.urandom(50_000)),
    "text": lambda path: path.write_bytes(b"this is no database " * 1_000),
    "header broken": lambda path: overwritten(path, 0, b"SQLite fooled you"),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2 // 4096 * 4096 + 100),
    "truncated to a page": lambda path: os.truncate(path, 4096),
    "first page zero": lambda path: overwritten(path, 100, bytes(3_996)),
    "schema broken": lambda path: overwritten(path, 2_500, b"nothing " * 190),
}


@pytest.mark.row("K01")
@pytest.mark.parametrize("fault", BROKEN)
async def test_a_broken_file_is_put_aside_and_begun_anew(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning; one broken file is kept, however often it happens."""
    folder = tmp_path / "kept"
    for _ in range(2):
        path = await filled(folder)
        BROKEN[fault](path)
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
async def test_pages_overwritten_in_a_good_file(at: str, tmp_path: Path) -> None:
    """Whatever SQLite notices of it and when, calls go on, and in the end it works again."""
    path = await filled(tmp_path, 2_000)
    size = path.stat().st_size
    place = {"start": 8_192, "middle": size // 2, "end": size - 65_536}[at]
    overwritten(path, place // 4096 * 4096, os.urandom(60_000))
    async with opened(tmp_path) as store:
        for _ in range(3):
            await store.get([key(number) for number in range(2_000)])
            await store.put([item(number, b"new") for number in range(2_000)])
            await store.clear("nobody's")
            await store.size()
            await store.clear()
    assert await works(tmp_path)


@pytest.mark.row("K01")
async def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    """Nothing to be put aside."""
    (tmp_path / DB).touch(mode=0o600)
    assert await works(tmp_path)
    assert not list(tmp_path.glob("*.corrupt-*"))


@pytest.mark.row("K01")
async def test_broken_while_it_is_open(tmp_path: Path) -> None:
    """Noticed at the next read, mended by the one after it."""
    async with opened(tmp_path) as store:
        await store.put([item(number, os.urandom(3_000)) for number in range(2_000)])
        await store.size()
        # What is in the WAL hides what happens to the file.
        connection = sqlite3.connect(tmp_path / DB)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()
        overwritten(tmp_path / DB, 0, os.urandom(200_000))
        for _ in range(3):
            await store.get([key(number) for number in range(2_000)])
            await store.put([item(1)])
            await store.size()
    assert await works(tmp_path)


@pytest.mark.row("K01")
@pytest.mark.parametrize("version", [0, 2, 999])
async def test_a_foreign_schema_gets_another_name(version: int, tmp_path: Path) -> None:
    """The file of another version, or of another program, is left as it is."""
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
async def test_all_names_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then nothing is kept."""
    for number in ("", ".2", ".3", ".4"):
        connection = sqlite3.connect(tmp_path / f"cache-1{number}.db")
        connection.execute("CREATE TABLE theirs (x)")
        connection.close()
    assert not await works(tmp_path)
    assert "other databases" in caplog.text


@pytest.mark.row("K01")
async def test_tables_changed_under_our_name(tmp_path: Path) -> None:
    """A schema that is not what its version says is a broken file."""
    path = await filled(tmp_path, 5)
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


def a_file_instead(folder: Path) -> None:
    folder.write_bytes(b"precious")


def somebody_elses(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12_345, 12_345)


def somebody_elses_file(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / DB).touch()
    os.chown(folder / DB, 12_345, 12_345)


REFUSED = [as_directory, as_link, as_dangling_link, with_a_linked_wal, open_to_all, open_to_the_group]
REFUSED += [in_a_folder_open_to_all, a_file_instead]
OF_OTHERS = [somebody_elses, somebody_elses_file]


@pytest.mark.row("K01")
@pytest.mark.parametrize("prepare", [*REFUSED, *OF_OTHERS], ids=lambda each: each.__name__)
async def test_a_place_that_is_not_ours_is_left_alone(
    prepare: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is written there, one warning says why, and calls succeed without a cache."""
    if prepare in OF_OTHERS and not AS_ROOT:
        pytest.skip("only root can give files away")
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
                # In memory it is kept all the same.
                assert len(await client.list_models("s")) == 1
    assert len(server.requests) == 4
    warnings = {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}
    assert len(warnings) == 1
    assert "cannot be used" in warnings.pop()
    target = folder.parent / "target"
    assert not target.exists() or target.read_bytes() == b"precious"
    assert not (folder.parent / "elsewhere").exists()


@pytest.mark.row("K01")
async def test_a_sticky_folder_open_to_all_will_do(tmp_path: Path) -> None:
    """Such as /tmp: nobody can put another folder in the place of ours."""
    tmp_path.chmod(0o1777)
    assert await works(tmp_path / "kept")


@pytest.mark.row("K01")
async def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    """It is put aside. One that others may only read is made private."""
    path = await filled(tmp_path, 5)
    path.chmod(0o644)
    async with opened(tmp_path) as store:
        assert (await store.get([key(1)]))[0] is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o666)
    async with opened(tmp_path) as store:
        assert await store.get([key(1)]) == [None]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1


READ_ONLY = """
import asyncio, logging, os, sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from tests.cache.stores import works
# As another user nothing more could be imported.
assert asyncio.run(works(Path({top!r}) / "first"))
os.setresuid(12345, 12345, 12345)
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
print(asyncio.run(works(Path({folder!r}))))
"""


@pytest.mark.row("K01")
@pytest.mark.skipif(not AS_ROOT, reason="needs a second user")
@pytest.mark.parametrize("there", [False, True], ids=["no file", "a file"])
def test_a_read_only_folder(there: bool) -> None:
    """Nothing is kept, and nothing fails."""
    # Below pytest's own folders nobody else can go.
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        folder = Path(top) / "kept"
        folder.mkdir(mode=0o700)
        if there:
            asyncio.run(filled(folder, 5))
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
async def test_the_folder_goes_away_under_us(tmp_path: Path) -> None:
    """Somebody clears his cache folder: it is made again."""
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
async def test_a_full_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing can be written for a minute, reading goes on, and then it is tried again."""
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
def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    """The system refuses to let the file grow: what was there is still read."""
    code = LIMITED.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "fine", done.stderr
    assert done.stdout.count("tried again in a minute") == 1


@pytest.mark.row("K04")
async def test_a_process_that_holds_the_lock(tmp_path: Path) -> None:
    """Whoever waits for too long goes without."""
    async with opened(tmp_path) as store:
        await store.put([item(1)])
    if sqlite3.sqlite_version_info >= (3, 51, 3):
        pytest.skip("this SQLite needs no lock")
    import fcntl

    file = os.open(tmp_path / f"{DB}.lock", os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    time = [0.0]

    def nap(seconds: float) -> None:
        time[0] += seconds

    try:
        lock = FileLock(tmp_path / f"{DB}.lock", sleep=nap, now=lambda: time[0])
        with pytest.raises(LockTimeout), lock.held():
            pass
        assert 5.0 <= time[0] < 5.1
        lock.close()
        with pytest.raises(ValueError, match="closed"), lock.held():
            pass
    finally:
        os.close(file)
    assert await works(tmp_path)


@pytest.mark.row("K04")
async def test_a_writer_that_keeps_others_out_is_passed_over(tmp_path: Path) -> None:
    """SQLITE_BUSY: that write is not kept, the next one is."""
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


def test_what_errors_mean() -> None:
    """By SQLite's result code, and by its text where the code says nothing."""

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
async def test_what_somebody_planted_is_never_run(tmp_path: Path) -> None:
    """A pickle as a value, triggers and views as a schema: read as bytes, or not at all."""
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
    """SQLite keeps whatever it is given."""
    path = await filled(tmp_path, 3)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE entries SET value='text' WHERE key=?", (key(0),))
    connection.execute("UPDATE entries SET value=7, used='never', until='x' WHERE key=?", (key(1),))
    connection.execute("UPDATE entries SET family=CAST(x'ff00ff' AS TEXT) WHERE key=?", (key(2),))
    connection.commit()
    connection.close()
    async with opened(tmp_path) as store:
        found = await store.get([key(0), key(1), key(2)])
        assert [value is None for value in found] == [True, True, False]
        assert (await store.size()).entries == 3


async def test_two_that_find_the_same_file_broken(tmp_path: Path) -> None:
    """The second does not put aside what the first has begun anew."""
    path = await filled(tmp_path, 3)
    inode = path.stat().st_ino
    files = CacheFiles(tmp_path, max_bytes=1 << 20)
    files.quarantine(path, inode)
    assert await works(tmp_path)
    files.quarantine(path, inode)
    async with opened(tmp_path) as store:
        assert await store.get([key(77)]) == [b"value 77"]
    files.quarantine(tmp_path / "nothing.db", 1)


async def test_the_log_of_a_broken_file_goes_with_it(tmp_path: Path) -> None:
    """Found beside a new file it would be played into it."""
    path = await filled(tmp_path, 3)
    for beside in ("-wal", "-shm"):
        path.with_name(path.name + beside).touch()
    CacheFiles(tmp_path, max_bytes=1 << 20).quarantine(path, path.stat().st_ino)
    assert {each.name.partition(".corrupt")[0] for each in tmp_path.iterdir()} == {DB, f"{DB}.lock"}


async def test_what_cannot_be_opened_is_tried_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at every call."""
    tries = []
    real = CacheFiles.open
    monkeypatch.setattr(CacheFiles, "open", lambda files: tries.append(1) or real(files))
    now = [0.0]
    folder = tmp_path / "kept"
    folder.write_bytes(b"in the way")
    async with opened(folder, now=lambda: now[0]) as store:
        for moment in (0, 1, 59, 60, 61):
            now[0] = moment
            assert await store.get([key(1)]) == [None]
        assert len(tries) == 2
        folder.unlink()
        now[0] = 121
        await store.put([item(1)])
        assert await store.get([key(1)]) == [b"value 1"]


def test_a_folder_that_is_no_path() -> None:
    """Refused, not raised."""

    async def main() -> bool:
        return await works(Path("/proc/nowhere/at/all"))

    assert not asyncio.run(main())
    assert DiskStore("~/x").folder.is_absolute()
