"""A small file that carries what was learned of sizes to the next process. It never fails a call."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

_MOST_BYTES: Final = 1 << 20
_MOST_ENTRIES: Final = 1_000


class LearnedFile:
    """States by name, in one JSON file of the cache folder. Holds origins and model names, no keys, no texts.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path: Final = path

    def get(self, name: str) -> Mapping[str, Any] | None:
        """The state of that name, None when there is none or the file cannot be read."""
        found = self._read().get(name)
        return found if isinstance(found, dict) else None

    def put(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep a state. What other processes kept meanwhile stays; of two for one name the later wins."""
        if self._path is None:
            return
        table = {key: value for key, value in self._read().items() if key != name}
        newest = dict(list(table.items())[-(_MOST_ENTRIES - 1) :])
        with suppress(OSError):
            self._write(self._path, msgspec.json.encode({**newest, name: state}))

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                found = msgspec.json.decode(file.read(_MOST_BYTES))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def learned_file(folder: str | None) -> LearnedFile:
    """The file in a folder, or in the user's cache folder."""
    if folder is None:
        import platformdirs

        folder = platformdirs.user_cache_dir("llmopt", appauthor=False)
    return LearnedFile(Path(folder) / "limits.json")
