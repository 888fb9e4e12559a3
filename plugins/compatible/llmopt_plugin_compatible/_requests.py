"""Requests: the common dialect's, but for lists of models elsewhere."""

from __future__ import annotations

from attrs import evolve

from llmopt import Call, CatalogCall, HttpRequest, Settings, compatible
from llmopt_plugin_compatible._table import Row


def request_of(call: Call, settings: Settings, row: Row) -> HttpRequest | None:
    """The request for a list of models at another path; None for everything else."""
    if row.catalog is None or not isinstance(call, CatalogCall) or call.cursor is not None:
        return None
    if not row.catalog.startswith("/") and settings.base_url != row.base_url:
        # A whole URL is the provider's own; who configured another address is asked there.
        return None
    return evolve(compatible.build_request(call, settings), path=row.catalog)
