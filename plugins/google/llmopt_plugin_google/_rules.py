"""What Gemini models differ in: which parameters each takes, by ``model_rules.toml`` and the user's own entries.

The table is read from the package once, when the first chat needs it, and kept for the life of the process.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import msgspec

from llmopt import ConfigError, Settings, package_data


class ModelRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of one model; ``model_rules.toml`` describes each key."""

    thinking: Literal["level", "budget", ""]
    min_budget: int
    minimal: bool
    signatures: bool
    penalties: bool


def rules_of(model: str, settings: Settings) -> ModelRules:
    """The rules of a model, with those keys replaced that the user's ``model_rules`` have for it.

    Raises:
        ConfigError: the user's have another form.
    """
    known = _known(model)
    own = settings.options.get("model_rules")
    changes = own.get(model) if isinstance(own, Mapping) else None
    return known if changes is None else _changed(known, changes, f"{settings.provider}.model_rules.{model}")


def _changed(known: ModelRules, changes: object, path: str) -> ModelRules:
    try:
        given = msgspec.convert(changes, dict[str, Any])
        return msgspec.convert({**msgspec.structs.asdict(known), **given}, ModelRules)
    except msgspec.ValidationError as error:
        raise ConfigError(f"providers.{path}: {error}.") from None


@cache
def _table() -> tuple[tuple[re.Pattern[str], ModelRules], ...]:
    rows = tomllib.loads(package_data("llmopt_plugin_google", "model_rules.toml").decode())["rule"]
    return tuple((re.compile(row.pop("models")), msgspec.convert(row, ModelRules)) for row in rows)


def _known(model: str) -> ModelRules:
    return next(rules for names, rules in _table() if names.match(model))
