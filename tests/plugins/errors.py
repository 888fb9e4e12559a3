"""Reads a plugin's errors.toml, as docs/development/error-corpus.md describes it."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from llmopt import BatchLimit, Failure, Verdict, VerdictKind

PLUGINS: Final = ("openai", "mistral", "azure", "local", "compatible", "anthropic", "google")
REPOSITORY: Final = Path(__file__).parents[2]
KEYS: Final = {
    "name", "source", "operation", "status", "headers", "body", "kind", "retry_after", "exceeded", "limit", "item",
}  # fmt: skip
REQUIRED: Final = {"name", "source", "status", "body", "kind"}


@frozen(kw_only=True)
class Entry:
    """One error response, and the verdict that the plugin must give it."""

    plugin: str
    name: str
    row: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.plugin}: {self.name}"

    @property
    def failure(self) -> Failure:
        return Failure(
            status=self.row["status"],
            headers=self.row.get("headers", {}),
            body=self.row["body"].encode(),
            operation=self.row.get("operation", "embeddings"),
            model="m",
        )

    def check(self, verdict: Verdict) -> None:
        """Compare a verdict with the expected one."""
        limit = self.row.get("limit")
        assert verdict.kind is VerdictKind(self.row["kind"])
        assert verdict.retry_after == (
            None if "retry_after" not in self.row else _approximately(self.row["retry_after"])
        )
        assert verdict.exceeded == self.row.get("exceeded")
        assert verdict.limit == (None if limit is None else BatchLimit(**limit))
        assert verdict.item == self.row.get("item")


def _approximately(seconds: float) -> Any:
    import pytest

    return pytest.approx(seconds)


@cache
def entries(plugin: str) -> tuple[Entry, ...]:
    """All errors in a plugin's corpus; the file is read once."""
    path = REPOSITORY / "plugins" / plugin / f"llmopt_plugin_{plugin}" / "errors.toml"
    rows = tomllib.loads(path.read_text("utf-8"))["error"]
    return tuple(Entry(plugin=plugin, name=row["name"], row=row) for row in rows)
