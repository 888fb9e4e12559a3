"""A plugin's table of known models: limits, prices and kinds that no response of the provider states.

The table is a TOML or JSON file in the plugin's package; docs/development/limits-format.md has its format. It serves
the hooks `batch_limit` (`ModelTable.limit`) and `parse_catalog` (`ModelTable.described`). JSON suits long tables,
because it is read many times faster than TOML.

The file is read from disk at first use, by the hook that needs it first, and kept in the `ModelTable`, which plugins
hold at module level, so for the life of the process. There is no clock and no lock: at worst two threads read
the file twice. `package_data` reads any file of a plugin's package from disk, at each call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from typing import Annotated, Any, Final, Literal

import msgspec
from attrs import evolve

from llmopt.compatible.models import map_models
from llmopt.errors import PluginContractError
from llmopt.values.calls import BatchLimit
from llmopt.values.catalog import CatalogPage, Model, ModelKind, Prices

__all__ = ["KnownModel", "ModelTable", "package_data", "read_table"]

FORMAT: Final = 1
"""The version of the file format."""
_MAX_PRICE: Final = 100_000
"""US dollars for a million tokens; a higher number is in another unit."""


class ModelTable:
    """The table of one plugin, read at first use.

    Args:
        package: the plugin's package, ``__package__`` in its own modules.
        file: name of a file in that package; JSON if it ends in ``.json``, else TOML.
    """

    def __init__(self, package: str, file: str = "models.toml") -> None:
        self._package: Final = package
        self._file: Final = file

    def __repr__(self) -> str:
        return f"ModelTable({self._package!r}, {self._file!r})"

    @cached_property
    def rows(self) -> tuple[KnownModel, ...]:
        """All rows, in the order of the file.

        Raises:
            PluginContractError: the file does not have the documented format.
        """
        text = _read(self._package, self._file)
        where = f"{self._package}/{self._file}"
        return read_table(text, where=where, json=self._file.endswith(".json"))

    def models(self) -> tuple[Model, ...]:
        """All rows but "*" as models, for `llmopt.Profile.models` of a provider that has no list of models."""
        names = (row.name for row in self.rows if row.name != "*")
        return tuple(self.described(Model(id=name, aliases=self._by_name[name].aliases)) for name in names)

    @cached_property
    def _by_name(self) -> Mapping[str, KnownModel]:
        return {name: row for row in self.rows for name in (*row.aliases, row.name)}

    def get(self, *names: str) -> KnownModel | None:
        """The row of the first of these names that is listed, as a name or an alias; None if none is."""
        for name in names:
            if name != "*" and name in self._by_name:
                return self._by_name[name]
        return None

    def limit(self, *names: str) -> BatchLimit:
        """The limits of the first of these models that is listed, else those of the row "*"."""
        row = self.get(*names) or self._by_name.get("*")
        return row.limit if row is not None else BatchLimit()

    def described(self, model: Model, *names: str) -> Model:
        """Add what the table knows to a model of the provider's list.

        Args:
            model: as the provider describes it. Its own values stay; those that were guessed or that another
                table added (``model.known``) are replaced.
            names: names to look it up by. Default: its id, then its aliases.
        """
        row = self.get(*(names or (model.id, *model.aliases)))
        if row is None:
            return model
        missing = {name: value for name, value in row.fields.items() if _is_missing(model, name)}
        if not missing:
            return model
        return evolve(model, **missing, known=tuple(dict.fromkeys((*model.known, *missing))))

    def described_page(self, page: CatalogPage) -> CatalogPage:
        """`described` for every model of a page."""
        known = self._by_name
        # Lists are long, and most of their models are in no table.
        if isinstance(page.models, tuple) and not any(
            each.id in known or each.aliases for each in page.models
        ):
            return page
        return map_models(page, self.described)


_Number = Annotated[int, msgspec.Meta(ge=1)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Date = Annotated[str, msgspec.Meta(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
_Cost = Annotated[float, msgspec.Meta(ge=0, lt=_MAX_PRICE)]


class _Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The prices of a row, in US dollars for a million tokens."""

    input: _Cost | None = None
    output: _Cost | None = None
    cached_input: _Cost | None = None
    cache_write: _Cost | None = None

    def __post_init__(self) -> None:
        if not any(price is not None for price in msgspec.structs.astuple(self)):
            raise ValueError("Expected at least one price")


class _Limits(msgspec.Struct, frozen=True):
    """The keys of a row that are limits of one request."""

    max_items: _Number | None = None
    max_item_tokens: _Number | None = None
    max_tokens: _Number | None = None
    max_bytes: _Number | None = None
    truncates: bool = False
    guesses: tuple[Literal["max_items", "max_item_tokens", "max_tokens", "max_bytes"], ...] = ()


class KnownModel(_Limits, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One row of the table. None, "unknown" and () mean that a value is not known.

    Attributes:
        name: id of the model as the provider names it; "*" for the row of all models that are not listed.
        source: where the row comes from.
        aliases: other ids of the same model.
        kind: kind of model, such as "chat" or "embedding".
        inputs: what the model accepts, such as "text" or "image".
        outputs: what the model produces.
        context_length: tokens of input and output together.
        max_output_tokens: maximum tokens of a reply.
        dimensions: length of its vectors.
        costs: what ``prices`` is made of.
        shortens: whether a request may ask for shorter vectors.
        base64: whether the server can send vectors as base64.
        shutdown: date after which the model is gone, ISO 8601.
    """

    name: _Text
    source: _Text
    aliases: tuple[_Text, ...] = ()
    kind: ModelKind = "unknown"
    inputs: tuple[_Text, ...] = ()
    outputs: tuple[_Text, ...] = ()
    context_length: _Number | None = None
    max_output_tokens: _Number | None = None
    dimensions: _Number | None = None
    costs: _Costs | None = msgspec.field(default=None, name="prices")
    shortens: bool | None = None
    base64: bool | None = None
    shutdown: _Date | None = None

    @cached_property
    def limit(self) -> BatchLimit:
        """The limits of one request."""
        return BatchLimit(**{name: getattr(self, name) for name in _Limits.__struct_fields__})

    @property
    def prices(self) -> Prices | None:
        """In US dollars for a million tokens."""
        return None if self.costs is None else Prices(**msgspec.structs.asdict(self.costs))

    @property
    def fields(self) -> Mapping[str, Any]:
        """The values that the row has for a `Model`, by field name."""
        values = {
            "kind": None if self.kind == "unknown" else self.kind,
            "dimensions": self.dimensions,
            "context_length": self.context_length or self.max_item_tokens,
            "max_output_tokens": self.max_output_tokens,
            "inputs": self.inputs or None,
            "outputs": self.outputs or None,
            "prices": self.prices,
            "shutdown": self.shutdown,
        }
        return {name: value for name, value in values.items() if value is not None}


def read_table(text: str, *, where: str = "the table", json: bool = False) -> tuple[KnownModel, ...]:
    """Read a table.

    Args:
        text: TOML in the format of docs/development/limits-format.md.
        where: name of the table, for messages.
        json: whether the text is JSON with the same content instead.

    Raises:
        PluginContractError: the text has another format; the message names the row and the key.
    """
    table = _parsed(text, where, json=json)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise PluginContractError(f"{where}: expected format = {FORMAT}.")
    rows = table.get("model")
    # An unknown key is an error and not ignored: a misspelled limit would silently be no limit.
    if not isinstance(rows, list) or set(table) - {"format", "source", "model"}:
        raise PluginContractError(
            f"{where}: expected tables [[model]], format and source, and no other keys."
        )
    shared = {"source": table["source"]} if "source" in table else {}
    known = tuple(_known(row, shared, f"{where}, row {number}") for number, row in enumerate(rows, start=1))
    _refuse_duplicates(known, where)
    return known


def _parsed(text: str, where: str, *, json: bool) -> object:
    import tomllib

    try:
        return msgspec.json.decode(text) if json else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise PluginContractError(f"{where}: not valid {'JSON' if json else 'TOML'}: {error}.") from None


def _known(entry: object, shared: Mapping[str, Any], where: str) -> KnownModel:
    if not isinstance(entry, dict):
        raise PluginContractError(f"{where}: expected a table.")
    try:
        return msgspec.convert({**shared, **entry}, KnownModel)
    except msgspec.ValidationError as error:
        raise PluginContractError(f"{where}: {error}.") from None


def _refuse_duplicates(rows: tuple[KnownModel, ...], where: str) -> None:
    seen: set[str] = set()
    for name in (name for row in rows for name in (row.name, *row.aliases)):
        if name in seen:
            raise PluginContractError(f"{where}: {name} is listed twice.")
        seen.add(name)


def _is_missing(model: Model, name: str) -> bool:
    # A value that was guessed from the id counts less than the table.
    return getattr(model, name) in (None, "unknown", ()) or name in model.known


def package_data(package: str, file: str) -> bytes:
    """Read a file of a package through its import loader, so that it works in a zip file too.

    Plugins read their files with this function, at first use, because hooks must not do I/O.

    Args:
        package: the plugin's package.
        file: name of a file in it.

    Raises:
        PluginContractError: there is no such package, or the file cannot be read.
    """
    spec = find_spec(package)
    loader: Any = None if spec is None else spec.loader
    if spec is None or not spec.submodule_search_locations or not hasattr(loader, "get_data"):
        raise PluginContractError(f"{package} is not a package that can contain {file}.")
    path = f"{next(iter(spec.submodule_search_locations))}{os.sep}{file}"
    try:
        return bytes(loader.get_data(path))
    except OSError as error:
        raise PluginContractError(
            f"{package}/{file} cannot be read: {type(error).__name__}: {error}."
        ) from None


def _read(package: str, file: str) -> str:
    try:
        return package_data(package, file).decode()
    except UnicodeDecodeError:
        raise PluginContractError(f"{package}/{file} cannot be read: it is not UTF-8.") from None
