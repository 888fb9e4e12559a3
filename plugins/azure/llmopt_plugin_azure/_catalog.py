"""Azure's list: base models that the resource could deploy, unless deployments are configured."""

from __future__ import annotations

from attrs import evolve

from llmopt import CatalogPage, Model, Settings
from llmopt.values.catalog import ModelKind


def page_of(page: CatalogPage, settings: Settings) -> CatalogPage:
    """The configured deployments, or the base models with what Azure says of them."""
    names = settings.options.get("deployments")
    if names:
        return CatalogPage(models=tuple(Model(id=str(name), raw={"object": "deployment"}) for name in names))
    return evolve(page, models=tuple(map(_described, page.models)))


def _described(model: Model) -> Model:
    retired = model.raw.get("deprecation")
    dates = retired if isinstance(retired, dict) else {}
    when = dates.get("inference")
    return evolve(model, kind=_kind(model.raw.get("capabilities")), shutdown=_date(when))


def _date(seconds: object) -> str | None:
    from datetime import UTC, datetime

    if type(seconds) is not int or not 0 < seconds < 1 << 33:
        return None
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _kind(capabilities: object) -> ModelKind:
    can = capabilities if isinstance(capabilities, dict) else {}
    if can.get("embeddings"):
        return "embedding"
    if can.get("chat_completion"):
        return "chat"
    return "completion" if can.get("completion") else "unknown"
