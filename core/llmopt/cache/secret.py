"""A secret of this installation, so that keys of a cache tell nobody which credentials there are.

Without it, whoever reads the cache could try a list of keys against the hashes in it.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from llmopt.cache.places import Refused, private_file, private_folder, writable_by_others

_LENGTH: Final = 32
_NAME: Final = "secret"


def install_secret(folder: Path) -> bytes | None:
    """The 32 bytes that all processes that use a folder share, made by the first of them. Reads a file.

    Returns:
        None where the folder cannot be used.
    """
    path = folder / _NAME
    try:
        private_folder(folder)
        for _ in range(3):
            if writable_by_others(path):
                # Anybody may have put it there.
                path.unlink()
            if private_file(path):
                found = _read(path)
                if found is not None:
                    return found
            _make(path)
    except (Refused, OSError):
        pass
    return None


def _read(path: Path) -> bytes | None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = os.read(file, _LENGTH + 1)
    finally:
        os.close(file)
    if len(found) == _LENGTH:
        return found
    # Cut, or somebody else's; whoever comes first makes another.
    path.unlink(missing_ok=True)
    return None


def _make(path: Path) -> None:
    """Make the file, whole from the first moment on; another process may be faster."""
    temporary = path.with_name(f"{_NAME}.{os.getpid()}.{secrets.token_hex(4)}")
    file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, secrets.token_bytes(_LENGTH))
    finally:
        os.close(file)
    try:
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
