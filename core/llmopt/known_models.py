"""A plugin's table of models: what is known of them that neither requests nor lists tell.

The table is a TOML file beside the plugin's module; its format is in docs/development/limits-format.md. It serves
two hooks: `batch_limit` (`ModelTable.limit`) and `parse_catalog` (`ModelTable.described`). A long one
may be JSON, and stand by itself so that a request for embeddings need not read it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Final, cast, get_args

import msgspec
from attrs import evolve, field, frozen

from llmopt.errors import PluginContractError
from llmopt.values.calls import BatchLimit
from llmopt.values.catalog import CatalogPage, Model, ModelKind, Prices

# Files that lie in a plugin's package.


def package_data(package: str, file: str) -> bytes:
    """A file of a package, through what imported the package: a folder, a zip or whatever it came from.

    The one way for a plugin to read a file, when it is first needed: hooks themselves touch none.

    Args:
        package: the plugin's package.
        file: name of the file within it.

    Raises:
        PluginContractError: there is no such package, or it cannot be read.
    """
    spec = find_spec(package)
    loader: Any = None if spec is None else spec.loader
    if spec is None or not spec.submodule_search_locations or not hasattr(loader, "get_data"):
        raise PluginContractError(f"{package}: no package that {file} could be in.")
    path = f"{next(iter(spec.submodule_search_locations))}{os.sep}{file}"
    try:
        return bytes(loader.get_data(path))
    except OSError as error:
        raise PluginContractError(f"{package}/{file} cannot be read: {type(error).__name__}.") from None


# The rows of a plugin's table of models, read from TOML or JSON. The format is in docs/development/limits-format.md.

FORMAT: Final = 1
"""The version of the format that this reader knows."""
_NUMBERS: Final = ("max_items", "max_item_tokens", "max_tokens", "max_bytes")
_LIMITS: Final = (*_NUMBERS, "truncates")
_LISTS: Final = ("aliases", "inputs", "outputs")
_COSTS: Final = ("input", "output", "cached_input", "cache_write")
_KINDS: Final = get_args(ModelKind)
_DEAREST: Final = 100_000
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@frozen(kw_only=True)
class KnownModel:
    """One row.

    Attributes:
        name: id of the model as the provider names it; "*" for the row of all models not listed.
        aliases: other ids of the same model.
        kind: what it is for.
        limit: what fits into one request.
        context_length: tokens of input and output together, None when not known.
        max_output_tokens: most tokens of an answer, None when not known.
        inputs: what it takes, empty when not known.
        outputs: what it gives, likewise.
        prices: what it costs, None when not known.
        dimensions: length of its vectors, None when not known.
        shortens: whether a request may ask for shorter vectors, None when not known.
        base64: whether vectors can be had as base64, None when not known.
        shutdown: date after which it does not answer, ISO 8601, None when none is known.
        source: where the row comes from.
    """

    name: str
    aliases: tuple[str, ...] = ()
    kind: ModelKind = "unknown"
    limit: BatchLimit = field(factory=BatchLimit)
    context_length: int | None = None
    max_output_tokens: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    prices: Prices | None = None
    dimensions: int | None = None
    shortens: bool | None = None
    base64: bool | None = None
    shutdown: str | None = None
    source: str

    @property
    def fields(self) -> Mapping[str, Any]:
        """What it says of a `Model`, by the names of the fields there."""
        found = {
            "kind": None if self.kind == "unknown" else self.kind,
            "dimensions": self.dimensions,
            "context_length": self.context_length or self.limit.max_item_tokens,
            "max_output_tokens": self.max_output_tokens,
            "inputs": self.inputs or None,
            "outputs": self.outputs or None,
            "prices": self.prices,
            "shutdown": self.shutdown,
        }
        return {name: value for name, value in found.items() if value is not None}


def read_table(text: str, *, where: str = "the table", json: bool = False) -> tuple[KnownModel, ...]:
    """The rows of a table.

    Args:
        text: TOML in the format of docs/development/limits-format.md.
        where: what to call it in messages.
        json: whether it is the same as JSON, which is read many times faster.

    Raises:
        PluginContractError: it is not of that format; the message names the row and the key.
    """
    table = _from_json(text, where) if json else _from_toml(text, where)
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise PluginContractError(f"{where}: expected format = {FORMAT}.")
    rows = table.get("model")
    if not isinstance(rows, list) or set(table) - {"format", "source", "model"}:
        raise PluginContractError(
            f"{where}: expected tables [[model]] and nothing else beside format and source."
        )
    shared = {"source": table["source"]} if "source" in table else {}
    known = tuple(_row(row, shared, f"{where}, row {number}") for number, row in enumerate(rows, start=1))
    _refuse_twice(known, where)
    return known


def _from_toml(text: str, where: str) -> object:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PluginContractError(f"{where}: not valid TOML: {error}.") from None


def _from_json(text: str, where: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PluginContractError(f"{where}: not valid JSON: {error}.") from None


def _row(given: object, shared: Mapping[str, Any], where: str) -> KnownModel:
    if not isinstance(given, dict):
        raise PluginContractError(f"{where}: expected a table.")
    row = {**shared, **given}
    for key, value in row.items():
        if fault := _fault(key, value):
            raise PluginContractError(f"{where}: {key}: {fault}.")
    for key in ("name", "source"):
        if key not in row:
            raise PluginContractError(f"{where}: {key} is missing.")
    limit = BatchLimit(**{key: row[key] for key in _LIMITS if key in row})
    rest = {key: value for key, value in row.items() if key not in _LIMITS}
    rest |= {key: tuple(row[key]) for key in _LISTS if key in row}
    kind = cast("ModelKind", rest.pop("kind", "unknown"))
    costs = rest.pop("prices", None)
    prices = None if costs is None else Prices(**costs)
    return KnownModel(limit=limit, kind=kind, prices=prices, **rest)


def _fault(key: str, value: object) -> str:
    """What is wrong with a value, "" when it is right."""
    expected, fits = _CHECKS.get(key, ("one of the documented keys", _never))
    return "" if fits(value) else f"expected {expected}"


def _never(_: object) -> bool:
    return False


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _is_costs(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(key in _COSTS and _is_cost(cost) for key, cost in value.items())
    )


def _is_cost(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast("float", value) < _DEAREST


def _is_date(value: object) -> bool:
    return isinstance(value, str) and _DATE.fullmatch(value) is not None


_Check = tuple[str, Callable[[object], bool]]
_NUMBER: Final[_Check] = ("a whole number above 0", lambda value: type(value) is int and value > 0)
_SWITCH: Final[_Check] = ("true or false", lambda value: isinstance(value, bool))
_TEXT: Final[_Check] = ("text", lambda value: isinstance(value, str) and bool(value))
_CHECKS: Final[Mapping[str, _Check]] = {
    "name": _TEXT,
    "source": _TEXT,
    **dict.fromkeys(_LISTS, ("a list of names", _is_names)),
    "prices": (f"US dollars for a million tokens, by {', '.join(_COSTS)}", _is_costs),
    "kind": (f"one of {', '.join(_KINDS)}", lambda value: value in _KINDS),
    "shutdown": ("a date such as 2027-01-31", _is_date),
    "shortens": _SWITCH,
    "base64": _SWITCH,
    "truncates": _SWITCH,
    **dict.fromkeys((*_NUMBERS, "context_length", "max_output_tokens", "dimensions"), _NUMBER),
}


def _refuse_twice(rows: tuple[KnownModel, ...], where: str) -> None:
    seen: set[str] = set()
    for name in (name for row in rows for name in (row.name, *row.aliases)):
        if name in seen:
            raise PluginContractError(f"{where}: {name} stands there twice.")
        seen.add(name)


__all__ = ["KnownModel", "ModelTable", "read_table"]


class ModelTable:
    """The table of one plugin, read when it is first needed.

    Args:
        package: the plugin's package, ``__package__`` in its own modules.
        file: name of the file within it; JSON if it ends in ``.json``, else TOML.
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
            PluginContractError: the file is not of the documented format.
        """
        text = _read(self._package, self._file)
        where = f"{self._package}/{self._file}"
        return read_table(text, where=where, json=self._file.endswith(".json"))

    @cached_property
    def _by_name(self) -> Mapping[str, KnownModel]:
        return {name: row for row in self.rows for name in (*row.aliases, row.name)}

    def get(self, *names: str) -> KnownModel | None:
        """The row of the first of these models that is listed by its name or by an alias."""
        for name in names:
            if name != "*" and name in self._by_name:
                return self._by_name[name]
        return None

    def limit(self, *names: str) -> BatchLimit:
        """What fits into one request for the first of these models that is listed, or for any other."""
        row = self.get(*names) or self._by_name.get("*")
        return row.limit if row is not None else BatchLimit()

    def described(self, model: Model, *names: str) -> Model:
        """A model of the provider's list with what the list leaves out.

        Args:
            model: as the provider describes it; what it says is never changed, and what another table
                filled in or was guessed (``model.known``) counts less than this table.
            names: what to look it up by; without any its id, then its aliases.
        """
        row = self.get(*(names or (model.id, *model.aliases)))
        if row is None:
            return model
        missing = {name: value for name, value in row.fields.items() if _is_missing(model, name)}
        if not missing:
            return model
        return evolve(model, **missing, known=tuple(dict.fromkeys((*model.known, *missing))))

    def described_page(self, page: CatalogPage) -> CatalogPage:
        """Every model of a page, likewise."""
        known = self._by_name
        # Lists are long, and most of what is in them stands in no table.
        if not any(model.id in known or model.aliases for model in page.models):
            return page
        return evolve(page, models=tuple(map(self.described, page.models)))


def _is_missing(model: Model, name: str) -> bool:
    # What was guessed from the id is no more than what is known.
    return getattr(model, name) in (None, "unknown", ()) or name in model.known


def _read(package: str, file: str) -> str:
    try:
        return package_data(package, file).decode()
    except UnicodeDecodeError:
        raise PluginContractError(f"{package}/{file} cannot be read: it is not UTF-8.") from None
