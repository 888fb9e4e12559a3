"""What an error of SQLite's means for the store. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import sqlite3

Trouble = Literal["broken", "moved", "busy", "full", "closed"]
"""The file holds no database; it is not the one under its name any more; somebody else is writing; nothing
can be written for now; nothing can be read either."""

_BY_CODE: Final[dict[int, Trouble]] = {
    5: "busy",  # BUSY
    6: "busy",  # LOCKED
    8: "full",  # READONLY
    10: "full",  # IOERR
    11: "broken",  # CORRUPT
    13: "full",  # FULL
    14: "closed",  # CANTOPEN
    18: "busy",  # TOOBIG
    15: "busy",  # PROTOCOL: a race for the WAL's locks, lost several times over
    26: "broken",  # NOTADB
}
"""Primary result codes, https://www.sqlite.org/rescode.html"""
_MOVED: Final = 8 | 4 << 8  # READONLY_DBMOVED
_SHORT_READ: Final = 10 | 2 << 8  # IOERR_SHORT_READ: the file ends before a page does
_BROKEN_SHAPES: Final = ("malformed", "no such table", "no such column", "no column named")


def trouble_of(error: sqlite3.Error) -> Trouble:
    """What to do about an error."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == _MOVED:
        return "moved"
    if code == _SHORT_READ:
        return "broken"
    if isinstance(code, int) and code & 0xFF in _BY_CODE:
        return _BY_CODE[code & 0xFF]
    # A plain ERROR: the schema is not what the file's version says it is.
    return "broken" if any(shape in str(error) for shape in _BROKEN_SHAPES) else "closed"
