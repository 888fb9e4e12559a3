"""Write the tables ``known.json`` of the plugins whose providers' lists say little.

What a model is for, its limits, prices and dates are facts that litellm gathers from the providers'
pages in ``model_prices_and_context_window_backup.json`` (MIT licence, see the plugins' NOTICE.txt).

    pip download --no-deps litellm==1.109.1
    unzip litellm-1.109.1-*.whl litellm/model_prices_and_context_window_backup.json
    python tools/derive_known_models.py litellm/model_prices_and_context_window_backup.json

Only facts are taken, in llmopt's own format (docs/development/limits-format.md): no text and no code.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parents[1]
SOURCE: Final = "PyPI litellm 1.109.1, model_prices_and_context_window_backup.json"
PLUGINS: Final[Mapping[str, tuple[str, str]]] = {
    # Plugin: litellm's name of the provider, and what stands before the ids of its models.
    "openai": ("openai", ""),
    "mistral": ("mistral", "mistral/"),
    "azure": ("azure", "azure/"),
    "anthropic": ("anthropic", ""),
    "google": ("gemini", "gemini/"),
}
KINDS: Final[Mapping[str, str]] = {
    "chat": "chat",
    "responses": "chat",
    "completion": "completion",
    "embedding": "embedding",
    "rerank": "rerank",
    "image_generation": "image",
    "audio_transcription": "audio",
    "audio_speech": "audio",
    "realtime": "audio",
    "moderation": "moderation",
    "ocr": "ocr",
    "video_generation": "other",
}
COSTS: Final[Mapping[str, str]] = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
}
PLAIN: Final = re.compile(r"[A-Za-z0-9._-]+")
"""Ids of models; others name sizes of pictures, regions and fine-tuned models."""
DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def rows(models: Mapping[str, Any], provider: str, prefix: str) -> Iterator[dict[str, Any]]:
    """The rows of one provider, by id; of a model that is listed with and without the prefix, the former."""
    own = {
        name.removeprefix(prefix): name
        for name in sorted(models, key=lambda name: name.startswith(prefix))
        if models[name].get("litellm_provider") == provider
    }
    for model, name in sorted(own.items()):
        facts = models[name]
        kind = KINDS.get(facts.get("mode", ""))
        if kind and PLAIN.fullmatch(model):
            yield {"name": model, "kind": kind, **numbers(facts, kind), **costs(facts)}


def numbers(facts: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Limits, modalities and the last day."""
    found: dict[str, Any] = {
        "context_length": facts.get("max_input_tokens"),
        "max_output_tokens": facts.get("max_output_tokens") if kind == "chat" else None,
        "dimensions": facts.get("output_vector_size"),
        "inputs": inputs(facts) if kind == "chat" else None,
    }
    date = str(facts.get("deprecation_date", ""))
    if DATE.fullmatch(date):
        found["shutdown"] = date
    # Zero stands there for what is not counted in tokens.
    return {key: value for key, value in found.items() if value}


def inputs(facts: Mapping[str, Any]) -> list[str]:
    """What a model for chats takes."""
    flags = {"image": "supports_vision", "audio": "supports_audio_input", "pdf": "supports_pdf_input"}
    return ["text", *(word for word, flag in flags.items() if facts.get(flag))]


def costs(facts: Mapping[str, Any]) -> dict[str, Any]:
    """US dollars for a million tokens, without binary dust."""
    found = {
        key: float(Decimal(repr(facts[name])) * 1_000_000)
        for key, name in COSTS.items()
        if isinstance(facts.get(name), (int, float))
    }
    paid = {key: cost for key, cost in found.items() if cost > 0 or key == "input"}
    return {"prices": paid} if any(paid.values()) else {}


def main() -> None:
    """Write a table for each plugin, a model a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path, help="litellm's file")
    models = json.loads(parser.parse_args().facts.read_text("utf-8"))
    for plugin, (provider, prefix) in PLUGINS.items():
        lines = [json.dumps(row, separators=(", ", ": ")) for row in rows(models, provider, prefix)]
        head = json.dumps({"format": 1, "source": SOURCE})[:-1]
        body = ",\n".join(lines)
        path = REPOSITORY / "plugins" / plugin / f"llmopt_plugin_{plugin}" / "known.json"
        path.write_text(f'{head}, "model": [\n{body}\n]}}\n', "utf-8")
        print(f"{path.relative_to(REPOSITORY)}: {len(lines)} models, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
