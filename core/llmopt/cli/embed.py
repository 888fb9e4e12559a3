"""``llmopt embed``: embed the texts of a file into a file of vectors.

It reads the configuration, the environment and the input file or standard input, sends requests through
`llmopt.Client`, writes the output file, and prints. The client works in a thread of its own, where it also reads and
writes its cache on disk, runs the plugin's hooks and calls the progress bar's listener; rich draws the bar in a third
thread. This one imports the plugin and calls its hook `provider_profile`, reads the texts, writes the vectors and waits
for the client; nothing is awaited here. While it runs, the signal handlers of the process are replaced
(`llmopt.cli.progress`). The summary measures time by the monotonic clock.
"""

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
    RunSummary,
    common_options,
    error_as_json,
    example,
    exit_code_for,
    print_error,
    print_json,
    print_message,
    print_traceback,
)
from llmopt.cli.progress import Interrupts, ProgressDisplay, progress_display
from llmopt.cli.readers import FORMATS as INPUT_FORMATS
from llmopt.cli.readers import InputFormat, Texts, input_format_for, text_key
from llmopt.cli.writers import FORMATS as OUTPUT_FORMATS
from llmopt.cli.writers import OutputFile, OutputFormat, Rows, Writer, open_writer, output_format_for
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
@click.option(
    "--model", required=True, metavar="PROVIDER/MODEL", help="Embedding model, such as local/default."
)
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
@click.option("--quiet", is_flag=True, help="No progress bar and no summary line.")
@common_options
def command(**options: Any) -> Exit:
    """Embed the texts of INPUT into a file of vectors.

    INPUT is .txt or any other extension (one text per line), .jsonl (--field), .csv (--column), or - for
    standard input. Blank lines are skipped. An input file is checked to its end before the first request.

    FILE gets one row for each text, in order: .npy a float32 array, .jsonl one JSON object per line with index,
    line and embedding, .parquet these as columns. A failed text's row is NaN, or null with its error. FILE is
    created when all rows are written; a run that is interrupted or fails leaves its finished rows in FILE.partial.
    """
    return embed_file(EmbedArguments(**options))


# Arguments of the command.


@frozen(kw_only=True)
class EmbedArguments:
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
    def checked_output_format(self) -> OutputFormat:
        """The format to write.

        Raises:
            CommandError: the extension stands for none, or the format has no room for texts.
        """
        output_format = self.output_format or output_format_for(self.out)
        if self.with_text and output_format == "npy":
            raise CommandError("--with-text needs .jsonl or .parquet: an .npy file holds numbers only.")
        return output_format

    def texts(self) -> Texts:
        """The input.

        Raises:
            CommandError: it cannot be read.
        """
        input_format = self.input_format or input_format_for(self.source)
        name = text_key(input_format, self.field, self.column)
        return Texts(
            self.source, input_format, name=name, limit=self.limit, check_texts=self.errors == "raise"
        )

    def call(self) -> dict[str, Any]:
        """The options of the call itself. Failed rows always come back, for this command to judge."""
        return {
            "dimensions": self.dimensions,
            "input_type": self.input_type,
            "deadline": self.deadline,
            "errors": "return",
        }


# The report at the end.


class EmbedReport:
    """What is said at the end.

    Args:
        summary: the numbers.
        file: where the rows are, None if nowhere.
        texts: the input, for what was skipped and replaced in it.
        cause: why the run did not end well, None if it did.
    """

    def __init__(
        self, summary: RunSummary, *, file: str | None, texts: Texts, cause: BaseException | None
    ) -> None:
        self._summary: Final = summary
        self._file: Final = file
        self._texts: Final = texts
        self._cause: Final = cause

    def show(self, *, as_json: bool, quiet: bool) -> None:
        """Say it: errors and the closing line on standard error, the JSON object on standard output."""
        if self._cause is not None:
            print_error(self._cause, more=self._kept())
        elif self._summary.failed:
            print_traceback(self._summary.first_failure.error)
            for line in self._summary.failure_lines():
                print_message(f"llmopt: {line}")
        if as_json:
            print_json(self._table())
        elif self._cause is None and not quiet:
            texts = self._texts
            print_message(self._summary.closing_line(self._file or "", texts.skipped, texts.replaced))

    def _kept(self) -> str:
        if self._file is None:
            return "No vectors were written."
        rows = self._summary.succeeded
        failed = f" among {self._summary.failed:,} failed ones" if self._summary.failed else ""
        return f"{rows:,} finished {'row is' if rows == 1 else 'rows are'} kept in {self._file}{failed}."

    def _table(self) -> dict[str, object]:
        return {
            "complete": self._cause is None,
            "file": self._file,
            "model": self._summary.model,
            **self._summary.as_table(),
            "skipped": self._texts.skipped,
            "replaced": self._texts.replaced,
            "error": None if self._cause is None else error_as_json(self._cause),
        }


# Texts in, rows out, in order.

OpenParts = Callable[[Iterator[str]], AbstractContextManager[Iterable[EmbeddedPart]]]
"""Starts the embedding of texts; gives its parts in order, failed rows among them."""


class FileEmbedding:
    """Feeds texts to an embedding and writes down what comes back.

    Args:
        texts: each with the number of its line.
        writer: takes the rows.
        summary: counts them.
        stop_at_failure: whether no more is read once a text failed. What is under way by then is
            still awaited and written: it is paid for.
        with_texts: whether the texts are written too.
    """

    def __init__(
        self,
        texts: Iterable[tuple[int, str]],
        writer: Writer,
        summary: RunSummary,
        *,
        stop_at_failure: bool,
        with_texts: bool,
    ) -> None:
        self._source: Final = texts
        self._writer: Final = writer
        self._summary: Final = summary
        self._stop_at_failure: Final = stop_at_failure
        # What was read and has not come back yet; bounded by what the embedding reads ahead.
        self._lines: Final[deque[int]] = deque()
        self._texts: Final[deque[str] | None] = deque() if with_texts else None

    def run(self, open_parts: OpenParts, interrupts: Interrupts, progress_display: ProgressDisplay) -> None:
        """Do all of it.

        Raises:
            InputError: a text cannot be read; the rows before it are written.
            OSError: the rows cannot be written.
            KeyboardInterrupt: the user interrupted.
        """
        with open_parts(self._feed()) as parts:
            for part in parts:
                # A signal between two writes would leave rows and counts that disagree.
                with interrupts.deferred():
                    self._take(part)
                progress_display.update(self._summary)

    def _feed(self) -> Iterator[str]:
        for line, text in self._source:
            if self._stop_at_failure and self._summary.failed:
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
        self._summary.add(part, lines)


# The whole command, from its arguments to its exit code.


def embed_file(options: EmbedArguments) -> Exit:
    """Embed a file of texts into a file of vectors.

    Raises:
        CommandError, LLMOptError: it cannot even begin; nothing was sent or written.
    """
    output_format = options.checked_output_format
    texts = options.texts()
    output = OutputFile(options.out, texts.source)
    config = load_config(options.config, environ=os.environ)
    _check_model(config, options.model)
    with Interrupts() as interrupts:
        try:
            # Before anything is sent: a file that cannot be written must not cost money.
            output.create()
            writer = open_writer(
                output_format,
                output.temporary,
                with_errors=options.errors == "return",
                with_text=options.with_text,
            )
            return _Embedding(options, config, texts, output, writer).run(interrupts)
        finally:
            output.discard()


def _check_model(config: Config, model: str) -> None:
    """See that the provider is there and has a key, before anything large is read."""
    provider, _ = Registry(config, (), os.environ).resolve(model, "embeddings")
    for endpoint in provider.endpoints:
        endpoint.credential.static_secret()


class _Embedding:
    """A run with its input and output, all of it checked."""

    def __init__(
        self, options: EmbedArguments, config: Config, texts: Texts, output: OutputFile, writer: Writer
    ) -> None:
        self._options: Final = options
        self._config: Final = config
        self._texts: Final = texts
        self._output: Final = output
        self._writer: Final = writer
        self._summary: Final = RunSummary()

    def run(self, interrupts: Interrupts) -> Exit:
        if self._texts.source.interactive and not self._options.quiet:
            print_message("Type a text a line, and Ctrl-D at the end.")
        try:
            total = self._texts.total()
        except BaseException:
            self._writer.close()
            raise
        cause = self._attempt(total, interrupts)
        interrupts.defer_all()
        cause, file = self._finish_file(cause)
        report = EmbedReport(self._summary, file=file, texts=self._texts, cause=cause)
        report.show(as_json=self._options.as_json, quiet=self._options.quiet)
        if cause is not None:
            return exit_code_for(cause)
        return Exit.FAILED if self._summary.failed else Exit.OK

    def _attempt(self, total: int | None, interrupts: Interrupts) -> BaseException | None:
        """Embed all of it; what it ended with, None if all went well."""
        try:
            self._embed(total, interrupts)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - after any error the finished rows are kept
            return error
        return self._failure()

    def _embed(self, total: int | None, interrupts: Interrupts) -> None:
        from llmopt.client.sync_client import Client

        options = self._options
        run = FileEmbedding(
            self._texts,
            self._writer,
            self._summary,
            stop_at_failure=options.errors == "raise",
            with_texts=options.with_text,
        )
        look = progress_display(total, quiet=options.quiet, no_color=options.no_color)
        with look as display, Client(self._config, on_event=display.on_event) as client:

            def open_parts(feed: Iterator[str]) -> AbstractContextManager[Iterable[EmbeddedPart]]:
                return client.embed_iter(options.model, feed, **options.call())

            try:
                run.run(open_parts, interrupts, display)
            finally:
                self._summary.count_requests(client.stats())

    def _failure(self) -> CommandError | None:
        """The error if the output file must not be committed, or None."""
        summary = self._summary
        if not summary.failed or (summary.succeeded and self._options.errors == "return"):
            return None
        first = summary.first_failure
        code = Exit.FAILED if summary.succeeded else exit_code_for(first.error)
        many = "all texts" if not summary.succeeded else f"{summary.failed:,} of {summary.texts:,} texts"
        failure = CommandError(f"{many} failed; the first, in line {first.line}: {first.error.message}", code)
        failure.__cause__ = first.error
        return failure

    def _finish_file(self, cause: BaseException | None) -> tuple[BaseException | None, str | None]:
        """Commit the file, or keep the finished rows; the name of the file, None if nothing was kept."""
        if cause is not None and not self._summary.succeeded:
            self._writer.close()
            return cause, None
        try:
            self._writer.finish()
            if cause is None:
                self._output.commit()
                return None, self._output.name
            return cause, self._output.keep_partial()
        except Exception as error:  # noqa: BLE001 - told beside the cause
            return cause or error, None
