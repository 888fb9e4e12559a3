"""Where files may lie: in a folder that is ours, under names that are ours.

Whoever else can write there could plant answers, or have us write over a file of the user's through a
link. So both are looked at before anything is opened, and what is made is readable for nobody else.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_PRIVATE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700
_WRITABLE_BY_OTHERS: Final = 0o022


class Refused(Exception):
    """A place cannot be used; the message says why."""


def private_folder(folder: Path) -> None:
    """Make a folder, if it is not there, and see whether it is fit.

    Raises:
        Refused: it is a link of somebody else's, somebody else's, writable for others, or cannot be made.
    """
    if os.name != "posix":
        raise Refused("this system has no owners of files as they are relied on here")
    try:
        _make(folder)
        link, found, parent = folder.lstat(), folder.stat(), folder.resolve().parent.stat()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "this is no path"
        raise Refused(f"the folder cannot be made: {reason}") from None
    if not _ours(link) or not _ours(found):
        raise Refused("the folder belongs to another user")
    if found.st_mode & _WRITABLE_BY_OTHERS and not found.st_mode & stat.S_ISVTX:
        raise Refused("other users may write into the folder")
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
        raise Refused("other users may put another folder in its place")


def _make(folder: Path) -> None:
    # The folders above too: those that mkdir makes by itself are open to whomever the umask lets in.
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(exist_ok=True, mode=_PRIVATE_FOLDER)
    if not folder.is_dir():
        raise Refused("the folder cannot be made: there is something else in its place")


def private_file(path: Path) -> bool:
    """See whether a file is fit to be opened, and make it readable for nobody else.

    Returns:
        False when there is none yet.

    Raises:
        Refused: it is a link, somebody else's, or no file.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Refused(f"{path.name} cannot be looked at: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"{path.name} is a link or no file at all")
    if not _ours(found):
        raise Refused(f"{path.name} belongs to another user")
    if stat.S_IMODE(found.st_mode) & ~_PRIVATE:
        # In a folder that cannot be changed it stays as it is; others may read it then, and not write.
        with suppress(OSError):
            path.chmod(_PRIVATE)
    return True


def writable_by_others(path: Path) -> bool:
    """Whether others may write to a file, so that what it holds is anybody's. A link is no file."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & _WRITABLE_BY_OTHERS)


def make_private(path: Path) -> None:
    """Make an empty file that nobody else may read; SQLite gives the files beside it the same permissions.

    Raises:
        FileExistsError: there is something of that name by now.
        OSError: it cannot be made.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _PRIVATE))


def _ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid()
