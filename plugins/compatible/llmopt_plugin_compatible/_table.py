"""The table of providers: its rows, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

import msgspec

from llmopt import BatchLimit, package_data


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A placeholder in a base URL for a value of the user.

    Attributes:
        env: environment variables that replace it.
        help: a description of the value.
    """

    env: tuple[str, ...]
    help: str


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a provider's list says what the common dialect has no key for: paths with dots.

    Attributes:
        context_length, max_output_tokens: numbers of tokens.
        inputs, outputs: lists of modalities.
        input, output, cached_input: prices.
        scale: what a price is multiplied by to be for a million tokens.
        currency: of the prices.
    """

    context_length: str = ""
    max_output_tokens: str = ""
    inputs: str = ""
    outputs: str = ""
    input: str = ""
    output: str = ""
    cached_input: str = ""
    scale: float = 1.0
    currency: str = "USD"


class KnownModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model for embeddings of a provider without a list of models.

    Attributes:
        context_length: the most tokens of a text.
        dimensions: the length of its vectors, unless a call asks for another.
    """

    context_length: int
    dimensions: int


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One provider.

    Attributes:
        base_url: where it is; ``{name}`` stands for one of ``parts``. Only the row of no provider has none.
        key_env: environment variables for the key, the first one set wins.
        docs: where it is documented.
        discovered: whether it is asked unnamed once its key is there; False where another provider's
            row has the same variable, or the variable is meant for more than this provider.
        parts: the gaps in the base URL.
        max_items, max_item_tokens, max_tokens: the most texts in a request, tokens in a text and in a
            request, where they are known.
        catalog: path or URL of the list of models, where it is not ``/models``.
        reading: how to read that list, where the common dialect does not do.
        operations: what the provider has, where a source says what it has not.
        models: its models, where it has no list of them.
    """

    base_url: str | None = None
    key_env: tuple[str, ...] = ()
    docs: str = ""
    discovered: bool = True
    parts: Mapping[str, Part] = msgspec.field(default_factory=dict)
    max_items: int | None = None
    max_item_tokens: int | None = None
    max_tokens: int | None = None
    catalog: str | None = None
    reading: Reading | None = None
    operations: frozenset[str] | None = None
    models: Mapping[str, KnownModel] = msgspec.field(default_factory=dict)

    @property
    def limit(self) -> BatchLimit | None:
        """The limits of one request, or None."""
        if self.max_items is None and self.max_tokens is None:
            return None
        return BatchLimit(
            max_items=self.max_items, max_item_tokens=self.max_item_tokens, max_tokens=self.max_tokens
        )


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The file."""

    format: int
    source: str
    providers: dict[str, Row]


_NOBODY: Final = Row()


class Table:
    """The rows, read when the first one is needed."""

    @cached_property
    def rows(self) -> Mapping[str, Row]:
        """All rows, by the provider's name."""
        return msgspec.json.decode(
            package_data("llmopt_plugin_compatible", "providers.json"), type=_File
        ).providers

    def row(self, name: str) -> Row:
        """The row of a provider; an empty one for the plugin's own name, which stands for any base URL."""
        return self.rows.get(name, _NOBODY)


TABLE: Final = Table()
