"""Limits of one request: those of the base model, where it is configured for the deployment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmopt import BatchLimit, ConfigError, EmbedCall, ModelTable, Settings
from llmopt_plugin_azure._addresses import resource_of

MODELS: Final = ModelTable("llmopt_plugin_azure")
KNOWN: Final = ModelTable("llmopt_plugin_azure", "known.json")
"""What only lists need: kinds, prices and dates of all models, derived from another's table."""


def limit_of(call: EmbedCall, settings: Settings) -> BatchLimit:
    """The limits of the deployment's base model, or of any model if that is unknown."""
    deployment = resource_of(settings).deployment or call.model
    return MODELS.limit(deployments(settings).get(deployment) or deployment, call.model)


def deployments(settings: Settings) -> Mapping[str, str | None]:
    """The configured deployments with their base models, None where only the name is given.

    Raises:
        ConfigError: they have another type.
    """
    given = settings.options.get("deployments")
    if given is None:
        return {}
    pairs = _pairs(given)
    if not all(_is_name(name) and (base is None or _is_name(base)) for name, base in pairs):
        raise ConfigError(
            f"providers.{settings.provider}.deployments: expected a list of names, or a table of names and "
            'base models, such as { embed-small = "text-embedding-3-small" }.'
        )
    return dict(pairs)


def _pairs(given: Any) -> list[tuple[Any, Any]]:
    if isinstance(given, Mapping):
        return list(given.items())
    if isinstance(given, str):
        # From an environment variable.
        given = [name.strip() for name in given.split(",")]
    return [(name, None) for name in (given if isinstance(given, (list, tuple)) else [given])]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)
