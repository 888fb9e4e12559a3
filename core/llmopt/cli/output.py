"""The file a command writes: whole under its name, or what was earned under another."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmopt.cli.exits import CommandError
from llmopt.cli.text import plain

if TYPE_CHECKING:
    from llmopt.cli.readers.source import Source

PARTIAL: Final = ".partial"


class OutputFile:
    """A file that appears under its name when it is finished, and not before.

    Args:
        path: the name it gets. A link is followed.
        source: the input, which must be another file.

    Raises:
        CommandError: it cannot be written; nothing was changed.
    """

    def __init__(self, path: str, source: Source) -> None:
        self.name: Final = plain(path)
        if path == "-":
            raise CommandError("--out must name a file; standard output takes no vectors.")
        self._target: Final = Path(os.path.realpath(path))
        self._check(source)
        # Beside it, because only within one file system can it be renamed at once.
        self.temporary: Final = self._target.with_name(f".llmopt-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._settled = False

    def create(self) -> None:
        """Make the temporary file, which proves that it can be made."""
        try:
            os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            raise self._refusal(error) from None

    def commit(self) -> None:
        """Give the temporary file its name.

        Raises:
            CommandError: the system refuses.
        """
        try:
            self.temporary.replace(self._target)
        except OSError as error:
            raise self._refusal(error) from None
        self._settled = True

    def keep(self) -> str:
        """Keep the temporary file under a name that says it is not whole.

        Returns:
            That name.
        """
        self._settled = True
        try:
            self.temporary.replace(f"{self._target}{PARTIAL}")
        except OSError:
            # The name may be too long; what was earned stays where it is.
            return str(self.temporary)
        return self.name + PARTIAL

    def discard(self) -> None:
        """Remove the temporary file, unless it was given a name."""
        if not self._settled:
            with suppress(OSError):
                self.temporary.unlink()

    def _check(self, source: Source) -> None:
        try:
            status = self._target.stat()
        except FileNotFoundError:
            self._check_folder()
            return
        except (OSError, ValueError) as error:
            raise self._refusal(error) from None
        if stat.S_ISDIR(status.st_mode):
            raise CommandError(f"--out {self.name} is a directory; name a file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise CommandError(f"--out {self.name} is not a regular file; name one that is, or a new one.")
        if source.is_file(status):
            raise CommandError(f"--out {self.name} is the input itself; name another file.")
        if not os.access(self._target, os.W_OK):
            raise CommandError(f"--out {self.name} cannot be written: Permission denied.")
        self._check_folder()

    def _check_folder(self) -> None:
        folder = self._target.parent
        if not folder.is_dir():
            raise CommandError(
                f"--out {self.name}: the directory {plain(str(folder))} does not exist; make it first."
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CommandError(
                f"--out {self.name}: the directory {plain(str(folder))} cannot be written to: Permission denied."
            )

    def _refusal(self, error: Exception) -> CommandError:
        reason = getattr(error, "strerror", None) or "this is no path"
        return CommandError(f"--out {self.name} cannot be written: {reason}.")
