"""A plugin's table of models: what is known of them that neither requests nor lists tell.

The table is a TOML file beside the plugin's module; its format is in docs/limits-format.md. It serves
two hooks: `batch_limit` (`ModelTable.limit`) and `parse_catalog` (`ModelTable.described`). A long one
may be JSON, and stand by itself so that a request for embeddings need not read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

from attrs import evolve

from llmopt.errors import PluginContractError
from llmopt.packagedata import package_data
from llmopt.providers.table_rows import KnownModel, read_table
from llmopt.values.catalog import CatalogPage, Model
from llmopt.values.limits import BatchLimit

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
