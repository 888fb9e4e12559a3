"""Output and errors of all commands: messages, tables, JSON, number formats, exit codes, shared options.

Results go to standard output, messages to standard error. Text that a provider, a file or a user wrote is
made safe for a terminal first (`printable`).

It prints, and asks whether standard output is a terminal. LLMOPT_TRACEBACK is read from the environment; a traceback
reads the source files that it shows. For a table on a terminal rich is imported, prints it itself, and reads the size
of the terminal and variables such as NO_COLOR. `RunSummary` reads the monotonic clock and belongs to one command.
"""

from __future__ import annotations

import os
import re
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

from llmopt.errors import ConfigError, InvalidInput, LLMOptError, LocalRejection, PluginError, UnknownProvider
from llmopt.values.embeddings import EmbeddedPart

_F = TypeVar("_F", bound=Callable[..., Any])
_TRACEBACK: Final = "LLMOPT_TRACEBACK"
_MAX_NAMES: Final = 20
_MAX_NAME_LENGTH: Final = 40
_LINE_END: Final = re.compile("[\x85\u2028\u2029]")
# C0 without tab and line feed, DEL, C1, line separators, and what overrides the direction of text.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNITS_OF_TIME: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SETUP = 3
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot continue. The message is one sentence that says what to do.

    Args:
        message: for people.
        code: exit code of the process.
    """

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


class InputError(CommandError):
    """The input cannot be read; the message names the file, and the line where there is one."""


def exit_code_for(error: BaseException) -> Exit:
    """The exit code for an error that ended a command."""
    if isinstance(error, CommandError):
        return error.code
    # A code of its own, so that a script can tell a wrong set-up from a wrong input.
    if isinstance(error, (ConfigError, UnknownProvider, PluginError)):
        return Exit.SETUP
    if isinstance(error, InvalidInput):
        return Exit.USAGE
    return Exit.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Exit.FAILED


def error_message(error: BaseException) -> str:
    """An error as one sentence for people."""
    if isinstance(error, LLMOptError):
        return error.message
    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
    return (
        f"unexpected error in llmopt or a plugin ({type(error).__name__}: {error}); "
        "run the command again with LLMOPT_TRACEBACK=1 to see where, and report it."
    )


def error_as_json(error: BaseException) -> dict[str, Any]:
    """An error for machines."""
    return {"type": type(error).__name__, "message": error_message(error)}


def print_message(message: str) -> None:
    """Print a line on standard error."""
    click.echo(printable(message, lines=True), err=True)


def print_traceback(error: BaseException) -> None:
    """Print the traceback of an error and of its causes on standard error, if LLMOPT_TRACEBACK is set."""
    if os.environ.get(_TRACEBACK):
        print_message("".join(traceback.format_exception(error)).rstrip())


def print_error(error: BaseException, *, more: str = "") -> None:
    """Print an error on standard error, with its traceback if LLMOPT_TRACEBACK is set.

    Args:
        error: what went wrong.
        more: a further sentence.
    """
    print_traceback(error)
    sentence = error_message(error)
    if more and not sentence.endswith((".", "!", "?")):
        sentence += "."
    print_message(f"llmopt: {sentence}{f' {more}' if more else ''}")


def with_name(name: str, sentence: str) -> str:
    """A sentence about something, preceded by its name unless the sentence has it."""
    return sentence if name in sentence else f"{name}: {sentence}"


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    click.echo(_escaped(msgspec.json.format(msgspec.json.encode(value), indent=2)))


def print_json_line(value: Any) -> None:
    """Print a value as JSON on one line of standard output."""
    click.echo(_escaped(msgspec.json.encode(value)))


def _escaped(encoded: bytes) -> str:
    """JSON in which no character acts on a terminal or ends a line; a parser reads the same values."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded.decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, no_color: bool) -> None:
    """Print rows on standard output: a table on a terminal, tab-separated lines anywhere else.

    Args:
        columns: headings, printed on a terminal only. A column that is empty in all rows is left out there.
        rows: a cell for each column.
        no_color: print without colours.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            # Without headings and borders, so that cut and awk can read it.
            click.echo("\t".join(row))
    elif cells:
        _print_rich_table(columns, cells, no_color=no_color)


def _print_rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, no_color: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    filled = [column for column in range(len(columns)) if any(row[column] for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in filled:
        # Folded, not truncated: every name can be copied whole.
        table.add_column(columns[column], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[column]) for column in filled))
    Console(no_color=no_color or None).print(table)


def printable(text: str, *, lines: bool = False) -> str:
    """Text without control characters, which could move the cursor or change colours.

    Args:
        text: what a provider, a file or a user wrote.
        lines: whether to keep line breaks.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or (lines and each == "\n") else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


def printable_text(text: str) -> str:
    """What a model wrote, for a terminal or a pipe: all but control characters, and line ends as line feeds.

    Joiners and marks of direction stay, because emoji and the scripts of some languages need them.
    """
    # A carriage return is dropped: the line feed that belongs to it may come with the next part of a stream.
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", _LINE_END.sub("\n", text.replace("\r", "")))


def format_number(value: float) -> str:
    """A whole number with thousands separators."""
    return f"{round(value):,}"


def format_count(value: int, noun: str) -> str:
    """A number with its noun: "1 text", "2 texts"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def quoted_list(names: Iterable[object]) -> str:
    """Names in quotes; long names and long lists are shortened."""
    quoted = [repr(str(name)) for name in names]
    listed = [
        name if len(name) <= _MAX_NAME_LENGTH else f"{name[:_MAX_NAME_LENGTH]}…'"
        for name in quoted[:_MAX_NAMES]
    ]
    more = len(quoted) - len(listed)
    return ", ".join([*listed, *([f"and {more} more"] if more > 0 else [])])


def format_age(seconds: float, *, stale: bool = False) -> str:
    """An age: "now", "5 min", "3 h, stale"."""
    age = next((f"{int(seconds // size)} {unit}" for size, unit in _UNITS_OF_TIME if seconds >= size), "now")
    return f"{age}, stale" if stale else age


def format_price(money: float | None, currency: str) -> str:
    """A sum of money: "$0.02", "1.5 EUR"; "" if it is not known."""
    if money is None:
        return ""
    number = f"{money:.6f}".rstrip("0").rstrip(".")
    return f"${number}" if currency == "USD" else f"{number} {currency}"


def format_bytes(size: int) -> str:
    """A number of bytes: "512 B", "3.4 MiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


# Options and help that several commands share.

config_option: Final = click.option(
    "--config",
    metavar="FILE",
    help="Configuration file, instead of ./llmopt.toml or the one in your configuration folder.",
)
json_option: Final = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='Print one JSON object on standard output; {"error": ...} if the command fails without a result.',
)
no_color_option: Final = click.option(
    "--no-color", is_flag=True, help="Print without colours, as with the variable NO_COLOR."
)


def common_options(command: _F) -> _F:
    """Add the options of every command: --config, --json, --no-color."""
    return config_option(json_option(no_color_option(report_errors_as_json(command))))


def report_errors_as_json(command: _F) -> _F:
    """With --json, also print the error that ends a command as the last JSON object on standard output."""

    @wraps(command)
    def run(**options: Any) -> Any:
        try:
            return command(**options)
        # click reports a wrong usage itself, and behind a closed pipe nobody reads JSON.
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if options["as_json"]:
                print_json_line({"error": error_as_json(error)})
            raise

    return cast("_F", run)


def example(*lines: str) -> str:
    """The epilog of a command's help: examples to type."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


# The numbers of one embedding run.

_MAX_ERRORS: Final = 1_000
_MAX_LISTED_FAILURES: Final = 5


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


class RunSummary:
    """Counts texts, failures, requests and tokens as results arrive.

    Args:
        now: a monotonic clock, in seconds.

    Attributes:
        texts: texts with a result, failed ones included.
        failed: texts that failed.
        errors: the first failures, with their lines.
        requests: HTTP requests sent, failed ones included.
        tokens: tokens of the texts, as counted by the provider.
        dimensions: length of the vectors, 0 before the first one.
        model: the model that the provider names.
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
    def first_failure(self) -> FailedText:
        """The first failure that a server or a connection caused, else the first one."""
        causes = (each for each in self.errors if not isinstance(each.error, LocalRejection))
        return next(causes, self.errors[0])

    @property
    def succeeded(self) -> int:
        """Texts that have a vector."""
        return self.texts - self.failed

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self._now() - self._started

    def add(self, part: EmbeddedPart, lines: list[int]) -> None:
        """Add results.

        Args:
            part: the results.
            lines: for each text its line in the input.
        """
        self.texts += len(lines)
        self.failed += len(part.errors)
        room = _MAX_ERRORS - len(self.errors)
        for index in sorted(part.errors)[: max(0, room)]:
            line = lines[index - part.start]
            self.errors.append(FailedText(index=index, line=line, error=part.errors[index]))
        self.tokens += part.usage.prompt_tokens or part.usage.total_tokens
        self.dimensions = self.dimensions or int(part.vectors.shape[1])
        self.model = self.model or part.model

    def count_requests(self, stats: Mapping[str, Any]) -> None:
        """Take the number of requests from a client's ``stats()``."""
        self.requests = sum(at["requests"] for entry in stats.values() for at in entry.values())

    def closing_line(self, file: str, skipped: int, replaced: int = 0) -> str:
        """The closing line for people.

        Args:
            file: where the rows are.
            skipped: blank lines of the input.
            replaced: halves of surrogate pairs that were replaced.
        """
        seconds = self.seconds
        parts = [
            f"{format_count(self.texts, 'text')} -> float32 {self.texts:,} x {self.dimensions:,} in {file}",
            format_count(self.requests, "request"),
            format_count(self.tokens, "token"),
            f"{seconds:.1f} s",
            f"{format_number(self.succeeded / seconds if seconds else 0)} texts/s",
        ]
        if skipped:
            parts.append(f"{format_count(skipped, 'blank line')} skipped")
        if replaced:
            parts.append(f"{format_count(replaced, 'half surrogate pair')} replaced with U+FFFD")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return ", ".join(parts)

    def failure_lines(self) -> list[str]:
        """The first failures, each in one line, and how many more there are."""
        shown = [f"line {each.line}: {each.error.message}" for each in self.errors[:_MAX_LISTED_FAILURES]]
        more = self.failed - len(shown)
        return [*shown, f"and {more:,} more."] if more else shown

    def as_table(self) -> dict[str, Any]:
        """All of it for machines."""
        seconds = self.seconds
        return {
            "texts": self.texts,
            "shape": [self.texts, self.dimensions],
            "failed": self.failed,
            "requests": self.requests,
            "tokens": self.tokens,
            "seconds": round(seconds, 3),
            "texts_per_second": round(self.succeeded / seconds) if seconds else 0,
            "errors": [
                {"index": each.index, "line": each.line, **error_as_json(each.error)} for each in self.errors
            ],
        }
