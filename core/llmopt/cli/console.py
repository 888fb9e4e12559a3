"""Rows for people: a table on a terminal, tab-separated lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from functools import wraps
from typing import Any, Final, TypeVar, cast

import click
import msgspec
from attrs import frozen

from llmopt.errors import ConfigError, InvalidInput, LLMOptError, PluginError, UnknownProvider
from llmopt.values.embeddings import EmbeddedPart

# Text for people: numbers, and what others wrote made safe for a terminal.

_MAX_NAMES: Final = 20
_MAX_NAME: Final = 40


def plain(text: str, *, lines: bool = False) -> str:
    """Text without characters that move a cursor or change a colour.

    Args:
        text: what a provider, a file or a user wrote.
        lines: whether line breaks are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each == "\n") else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


def number(value: float) -> str:
    """A whole number with its thousands marked."""
    return f"{round(value):,}"


def count(value: int, noun: str) -> str:
    """A number with its noun: "1 text", "2 texts"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def listed(names: Iterable[object]) -> str:
    """Names in quotes, few and short enough for a message."""
    shown = [repr(str(name)) for name in names]
    cut = [name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…'" for name in shown[:_MAX_NAMES]]
    more = len(shown) - len(cut)
    return ", ".join([*cut, *([f"and {more} more"] if more > 0 else [])])


_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


def age(seconds: float, *, stale: bool = False) -> str:
    """How old something is: "now", "5 min", "3 h, stale"."""
    told = next((f"{int(seconds // size)} {unit}" for size, unit in _UNITS if seconds >= size), "now")
    return f"{told}, stale" if stale else told


def amount(money: float | None, currency: str) -> str:
    """A sum of money: "$0.02", "1.5 EUR"; "" for one that is not known."""
    if money is None:
        return ""
    plain_number = f"{money:.6f}".rstrip("0").rstrip(".")
    return f"${plain_number}" if currency == "USD" else f"{plain_number} {currency}"


def bytes_of(size: int) -> str:
    """A number of bytes: "512 B", "3.4 MiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, no_color: bool) -> None:
    """Print rows on standard output.

    Args:
        columns: heads, shown on a terminal only. A column without any content is left out there.
        rows: a cell for each column.
        no_color: without colours.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            click.echo("\t".join(row))
    elif cells:
        _draw(columns, cells, no_color=no_color)


def _draw(columns: Sequence[str], rows: Sequence[Sequence[str]], *, no_color: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    filled = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place in filled:
        # Folded, not cut: every name can be copied whole.
        table.add_column(columns[place], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[place]) for place in filled))
    Console(no_color=no_color or None).print(table)


# How a command ends: its exit code, and the sentence that says why.


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SETUP = 3
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot go on. The message is one sentence with what to do.

    Args:
        message: for people.
        code: what the process exits with.
    """

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


class BadInput(CommandError):
    """The input cannot be read; the message names the file, and the line where there is one."""


def code_of(error: BaseException) -> Exit:
    """The exit code that an error stands for."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, (ConfigError, UnknownProvider, PluginError)):
        return Exit.SETUP
    if isinstance(error, InvalidInput):
        return Exit.USAGE
    return Exit.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Exit.FAILED


def sentence_of(error: BaseException) -> str:
    """What to tell people about an error."""
    if isinstance(error, LLMOptError):
        return error.message
    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    return (
        f"this is a fault of llmopt or of a plugin ({type(error).__name__}: {error}); "
        "run it again with LLMOPT_TRACEBACK=1 to see where, and report it."
    )


# What a command says on standard error.

_TRACEBACK: Final = "LLMOPT_TRACEBACK"


def say(message: str) -> None:
    """A line for people."""
    click.echo(plain(message, lines=True), err=True)


def tell(error: BaseException, *, more: str = "") -> None:
    """The sentence of an error; where it comes from as well, if LLMOPT_TRACEBACK is set.

    Args:
        error: what went wrong.
        more: a further sentence.
    """
    if os.environ.get(_TRACEBACK):
        traceback.print_exception(error)
    sentence = sentence_of(error)
    if more and not sentence.endswith((".", "!", "?")):
        sentence += "."
    say(f"llmopt: {sentence}{f' {more}' if more else ''}")


def named(name: str, sentence: str) -> str:
    """A sentence about something, with its name in front unless it is there already."""
    return sentence if name in sentence else f"{name}: {sentence}"


# JSON objects on standard output.


def print_json(value: Any) -> None:
    """Print a value, indented; what others wrote in it is escaped by JSON's own rules."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_line(value: Any) -> None:
    """Print a value on a line of its own."""
    click.echo(msgspec.json.encode(value).decode())


# Options that several commands have.

_F = TypeVar("_F", bound=Callable[..., Any])
config: Final = click.option(
    "--config",
    metavar="FILE",
    help="Configuration file, instead of ./llmopt.toml or the one in your configuration folder.",
)
as_json: Final = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='One JSON object on standard output, for machines; {"error": ...} where there is nothing else to tell.',
)
no_color: Final = click.option(
    "--no-color", is_flag=True, help="No colours; the variable NO_COLOR does the same."
)


def shared(command: _F) -> _F:
    """The options of every command: --config, --json, --no-color."""
    return config(as_json(no_color(telling_errors(command))))


def telling_errors(command: _F) -> _F:
    """With --json a command that ends in an error says so on standard output too, as its last JSON object."""

    @wraps(command)
    def run(**options: Any) -> Any:
        try:
            return command(**options)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if options["as_json"]:
                print_line({"error": error_table(error)})
            raise

    return cast("_F", run)


def example(*lines: str) -> str:
    """The epilog of a command: an example, shown as it is typed."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


# What an embedding run came to, in numbers.

_MAX_ERRORS: Final = 1_000
_MAX_SHOWN: Final = 5


@frozen(kw_only=True)
class FailedText:
    """A text that could not be embedded.

    Attributes:
        index: its row.
        line: its line in the input.
        error: why.
    """

    index: int
    line: int
    error: LLMOptError


class Tally:
    """Counts texts, failures, requests and tokens as parts arrive.

    Args:
        now: a clock in seconds.

    Attributes:
        texts: texts answered, well or not.
        failed: those that failed.
        errors: the first of them, with their lines.
        requests: HTTP requests made, whatever became of them.
        tokens: tokens of the texts, as the provider counted them.
        dimensions: numbers in a vector, 0 while no vector is there.
        model: who answered.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now: Final = now
        self._started: Final = now()
        self.texts = 0
        self.failed = 0
        self.errors: Final[list[FailedText]] = []
        self.requests = 0
        self.tokens = 0
        self.dimensions = 0
        self.model = ""

    @property
    def good(self) -> int:
        """Texts that have their vector."""
        return self.texts - self.failed

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self._now() - self._started

    def take(self, part: EmbeddedPart, lines: list[int]) -> None:
        """Count a part whose texts stand in these lines."""
        self.texts += len(lines)
        self.failed += len(part.errors)
        room = _MAX_ERRORS - len(self.errors)
        for index in sorted(part.errors)[: max(0, room)]:
            line = lines[index - part.start]
            self.errors.append(FailedText(index=index, line=line, error=part.errors[index]))
        self.tokens += part.usage.prompt_tokens or part.usage.total_tokens
        self.dimensions = self.dimensions or int(part.vectors.shape[1])
        self.model = self.model or part.model

    def sent(self, stats: Mapping[str, Any]) -> None:
        """Count the requests by a client's ``stats()``."""
        self.requests = sum(at["requests"] for entry in stats.values() for at in entry.values())

    def line(self, file: str, skipped: int) -> str:
        """The closing line for people."""
        seconds = self.seconds
        parts = [
            f"{count(self.texts, 'text')} -> float32 {self.texts:,} x {self.dimensions:,} in {file}",
            count(self.requests, "request"),
            count(self.tokens, "token"),
            f"{seconds:.1f} s",
            f"{number(self.good / seconds if seconds else 0)} texts/s",
        ]
        if skipped:
            parts.append(f"{count(skipped, 'blank line')} skipped")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return ", ".join(parts)

    def failures(self) -> list[str]:
        """The first failures, each in one line, and how many more there are."""
        told = [f"line {each.line}: {each.error.message}" for each in self.errors[:_MAX_SHOWN]]
        more = self.failed - len(told)
        return [*told, f"and {more:,} more."] if more else told

    def table(self) -> dict[str, Any]:
        """The same for machines."""
        seconds = self.seconds
        return {
            "texts": self.texts,
            "shape": [self.texts, self.dimensions],
            "failed": self.failed,
            "requests": self.requests,
            "tokens": self.tokens,
            "seconds": round(seconds, 3),
            "texts_per_second": round(self.good / seconds) if seconds else 0,
            "errors": [
                {"index": each.index, "line": each.line, **error_table(each.error)} for each in self.errors
            ],
        }


def error_table(error: BaseException) -> dict[str, Any]:
    """An error for machines."""
    return {"type": type(error).__name__, "message": sentence_of(error)}
