"""Azure's list of models: the deployments if known or configured, else the base models that could be deployed."""

from __future__ import annotations

from datetime import UTC, datetime

from attrs import evolve

from llmopt import CatalogPage, Model, Settings, compatible
from llmopt.values.catalog import ModelKind
from llmopt_plugin_azure._limits import KNOWN, MODELS, deployments


def page_of(page: CatalogPage, settings: Settings) -> CatalogPage:
    """The configured deployments, or the models that the resource lists, with known data."""
    configured = deployments(settings)
    if configured:
        return CatalogPage(models=tuple(_deployed(name, base) for name, base in configured.items()))
    return compatible.map_models(page, _described)


def _deployed(name: str, base: str | None) -> Model:
    raw = {"id": name, "object": "deployment", **({"model": base} if base else {})}
    return _known(Model(id=name, name=base or "", raw=raw), base or name)


def _described(model: Model) -> Model:
    base = model.raw.get("model")
    base = base if isinstance(base, str) else model.id
    if model.raw.get("object") == "deployment":
        return _known(evolve(model, name=base), base)
    dates = model.raw.get("deprecation")
    when = dates.get("inference") if isinstance(dates, dict) else None
    kind = _kind(model.raw.get("capabilities"))
    model = evolve(
        model,
        kind=kind or model.kind,
        known=() if kind else model.known,
        shutdown=model.shutdown or _date(when),
    )
    return _known(model, base)


def _known(model: Model, base: str) -> Model:
    # The second one was checked by hand, and what it knows counts.
    return MODELS.described(KNOWN.described(model, base), base)


def _date(seconds: object) -> str | None:
    if type(seconds) is not int or not 0 < seconds < 1 << 33:
        return None
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _kind(capabilities: object) -> ModelKind | None:
    can = capabilities if isinstance(capabilities, dict) else {}
    if can.get("embeddings"):
        return "embedding"
    if can.get("chat_completion"):
        return "chat"
    return "completion" if can.get("completion") else None
