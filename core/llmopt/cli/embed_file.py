"""``llmopt embed`` from its options to its exit code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from llmopt.cli.embed_options import EmbedOptions
from llmopt.cli.embed_report import EmbedReport
from llmopt.cli.embed_run import EmbedRun
from llmopt.cli.exits import CommandError, Exit, code_of
from llmopt.cli.interrupts import Interrupts
from llmopt.cli.output import OutputFile
from llmopt.cli.progress import watcher
from llmopt.cli.readers.reader import Texts
from llmopt.cli.tally import Tally
from llmopt.cli.tell import say
from llmopt.cli.writers.writer import Writer, open_writer
from llmopt.config.load import load_config
from llmopt.providers.registry import Registry
from llmopt.values.embeddings import EmbeddedPart

if TYPE_CHECKING:
    from llmopt.config.tree import Config


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
    provider, _ = Registry(config, (), os.environ).split(model)
    for endpoint in provider.endpoints:
        endpoint.credential.peek()


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
