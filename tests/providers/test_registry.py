"""A general plugin serves many names, until a plugin of a name's own is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from llmopt import Config, PluginConflict, Profile, UnknownProvider
from llmopt.cli.overview import plugins_overview, providers_overview
from llmopt.config.load import load_config
from llmopt.providers.discovery import discover_plugins
from llmopt.providers.registry import Registry

GENERAL = """
from llmopt import HttpRequest, Profile, hookimpl
made = []
@hookimpl
def provider_profile(entry) -> Profile:
    made.append(entry.plugin_name)
    name = entry.plugin_name
    return Profile(base_url=f"https://{name}.example/v1", key_env=(f"{name.upper()}_KEY",), discovered=name != "shy")
@hookimpl
def build_request(call, settings) -> HttpRequest:
    return HttpRequest(method="GET", path=f"/{settings.plugin}/{settings.provider}")
"""
OWN = """
from llmopt import Profile, hookimpl
@hookimpl
def provider_profile() -> Profile:
    return Profile(base_url="https://own.example/v1", key_env=("OWN_KEY",))
"""


def lay(folder: Path, name: str, points: Mapping[str, Mapping[str, str]], source: str = "") -> None:
    """A distribution with entry points and a module of its name."""
    module = name.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (folder / f"{module}.py").write_text(source)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, with a general plugin in it."""
    folder = tmp_path / "packages"
    names = dict.fromkeys(("north", "south", "shy", "many"), "many_providers")
    lay(folder, "many-providers", {"llmopt.fallback": names}, GENERAL)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("many_providers", "own_north", "other_many"):
        sys.modules.pop(name, None)


def registry(config: Mapping[str, object] | None = None, **environ: str) -> Registry:
    return Registry(load_config({"providers": config or {}}, environ={}), (), environ)


def test_a_plugin_that_is_installed_while_the_program_runs_is_found(folder: Path) -> None:
    """As in a notebook: the error said what to install, and the next client has it."""
    with pytest.raises(UnknownProvider, match="no plugin 'late'"):
        registry().get("late")
    lay(folder, "late-plugin", {"llmopt": {"late": "late_plugin"}}, OWN)
    assert registry().get("late").endpoints[0].base_url == "https://own.example/v1"
    sys.modules.pop("late_plugin")


def test_metadata_is_read_once_while_nothing_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    discover_plugins()
    monkeypatch.setattr("importlib_metadata.entry_points", pytest.fail)
    assert "north" in discover_plugins()


def test_every_name_of_a_general_plugin_is_served(folder: Path) -> None:
    """With the hooks told which one is meant."""
    found = registry()
    north = found.get("north")
    assert north.endpoints[0].base_url == "https://north.example/v1"
    settings = north.endpoints[0].settings(None)
    assert (settings.plugin, settings.provider) == ("north", "north")
    assert {name for name, each in discover_plugins().items() if each.fallback} >= {
        "north",
        "south",
        "shy",
        "many",
    }


def test_an_entry_may_name_a_provider_of_a_general_plugin(folder: Path) -> None:
    """Under another name."""
    from llmopt import CatalogCall

    mine = registry({"mine": {"plugin": "south"}}).get("mine")
    settings = mine.endpoints[0].settings(None)
    assert mine.hooks.build_request(CatalogCall(), settings).path == "/south/mine"


def test_a_general_plugin_is_registered_once(folder: Path) -> None:
    """For all its names; errors still name the one that was asked."""
    found = registry()
    north, south = found.get("north").hooks, found.get("south").hooks
    assert north._hooks is south._hooks
    assert (north._provider, south._provider) == ("north", "south")


def test_only_providers_with_a_key_are_used_by_default(folder: Path) -> None:
    """And not one whose variable is meant for more."""
    assert not {"north", "south", "shy", "many"} & set(registry().names())
    named = registry(SOUTH_KEY="k", SHY_KEY="k", MANY_KEY="").names()
    assert {"north", "south", "shy", "many"} & set(named) == {"south"}
    # Named it is asked all the same.
    assert registry(SHY_KEY="k").get("shy").endpoints[0].credential.problem == ""


def test_a_key_set_later_is_used(folder: Path) -> None:
    """Without asking the plugin a second time."""
    environ: dict[str, str] = {}
    found = Registry(Config(), (), environ)
    assert "north" not in found.names()
    asked = list(sys.modules["many_providers"].made)
    environ["NORTH_KEY"] = "k"
    assert "north" in found.names()
    assert sys.modules["many_providers"].made == [*asked, "north"]


def test_a_plugin_for_one_name_precedes_a_general_plugin(folder: Path) -> None:
    """Without a conflict, and without a word."""
    lay(folder, "own-north", {"llmopt": {"north": "own_north"}}, OWN)
    found = registry(NORTH_KEY="k", OWN_KEY="k")
    assert found.get("north").endpoints[0].base_url == "https://own.example/v1"
    assert found.get("south").endpoints[0].base_url == "https://south.example/v1"
    overview = {each.name: each for each in plugins_overview(Config())}
    assert overview["north"].distributions == ("own-north 1.0",)
    assert overview["many"].providers == ("shy", "south")


def test_two_general_plugins_with_one_name_are_a_conflict(folder: Path) -> None:
    """Of that name alone."""
    lay(folder, "other-many", {"llmopt.fallback": {"north": "other_many"}}, GENERAL)
    found = registry()
    with pytest.raises(PluginConflict, match=r"many-providers .* and other-many "):
        found.get("north")
    assert found.get("south").endpoints
    overview = {each.name: each for each in plugins_overview(Config())}
    assert overview["north"].state == "conflict"


def test_the_overview_is_short(folder: Path) -> None:
    """One row for the plugin, with its names and the entries that it serves."""
    config = load_config({"providers": {"mine": {"plugin": "south"}, "north": {"rpm": 5}}}, environ={})
    rows = [each for each in plugins_overview(config) if "many_providers" in each.module]
    assert [(each.name, each.providers, each.state) for each in rows] == [
        ("many", ("north", "shy", "south"), "ok")
    ]
    assert set(rows[0].entries) == {"mine", "north"}
    assert not any(each.state == "not installed" for each in plugins_overview(config))


def test_providers_without_a_key_are_not_loaded(folder: Path) -> None:
    """Unless they are configured or named."""
    assert {"north", "south"} & {each.name for each in providers_overview(Config(), {})} == set()
    assert {"north", "south"} & {each.name for each in providers_overview(Config(), {"SOUTH_KEY": "k"})} == {
        "south"
    }
    assert [each.name for each in providers_overview(Config(), {}, ["north"])] == ["north"]


def test_an_unknown_name_gets_suggestions(folder: Path) -> None:
    """The general plugin's names are counted, and found when they are near."""
    with pytest.raises(UnknownProvider) as caught:
        registry().get("soutth")
    message = caught.value.message
    assert "did you mean 'south'?" in message
    assert "more, which llmopt plugins lists" in message
    assert "shy" not in message
    assert "local" in message


def test_a_profile_says_whether_it_is_used_by_default() -> None:
    """By default it is."""
    assert Profile().discovered
