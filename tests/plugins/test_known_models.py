"""Tables of models: the format, and what each plugin's own table holds."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from llmopt import BatchLimit, CatalogPage, Model, ModelTable, PluginContractError, Prices
from llmopt.known_models import read_table
from tests.plugins.errors import PLUGINS, REPOSITORY

TABLES = tuple(plugin for plugin in PLUGINS if plugin not in ("compatible", "anthropic"))
"""Plugins with a table of models for embeddings of their own."""
KNOWN = ("openai", "mistral", "azure", "anthropic", "google")
"""Plugins whose providers' lists say little."""
CHATS_ALONE = ("anthropic",)
SAMPLES = REPOSITORY.parent / "shared" / "samples"
ROW = '[[model]]\nname = "m"\nsource = "s"\n'


def table(plugin: str) -> ModelTable:
    return ModelTable(f"llmopt_plugin_{plugin}")


@pytest.mark.parametrize("plugin", TABLES)
def test_every_table_is_of_the_documented_format(plugin: str) -> None:
    """Rows have a source; an embedding model's tokens do not exceed those of a request."""
    for row in table(plugin).rows:
        assert row.source
        if row.name == "*":
            assert row.kind == "unknown"
            continue
        assert row.kind == "embedding"
        assert row.dimensions is not None
        if row.limit.max_tokens is not None:
            assert row.limit.max_item_tokens is not None
            assert row.limit.max_item_tokens <= row.limit.max_tokens


@pytest.mark.parametrize("plugin", ["openai", "mistral", "azure"])
def test_an_unlisted_model_has_the_limits_of_the_default_row(plugin: str) -> None:
    limit = table(plugin).limit("a-model-of-tomorrow")
    assert limit.max_items
    assert limit.max_tokens


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the samples are not there")
@pytest.mark.parametrize("plugin", ["openai", "mistral", "azure"])
def test_tables_agree_with_the_samples(plugin: str) -> None:
    """Dimensions are equal, and tokens within two: litellm has 8,191 where the provider documents 8,192."""
    listed = json.loads((SAMPLES / "catalogues" / "litellm-embedding-models.json").read_text())
    for row in table(plugin).rows:
        for name in (row.name, *row.aliases):
            result = listed.get(name if plugin == "openai" else f"{plugin}/{name}", {})
            tokens, length = result.get("max_input_tokens"), result.get("output_vector_size")
            assert tokens is None or abs(tokens - (row.limit.max_item_tokens or 0)) <= 2, name
            assert length in (None, row.dimensions), name


def test_a_model_is_found_by_name_and_by_alias() -> None:
    """The first listed name is used; the default row is no model."""
    mistral = table("mistral")
    row = mistral.get("mistral-embed")
    assert row is not None
    assert mistral.get("mistral-embed-2312") is row
    assert mistral.get("nothing", "codestral-embed") is not row
    assert mistral.get("*") is None
    assert mistral.get("nothing") is None


def test_only_missing_fields_are_filled_in_and_marked() -> None:
    """A value of the provider never changes."""
    bare = table("openai").described(Model(id="text-embedding-3-small"))
    assert (bare.kind, bare.dimensions, bare.context_length) == ("embedding", 1_536, 8_192)
    assert bare.known == ("kind", "dimensions", "context_length")
    described_model = table("openai").described(Model(id="text-embedding-3-small", dimensions=7, kind="chat"))
    assert (described_model.kind, described_model.dimensions, described_model.known) == (
        "chat",
        7,
        ("context_length",),
    )
    assert table("openai").described(Model(id="gpt-4o")) == Model(id="gpt-4o")


def test_the_models_of_a_page_are_filled_in() -> None:
    """The cursor stays."""
    page = CatalogPage(models=(Model(id="gpt-4o"), Model(id="text-embedding-ada-002")), next_cursor="c")
    result = table("openai").described_page(page)
    assert [model.dimensions for model in result.models] == [None, 1_536]
    assert result.next_cursor == "c"


def test_a_page_of_unknown_models_stays_the_same() -> None:
    page = CatalogPage(models=(Model(id="gpt-4o"),), dropped=1)
    assert table("openai").described_page(page) is page
    aliased = CatalogPage(models=(Model(id="mine", aliases=("text-embedding-ada-002",)),))
    assert table("openai").described_page(aliased).models[0].dimensions == 1_536


def test_every_key_of_a_row_is_read() -> None:
    (row,) = read_table(
        "format = 1\n[[model]]\nname = 'm'\naliases = ['n']\nkind = 'embedding'\nmax_items = 1\n"
        "max_item_tokens = 2\nmax_tokens = 3\nmax_bytes = 4\ntruncates = true\ndimensions = 5\n"
        "shortens = false\nbase64 = true\nshutdown = '2027-01-31'\nsource = 's'\n"
    )
    assert row.limit == BatchLimit(max_items=1, max_item_tokens=2, max_tokens=3, max_bytes=4, truncates=True)
    assert (row.aliases, row.dimensions, row.shortens, row.base64) == (("n",), 5, False, True)
    assert row.fields["shutdown"] == "2027-01-31"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "expected format = 1"),
        ("format = 2\n", "expected format = 1"),
        ("format = 1\n", r"expected tables \[\[model\]\]"),
        ("format = 1\nother = 2\n" + ROW, r"expected tables \[\[model\]\]"),
        ("format = ", "not valid TOML"),
        ("format = 1\n[[model]]\nname = 'm'\n", "row 1: Object missing required field `source`"),
        ("format = 1\n[[model]]\nsource = 'm'\n", "row 1: Object missing required field `name`"),
        ("format = 1\n" + ROW + "max_items = 0\n", r"row 1: Expected `int` >= 1 - at `\$.max_items`"),
        ("format = 1\n" + ROW + "max_items = true\n", r"Expected `int.*, got `bool` - at `\$.max_items`"),
        ("format = 1\n" + ROW + "base64 = 1\n", r"Expected `bool.*, got `int` - at `\$.base64`"),
        ("format = 1\n" + ROW + "kind = 'vector'\n", r"Invalid enum value 'vector' - at `\$.kind`"),
        (
            "format = 1\n" + ROW + "shutdown = '31.1.2027'\n",
            r"Expected `str` matching regex .* - at `\$.shutdown`",
        ),
        ("format = 1\n" + ROW + "aliases = 'n'\n", r"Expected `array`, got `str` - at `\$.aliases`"),
        ("format = 1\n" + ROW + "max_item = 5\n", "unknown field `max_item`"),
        ("format = 1\n" + ROW + ROW, "m is listed twice"),
        ("format = 1\n" + ROW + "aliases = ['m']\n", "m is listed twice"),
    ],
)
def test_the_error_of_a_wrong_table_names_row_and_key(text: str, fault: str) -> None:
    with pytest.raises(PluginContractError, match=fault):
        read_table(text)


def test_the_error_of_a_missing_table_names_package_and_file() -> None:
    with pytest.raises(PluginContractError, match=r"llmopt_plugin_openai/nothing.toml cannot be read"):
        _ = ModelTable("llmopt_plugin_openai", "nothing.toml").rows
    with pytest.raises(PluginContractError, match="not a package"):
        _ = ModelTable("json.decoder").rows
    with pytest.raises(PluginContractError, match="not a package"):
        _ = ModelTable("llmopt_plugin_of_nobody").rows


def test_a_table_is_read_once_when_it_is_needed() -> None:
    lazy = ModelTable("llmopt_plugin_openai")
    assert "rows" not in vars(lazy)
    assert lazy.rows is lazy.rows


@pytest.mark.parametrize("plugin", KNOWN)
def test_the_table_of_models_dev_is_plausible(plugin: str) -> None:
    """Kinds, prices, limits, and one source for all rows."""
    rows = ModelTable(f"llmopt_plugin_{plugin}", "known.json").rows
    assert len(rows) > (20 if plugin in CHATS_ALONE else 50)
    assert {row.source for row in rows} == {rows[0].source}
    assert {row.kind for row in rows} >= (
        {"chat"} if plugin in CHATS_ALONE else {"chat", "embedding", "audio"}
    )
    for row in rows:
        assert row.kind != "unknown", row.name
        assert not row.limit.max_items
        if row.prices is not None:
            assert 0 < (row.prices.input or 0) + (row.prices.output or 0) < 1_000, row.name
            assert (row.prices.cached_input or 0) <= (row.prices.input or 0), row.name
        if row.kind == "chat":
            assert row.inputs[0] == "text", row.name


@pytest.mark.parametrize("plugin", KNOWN)
def test_the_package_has_the_licence_of_its_table(plugin: str) -> None:
    """With the full text and the source."""
    notice = (REPOSITORY / "plugins" / plugin / f"llmopt_plugin_{plugin}" / "NOTICE.txt").read_text()
    assert "litellm 1.109.1" in notice
    assert "Permission is hereby granted, free of charge" in notice


def test_a_later_table_overrides_an_earlier_one() -> None:
    """Checked rows override derived ones, and the provider overrides both."""
    known, checked = ModelTable("llmopt_plugin_openai", "known.json"), table("openai")
    first = known.described(Model(id="text-embedding-3-small"))
    assert (first.context_length, first.kind) == (8_191, "embedding")
    both = checked.described(first)
    assert (both.context_length, both.prices) == (8_192, first.prices)
    assert len(both.known) == len(set(both.known))
    described_model = checked.described(known.described(Model(id="text-embedding-3-small", context_length=5)))
    assert (described_model.context_length, "context_length" in described_model.known) == (5, False)


def test_a_json_table_has_the_same_format() -> None:
    """With one source for all rows."""
    text = """{"format": 1, "source": "s", "model": [{"name": "m", "kind": "chat", "context_length": 5,
        "max_output_tokens": 2, "inputs": ["text"], "prices": {"input": 1, "cached_input": 0.5}}, {"name": "n", "source": "t"}]}"""
    first, second = read_table(text, json=True)
    assert (first.source, second.source, first.prices) == ("s", "t", Prices(input=1, cached_input=0.5))
    assert first.fields == {
        "kind": "chat", "context_length": 5, "max_output_tokens": 2, "inputs": ("text",), "prices": first.prices,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected format = 1"),
        ('{"format": 1, "model": [7]}', "row 1: expected a table"),
        (
            '{"format": 1, "source": 7, "model": [{"name": "m"}]}',
            r"Expected `str`, got `int` - at `\$.source`",
        ),
        (
            '{"format": 1, "source": "s", "model": [{"name": "m", "prices": {}}]}',
            r"Expected at least one price - at `\$.prices`",
        ),
        (
            '{"format": 1, "source": "s", "model": [{"name": "m", "prices": {"input": -1}}]}',
            r"Expected `float` >= 0.0 - at `\$.prices.input`",
        ),
        (
            '{"format": 1, "source": "s", "model": [{"name": "m", "prices": {"output": true}}]}',
            r"Expected `float.*, got `bool` - at `\$.prices.output`",
        ),
        (
            '{"format": 1, "source": "s", "model": [{"name": "m", "prices": {"price": 1}}]}',
            r"unknown field `price` - at `\$.prices`",
        ),
        (
            '{"format": 1, "source": "s", "model": [{"name": "m", "context_length": 0}]}',
            r"Expected `int` >= 1 - at `\$.context_length`",
        ),
    ],
)
def test_the_error_of_a_wrong_json_table_names_row_and_key(text: str, fault: str) -> None:
    with pytest.raises(PluginContractError, match=fault):
        read_table(text, json=True)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_data_files_are_in_the_package(plugin: str) -> None:
    """So that a wheel contains them."""
    package = importlib.import_module(f"llmopt_plugin_{plugin}")
    folder = Path(str(package.__file__)).parent
    assert plugin not in TABLES or (folder / "models.toml").is_file()
    assert plugin != "compatible" or (folder / "providers.json").is_file()
    assert plugin not in KNOWN or (folder / "known.json").is_file()
    assert (folder / "errors.toml").is_file()
    assert (folder.parent / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()
