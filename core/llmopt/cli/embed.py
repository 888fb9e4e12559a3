"""``llmopt embed``."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import click
from attrs import frozen

from llmopt.cli.console import (
    CommandError,
    Exit,
    Tally,
    code_of,
    error_table,
    example,
    print_json,
    say,
    shared,
    tell,
)
from llmopt.cli.progress import Interrupts, Watcher, watcher
from llmopt.cli.readers import FORMATS as INPUT_FORMATS
from llmopt.cli.readers import InputFormat, Texts, chosen_name, form_of
from llmopt.cli.writers import FORMATS as OUTPUT_FORMATS
from llmopt.cli.writers import OutputFile, OutputFormat, Rows, Writer, open_writer, output_form
from llmopt.config.load import load_config
from llmopt.providers.registry import Registry
from llmopt.values.calls import ErrorMode
from llmopt.values.embeddings import EmbeddedPart

if TYPE_CHECKING:
    from llmopt.config.schema import Config


@click.command(
    "embed",
    epilog=example(
        "llmopt embed notes.txt --model local/default --out notes.npy",
        "llmopt embed docs.jsonl --field body --model openai/text-embedding-3-small --out docs.parquet",
        "cut -f 2 table.tsv | llmopt embed - --model local/default --out column.jsonl",
    ),
)
@click.argument("source", metavar="INPUT")
@click.option("--model", required=True, metavar="PROVIDER/MODEL", help="Who embeds, such as local/default.")
@click.option("--out", required=True, metavar="FILE", help="File to write: .npy, .jsonl or .parquet.")
@click.option(
    "--input-format", type=click.Choice(INPUT_FORMATS), help="Format of INPUT, whatever its extension."
)
@click.option("--field", metavar="NAME", help="Field of the text in .jsonl  [default: text]")
@click.option("--column", metavar="NAME", help="Column of the text in .csv  [default: text]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Embed only the first N texts.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(OUTPUT_FORMATS),
    help="Format of FILE, whatever its extension.",
)
@click.option("--with-text", is_flag=True, help="Write the texts too (.jsonl and .parquet).")
@click.option(
    "--dimensions",
    type=click.IntRange(min=1),
    metavar="N",
    help="Length of the vectors, for models that can shorten them.",
)
@click.option("--input-type", metavar="TYPE", help="What the texts are for, such as query or document.")
@click.option(
    "--errors",
    type=click.Choice(["raise", "return"]),
    default="raise",
    show_default=True,
    help="When a text fails: stop and keep what was finished, or go on and leave its row empty.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for the whole run.",
)
@click.option("--quiet", is_flag=True, help="No progress and no closing line.")
@shared
def command(**options: Any) -> Exit:
    """Embed the texts of INPUT into a file of vectors.

    INPUT is .txt (a text a line; so is any other extension), .jsonl (--field), .csv (--column), or - for
    standard input. Blank lines are skipped. An input file is checked to its end before the first request.

    FILE gets one row for each text, in order: .npy a float32 array, .jsonl an object a line with index,
    line and embedding, .parquet these as columns. A failed text's row is NaN, or null with its error. FILE
    appears when it is whole; a run that is interrupted or fails leaves its finished rows in FILE.partial.
    """
    return embed_file(EmbedOptions(**options))


# What ``llmopt embed`` was asked to do.


@frozen(kw_only=True)
class EmbedOptions:
    """The options of the command; `llmopt.cli.embed` says what each of them means."""

    source: str
    model: str
    out: str
    input_format: InputFormat | None = None
    field: str | None = None
    column: str | None = None
    limit: int | None = None
    output_format: OutputFormat | None = None
    with_text: bool = False
    dimensions: int | None = None
    input_type: str | None = None
    errors: ErrorMode = "raise"
    deadline: float | None = None
    config: str | None = None
    as_json: bool = False
    quiet: bool = False
    no_color: bool = False

    @property
    def form(self) -> OutputFormat:
        """The format to write.

        Raises:
            CommandError: the extension stands for none, or the format has no room for texts.
        """
        form = self.output_format or output_form(self.out)
        if self.with_text and form == "npy":
            raise CommandError("--with-text needs .jsonl or .parquet: an .npy file holds numbers only.")
        return form

    def texts(self) -> Texts:
        """The input.

        Raises:
            CommandError: it cannot be read.
        """
        form = self.input_format or form_of(self.source)
        name = chosen_name(form, self.field, self.column)
        return Texts(self.source, form, name=name, limit=self.limit, refuse=self.errors == "raise")

    def call(self) -> dict[str, Any]:
        """The options of the call itself. Failed rows always come back, for this command to judge."""
        return {
            "dimensions": self.dimensions,
            "input_type": self.input_type,
            "deadline": self.deadline,
            "errors": "return",
        }


# How a run of ``llmopt embed`` ended, for people and for machines.


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


# One run of ``llmopt embed``: texts in, rows out, in order.

OpenParts = Callable[[Iterator[str]], AbstractContextManager[Iterable[EmbeddedPart]]]
"""Starts the embedding of texts; gives its parts in order, failed rows among them."""


class EmbedRun:
    """Feeds texts to an embedding and writes down what comes back.

    Args:
        texts: each with the number of its line.
        writer: takes the rows.
        tally: counts them.
        stop_at_failure: whether no more is read once a text failed. What is under way by then is
            still awaited and written: it is paid for.
        with_texts: whether the texts are written too.
    """

    def __init__(
        self,
        texts: Iterable[tuple[int, str]],
        writer: Writer,
        tally: Tally,
        *,
        stop_at_failure: bool,
        with_texts: bool,
    ) -> None:
        self._source: Final = texts
        self._writer: Final = writer
        self._tally: Final = tally
        self._stop_at_failure: Final = stop_at_failure
        # What was read and has not come back yet; bounded by what the embedding reads ahead.
        self._lines: Final[deque[int]] = deque()
        self._texts: Final[deque[str] | None] = deque() if with_texts else None

    def run(self, open_parts: OpenParts, interrupts: Interrupts, watcher: Watcher) -> None:
        """Do all of it.

        Raises:
            BadInput: a text cannot be read; the rows before it are written.
            OSError: the rows cannot be written.
            KeyboardInterrupt: somebody has had enough.
        """
        with open_parts(self._feed()) as parts:
            for part in parts:
                with interrupts.held():
                    self._take(part)
                watcher.show(self._tally)

    def _feed(self) -> Iterator[str]:
        for line, text in self._source:
            if self._stop_at_failure and self._tally.failed:
                return
            self._lines.append(line)
            if self._texts is not None:
                self._texts.append(text)
            yield text

    def _take(self, part: EmbeddedPart) -> None:
        count = len(part)
        lines = [self._lines.popleft() for _ in range(count)]
        texts = None if self._texts is None else [self._texts.popleft() for _ in range(count)]
        errors = {index - part.start: error.message for index, error in part.errors.items()}
        self._writer.add(
            Rows(start=part.start, lines=lines, vectors=part.vectors, errors=errors, texts=texts)
        )
        self._tally.take(part, lines)


# ``llmopt embed`` from its options to its exit code.


def embed_file(options: EmbedOptions) -> Exit:
    """Embed a file of texts into a file of vectors.

    Raises:
        CommandError, LLMOptError: it cannot even begin; nothing was sent or written.
    """
    form = options.form
    texts = options.texts()
    output = OutputFile(options.out, texts.source)
    config = load_config(options.config, environ=os.environ)
    _check_model(config, options.model)
    with Interrupts() as interrupts:
        try:
            output.create()
            writer = open_writer(
                form, output.temporary, with_errors=options.errors == "return", with_text=options.with_text
            )
            return _Embedding(options, config, texts, output, writer).run(interrupts)
        finally:
            output.discard()


def _check_model(config: Config, model: str) -> None:
    """See that the provider is there and has a key, before anything large is read."""
    provider, _ = Registry(config, (), os.environ).resolve(model)
    for endpoint in provider.endpoints:
        endpoint.credential.static_secret()


class _Embedding:
    """A run with its input and output, all of it checked."""

    def __init__(
        self, options: EmbedOptions, config: Config, texts: Texts, output: OutputFile, writer: Writer
    ) -> None:
        self._options: Final = options
        self._config: Final = config
        self._texts: Final = texts
        self._output: Final = output
        self._writer: Final = writer
        self._tally: Final = Tally()

    def run(self, interrupts: Interrupts) -> Exit:
        if self._texts.source.interactive and not self._options.quiet:
            say("Type a text a line, and Ctrl-D at the end.")
        try:
            total = self._texts.total()
        except BaseException:
            self._writer.close()
            raise
        cause = self._attempt(total, interrupts)
        interrupts.hold()
        cause, file = self._settle(cause)
        report = EmbedReport(self._tally, file=file, skipped=self._texts.skipped, cause=cause)
        report.show(as_json=self._options.as_json, quiet=self._options.quiet)
        if cause is not None:
            return code_of(cause)
        return Exit.FAILED if self._tally.failed else Exit.OK

    def _attempt(self, total: int | None, interrupts: Interrupts) -> BaseException | None:
        """Embed all of it; what it ended with, None if all went well."""
        try:
            self._embed(total, interrupts)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, what was earned is kept
            return error
        return self._judge()

    def _embed(self, total: int | None, interrupts: Interrupts) -> None:
        from llmopt.client.sync_client import Client

        options = self._options
        run = EmbedRun(
            self._texts,
            self._writer,
            self._tally,
            stop_at_failure=options.errors == "raise",
            with_texts=options.with_text,
        )
        look = watcher(total, quiet=options.quiet, no_color=options.no_color)
        with look as watching, Client(self._config, on_event=watching.on_event) as client:

            def open_parts(feed: Iterator[str]) -> AbstractContextManager[Iterable[EmbeddedPart]]:
                return client.embed_iter(options.model, feed, **options.call())

            try:
                run.run(open_parts, interrupts, watching)
            finally:
                self._tally.sent(client.stats())

    def _judge(self) -> CommandError | None:
        """Why the result is not to be had under its name, None if it is."""
        tally = self._tally
        if not tally.failed or (tally.good and self._options.errors == "return"):
            return None
        first = tally.errors[0]
        code = Exit.FAILED if tally.good else code_of(first.error)
        many = "all texts" if not tally.good else f"{tally.failed:,} of {tally.texts:,} texts"
        return CommandError(f"{many} failed; the first, in line {first.line}: {first.error.message}", code)

    def _settle(self, cause: BaseException | None) -> tuple[BaseException | None, str | None]:
        """Give the file its name, or keep what was earned; the file's name, None where nothing was."""
        if cause is not None and not self._tally.good:
            self._writer.close()
            return cause, None
        try:
            self._writer.finish()
            if cause is None:
                self._output.commit()
                return None, self._output.name
            return cause, self._output.keep()
        except Exception as error:  # noqa: BLE001 - told beside the cause
            return cause or error, None
