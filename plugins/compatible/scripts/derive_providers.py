"""Write ``providers.json``, the names in ``pyproject.toml`` and in the core, and the table in ``docs/providers.md``.

The facts are those of models.dev (https://models.dev/api.json; repository anomalyco/models.dev, MIT
licence, see NOTICE.txt): name, address, variable of the key, documentation. ``additions.toml`` beside
this script says what is added and what is left out.

    python plugins/compatible/scripts/derive_providers.py api.json
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PLUGIN: Final = Path(__file__).parents[1]
REPOSITORY: Final = PLUGIN.parents[1]
TABLE: Final = PLUGIN / "llmopt_plugin_compatible" / "providers.json"
PROJECT: Final = PLUGIN / "pyproject.toml"
PACKAGES: Final = REPOSITORY / "core" / "llmopt" / "providers" / "packages.toml"
PAGE: Final = REPOSITORY / "docs" / "providers.md"
SOURCE: Final = "models.dev, github anomalyco/models.dev@f3fc692 (2026-07-02), and scripts/additions.toml"
COMMON: Final = frozenset({"@ai-sdk/openai-compatible", "@openrouter/ai-sdk-provider"})
"""The packages that models.dev names for providers of the common dialect."""
FIELDS: Final = (
    "base_url", "key_env", "discovered", "parts", "max_items", "max_item_tokens", "max_tokens",
    "catalog", "reading", "docs",
    "operations", "models",
)  # fmt: skip
KEY: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
ADDRESS: Final = re.compile(r"https://[a-z0-9.{}_-]+(/[A-Za-z0-9._{}/-]*)?")
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")


def rows(facts: Mapping[str, Any], additions: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The rows by name, and why each of the others is left out."""
    changes, left_out = additions["provider"], dict(additions["left_out"])
    found: dict[str, Any] = {}
    for name in sorted({*facts, *changes}):
        plain = name.replace(".", "-")
        if name not in left_out:
            row = {**_row(facts.get(name, {})), **changes.get(name, {})}
            reason = _reason(plain, row, facts.get(name, {}), changes.get(name, {}))
            if reason:
                left_out[name] = reason
            else:
                found[plain] = {key: row[key] for key in FIELDS if key in row}
    return found, left_out


def _row(facts: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if address := facts.get("api"):
        row["base_url"] = address.rstrip("/").removesuffix("/chat/completions")
    row["key_env"] = list(facts.get("env", []))
    row["docs"] = facts.get("doc", "").partition("?")[0].rstrip("/")
    return row


def _reason(name: str, row: Mapping[str, Any], facts: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    if "base_url" not in changed and facts.get("npm") not in COMMON:
        return "speaks another dialect, or its address is not stated"
    if not NAME.fullmatch(name):
        return "its name cannot be a provider's"
    if not ADDRESS.fullmatch(row.get("base_url", "")):
        return "its address is not stated, or has something of the user's in it"
    if not row["key_env"] or not all(map(KEY.fullmatch, row["key_env"])):
        return "it is not stated which variable holds its key"
    if len(row["key_env"]) > 1 and "key_env" not in changed:
        return "several variables are stated, and not which one is the key"
    return ""


def write_table(found: Mapping[str, Any]) -> None:
    """The table, a provider a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in found.items()]
    head = json.dumps({"format": 1, "source": SOURCE})[:-1]
    TABLE.write_text(f'{head}, "providers": {{\n' + ",\n".join(lines) + "\n}}\n", "utf-8")


def write_names(found: Mapping[str, Any]) -> None:
    """The entry points, and the names that the core suggests this package for, between the two marks."""
    points = "\n".join(f'{name} = "llmopt_plugin_compatible"' for name in found)
    PROJECT.write_text(_between(PROJECT.read_text("utf-8"), "# names", points), "utf-8")
    names = "\n".join(f'  "{name}",' for name in found)
    PACKAGES.write_text(_between(PACKAGES.read_text("utf-8"), "# names", names), "utf-8")


def write_page(found: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
    """The tables for people."""
    listed = "\n".join(
        f"| [`{name}`]({row['docs']}) | `{row['base_url']}` | {_variables(row)} |"
        for name, row in found.items()
    )
    table = f"| provider | address | key |\n|---|---|---|\n{listed}"
    others = "\n".join(f"| `{name}` | {reason} |" for name, reason in sorted(left_out.items()))
    text = _between(PAGE.read_text("utf-8"), "<!-- providers -->", table)
    PAGE.write_text(_between(text, "<!-- left out -->", f"| | |\n|---|---|\n{others}"), "utf-8")


def _variables(row: Mapping[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in row["key_env"])
    parts = "".join(f"; {name}: `{part['env'][0]}`" for name, part in row.get("parts", {}).items())
    return names + parts + ("" if row.get("discovered", True) else " *")


def _between(text: str, mark: str, new: str) -> str:
    before, _, rest = text.partition(f"{mark}\n")
    _, _, after = rest.partition(f"{mark}\n")
    return f"{before}{mark}\n{new}\n{mark}\n{after}"


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path, help="models.dev's api.json, or providers in its shape")
    facts = json.loads(parser.parse_args().facts.read_text("utf-8"))
    additions = tomllib.loads((PLUGIN / "scripts" / "additions.toml").read_text("utf-8"))
    found, left_out = rows(facts, additions)
    write_table(found)
    write_names(found)
    write_page(found, left_out)
    print(f"{len(found)} providers; left out: {len(left_out)}")


if __name__ == "__main__":
    main()
