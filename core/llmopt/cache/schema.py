"""The database's own form, and how a connection to it is set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3

VERSION: Final = 1
"""Of the form of the tables; another one lives in another file."""
APPLICATION: Final = 0x6C6C6D6F
"""What SQLite's ``application_id`` says of a file of ours."""
_WAL_LIMIT: Final = 64 << 20

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS entries (
  key BLOB PRIMARY KEY NOT NULL,
  family TEXT NOT NULL,
  value BLOB NOT NULL,
  until INTEGER NOT NULL,
  used INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_family ON entries (family);
CREATE INDEX IF NOT EXISTS by_until ON entries (until);
CREATE INDEX IF NOT EXISTS by_used ON entries (used);
"""


class ForeignSchemaError(Exception):
    """The file is a good database of somebody else's, or of another version of ours."""


def prepare(connection: sqlite3.Connection, *, own_checkpoints: bool) -> None:
    """Set a connection up, and make the tables where there are none.

    Args:
        connection: in autocommit mode.
        own_checkpoints: whether SQLite must not copy the WAL back by itself.

    Raises:
        ForeignSchemaError: the tables are not ours.
        sqlite3.Error: it is no database, or cannot be written.
    """
    run = connection.execute
    # First, so that what the file says cannot run anything.
    run("PRAGMA trusted_schema=OFF")
    run("PRAGMA mmap_size=0")
    _check(connection)
    # Before the first table is made, or it has no effect.
    run("PRAGMA auto_vacuum=INCREMENTAL")
    run("PRAGMA journal_mode=WAL")
    run("PRAGMA synchronous=NORMAL")
    run(f"PRAGMA journal_size_limit={_WAL_LIMIT}")
    if own_checkpoints:
        run("PRAGMA wal_autocheckpoint=0")
    if _number(connection, "user_version") == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION}; COMMIT;"
        )


def _check(connection: sqlite3.Connection) -> None:
    version, application = _number(connection, "user_version"), _number(connection, "application_id")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    new = version == application == tables == 0
    if not new and (version, application) != (VERSION, APPLICATION):
        raise ForeignSchemaError


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
