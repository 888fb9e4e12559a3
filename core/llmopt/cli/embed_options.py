"""What ``llmopt embed`` was asked to do."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from llmopt.cli.exits import CommandError
from llmopt.cli.readers.reader import InputFormat, Texts, chosen_name, form_of
from llmopt.cli.writers.writer import OutputFormat, output_form
from llmopt.operations.embed import ErrorMode


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
