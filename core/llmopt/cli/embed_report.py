"""How a run of ``llmopt embed`` ended, for people and for machines."""

from __future__ import annotations

from typing import Final

from llmopt.cli.jsonout import print_json
from llmopt.cli.tally import Tally, error_table
from llmopt.cli.tell import say, tell


class EmbedReport:
    """What is said at the end.

    Args:
        tally: the numbers.
        file: where the rows are, None if nowhere.
        skipped: blank lines.
        cause: why the run did not end well, None if it did.
    """

    def __init__(self, tally: Tally, *, file: str | None, skipped: int, cause: BaseException | None) -> None:
        self._tally: Final = tally
        self._file: Final = file
        self._skipped: Final = skipped
        self._cause: Final = cause

    def show(self, *, as_json: bool, quiet: bool) -> None:
        """Say it: errors and the closing line on standard error, the JSON object on standard output."""
        if self._cause is not None:
            tell(self._cause, more=self._kept())
        elif self._tally.failed:
            for line in self._tally.failures():
                say(f"llmopt: {line}")
        if as_json:
            print_json(self._table())
        elif self._cause is None and not quiet:
            say(self._tally.line(self._file or "", self._skipped))

    def _kept(self) -> str:
        if self._file is None:
            return "No vectors were written."
        rows = self._tally.good
        failed = f" among {self._tally.failed:,} failed ones" if self._tally.failed else ""
        return f"{rows:,} finished {'row is' if rows == 1 else 'rows are'} kept in {self._file}{failed}."

    def _table(self) -> dict[str, object]:
        return {
            "complete": self._cause is None,
            "file": self._file,
            "model": self._tally.model,
            **self._tally.table(),
            "skipped": self._skipped,
            "error": None if self._cause is None else error_table(self._cause),
        }
