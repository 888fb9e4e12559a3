"""Wrapper plugins that the configuration opts into by name, from installed packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llmopt
from llmopt.cli.overview import plugins_overview
from llmopt.testing import FakeProvider
from tests.cli.installed import install

TENANT = """
from attrs import evolve
from llmopt import hookimpl

@hookimpl(wrapper=True)
def build_request(call, settings):
    request = yield
    return evolve(request, json={**request.json, "user": "tenant-one"})
"""
GROUP = "llmopt.wrappers"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProvider]:
    """A provider, and a folder of installed wrappers: one that works, and one for each fault."""
    points = {
        "tenant": "wrap_tenant",
        "broken": "wrap_broken",
        "empty": "wrap_empty",
        "kind": "wrap_empty:Kind",
    }
    modules = {
        "wrap_tenant": TENANT,
        "wrap_broken": "raise RuntimeError('not today')",
        "wrap_empty": "class Kind: pass",
    }
    install(tmp_path, "wrap-1.0", {**points, "twice": "wrap_tenant"}, modules, GROUP)
    install(tmp_path, "wrap2-1.0", {"twice": "wrap_empty"}, {}, GROUP)
    install(tmp_path, "wrap3-1.0", {"lost": "wrap_empty"}, {}, "llmopt.wrapper")
    monkeypatch.syspath_prepend(str(tmp_path))
    with FakeProvider() as made:
        yield made


def config(fake: FakeProvider, wrappers: Any) -> dict[str, Any]:
    return {"providers": {"fake": {"plugin": "fake-fake"}}, "wrappers": wrappers}


def test_a_wrapper_is_used_where_the_configuration_names_it(fake: FakeProvider) -> None:
    """In every request of that client, and in none of another."""
    with llmopt.Client(config(fake, ["tenant"]), transport=fake.transport) as client:
        client.embed("fake/m", ["a"])
    with llmopt.Client(fake.config, transport=fake.transport) as client:
        client.embed("fake/m", ["a"])
    assert [each.body.get("user") for each in fake.calls] == ["tenant-one", None]


def test_a_file_names_wrappers_and_arguments_replace_them(fake: FakeProvider, tmp_path: Path) -> None:
    """As with every key."""
    file = tmp_path / "llmopt.toml"
    file.write_text('wrappers = ["tenant"]\n[providers.fake]\nplugin = "fake-fake"\n')
    with llmopt.Client(file, transport=fake.transport) as client:
        client.embed("fake/m", ["a"])
    assert fake.calls[0].body["user"] == "tenant-one"


@pytest.mark.parametrize(
    ("wrappers", "kind", "words"),
    [
        (["tenannt"], llmopt.ConfigError, r"no wrapper 'tenannt' is installed; did you mean 'tenant'\?"),
        (
            ["zzz"],
            llmopt.ConfigError,
            "no wrapper 'zzz' is installed; llmopt plugins lists what is installed",
        ),
        ("tenant", llmopt.ConfigError, "wrappers: expected a list of names, got text"),
        ([3], llmopt.ConfigError, "wrappers: expected a list of names"),
        (
            ["broken"],
            llmopt.PluginLoadError,
            r"'broken' \(wrap_broken\) cannot be imported: RuntimeError: not today",
        ),
        (["empty"], llmopt.PluginContractError, "must name a module or an object with functions"),
        (["kind"], llmopt.PluginContractError, "must name a module or an object with functions"),
        (["twice"], llmopt.PluginConflict, "'twice' is claimed by wrap 1.0 and wrap2 1.0"),
    ],
)
def test_a_wrapper_that_cannot_be_used_is_one_clear_error(
    wrappers: Any, kind: type[Exception], words: str, fake: FakeProvider
) -> None:
    """Where the client is made."""
    with pytest.raises(kind, match=words):
        llmopt.AsyncClient(config(fake, wrappers))


def test_llmopt_plugins_lists_wrappers(fake: FakeProvider) -> None:
    """Those that are installed, with their state, and those that are configured and missing."""
    chosen = llmopt.Config(wrappers=["tenant", "missing"])
    rows = {each.name: each for each in plugins_overview(chosen) if each.name.startswith("wrapper ")}
    assert {name.removeprefix("wrapper "): row.state for name, row in rows.items()} == {
        "tenant": "ok",
        "broken": "does not load",
        "empty": "breaks the contract",
        "kind": "breaks the contract",
        "twice": "conflict",
        "missing": "not installed",
    }
    assert (rows["wrapper tenant"].entries, rows["wrapper tenant"].problem) == (("all",), "")
    assert rows["wrapper missing"].entries == ("all",)
    assert rows["wrapper missing"].problem.startswith("no wrapper missing is installed; ")
    assert rows["wrapper tenant"].distributions == ("wrap 1.0",)
    assert rows["wrapper empty"].entries == ()
    lost = next(each for each in plugins_overview(chosen) if each.name == "lost")
    assert "if its author means 'llmopt.wrappers'" in lost.problem


def test_a_wrapper_that_is_given_twice_is_refused(fake: FakeProvider) -> None:
    """By the configuration, by the program, or by each of them once."""
    import wrap_tenant  # type: ignore[import-not-found]  # the fixture writes it

    for wrappers, plugins in ((["tenant"] * 2, ()), ([], [wrap_tenant] * 2), (["tenant"], [wrap_tenant])):
        with (
            llmopt.Client(config(fake, wrappers), transport=fake.transport, plugins=plugins) as client,
            pytest.raises(llmopt.ConfigError, match=r"wrapper wrap_tenant is given twice.*; leave one out"),
        ):
            client.embed("fake/m", ["a"])
    assert not fake.calls
