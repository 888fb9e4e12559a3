"""``llmopt plugins`` lists installed plugins and their faults."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llmopt import __version__
from llmopt.cli.doctor import print_plugins as show
from llmopt.cli.overview import PluginOverview
from tests.cli.installed import install, path_with
from tests.cli.run import invoke, json_of, llmopt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a faulty plugin of every kind."""
    folder = tmp_path_factory.mktemp("packages")
    install(folder, "other-local-9.1", {"local": "other_local"}, {"other_local": ""})
    install(
        folder,
        "broken-1.0",
        {"broken": "broken_plugin"},
        {"broken_plugin": "raise RuntimeError('not today')"},
    )
    misspelt = "from llmopt import hookimpl\n@hookimpl\ndef batch_limits(call):\n    return None\n"
    install(folder, "misspelt-1.0", {"misspelt": "misspelt_plugin"}, {"misspelt_plugin": misspelt})
    install(folder, "odd-1.0", {"Odd.Name": "odd_plugin"}, {"odd_plugin": ""})
    install(folder, "capital-1.0", {"Upper": "capital_plugin"}, {"capital_plugin": ""})
    for name, requires in {"later": "llmopt>=2,<3", "other": "llmopt>=9; extra == 'never'"}.items():
        install(folder, f"{name}-1.0", {name: f"{name}_plugin"}, {f"{name}_plugin": ""})
        with (folder / f"{name}-1.0.dist-info" / "METADATA").open("a") as metadata:
            metadata.write(f"Requires-Dist: {requires}\nRequires-Dist: not a requirement!\n")
    for number, group in enumerate(
        ("llmopts", "llmopt.providers", "llmopt.falback", "llm", "llm_ops", "pytest12")
    ):
        install(folder, f"group{number}-1.0", {f"in-{group}": "odd_plugin"}, {}, group)
    return folder


@cache
def plugins(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The reports of ``llmopt plugins`` by plugin, once for each folder; the exit code is 3."""
    done = llmopt("plugins", "--json", *arguments, env=path_with(folder))
    assert done.returncode == 3
    return {each["name"]: each for each in json_of(done)["plugins"]}


def test_a_row_has_distribution_module_state_and_entries() -> None:
    Path("llmopt.toml").write_text('[providers.near]\nplugin = "local"\nbase_url = "http://127.0.0.1:1/v1"\n')
    done = invoke("plugins")
    assert done.exit_code == 0, done.stderr
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines()}
    assert rows["local"] == ["llmopt-plugin-local 0.1.0", "llmopt_plugin_local", "ok", "near", ""]


def test_a_plugin_of_many_providers_is_one_row() -> None:
    """Its last column has all names; JSON output has them as a list."""
    Path("llmopt.toml").write_text('[providers.fast]\nplugin = "groq"\n')
    done = invoke("plugins")
    assert done.exit_code == 0, done.stderr
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines()}
    assert not {"groq", "xai"} & set(rows)
    names = rows["compatible"][-1].split(", ")
    assert {"groq", "xai", "openrouter"} <= set(names)
    assert len(names) >= 57
    assert rows["compatible"][3] == "fast"
    table = {each["name"]: each for each in json.loads(invoke("plugins", "--json").stdout)["plugins"]}
    assert table["compatible"]["providers"] == names


def test_on_a_terminal_the_names_follow_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has their number."""
    lines: list[str] = []
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        "llmopt.cli.doctor.print_table", lambda columns, rows, **_: lines.extend(map(str, rows))
    )
    monkeypatch.setattr("llmopt.cli.doctor.click.echo", lines.append)
    overview = PluginOverview(name="many", providers=("north", "south"))
    show([overview], no_color=True)
    assert "'2'" in lines[0]
    assert lines[1:] == ["many serves 2 providers:", "north, south"]


def test_a_conflict_names_both_distributions(folder: Path) -> None:
    local = plugins(folder)["local"]
    assert local["state"] == "conflict"
    assert sorted(local["distributions"]) == ["llmopt-plugin-local 0.1.0", "other-local 9.1"]
    assert "llmopt-plugin-local 0.1.0 and other-local 9.1; uninstall all but one" in local["problem"]


def test_a_faulty_plugin_has_a_state_of_its_own(folder: Path) -> None:
    """And the other plugins still work."""
    states = plugins(folder)
    assert states["broken"]["state"] == "does not load"
    assert "RuntimeError: not today" in states["broken"]["problem"]
    assert "/broken_plugin.py, line 1)" in states["broken"]["problem"]
    assert states["misspelt"]["state"] == "breaks the contract"
    assert "batch_limits" in states["misspelt"]["problem"]
    assert states["Odd.Name"]["state"] == "unusable name"
    assert states["mistral"]["state"] == "ok"
    assert (states["later"]["state"], states["other"]["state"]) == ("other version", "ok")
    assert states["later"]["problem"] == (
        f"it requires llmopt<3,>=2, and llmopt {__version__} is installed; install versions of both that fit."
    )


def test_an_entry_point_in_capitals_is_told(folder: Path) -> None:
    """It works, under a name that its author did not write."""
    upper = plugins(folder)["upper"]
    assert upper["state"] == "ok"
    assert upper["problem"].startswith("'Upper' is used as 'upper': names of plugins are in lower case")


def test_a_misspelt_entry_point_group_is_told(folder: Path) -> None:
    """Else the plugin would seem not to be installed at all. A group of another project is left alone."""
    found = {name: each for name, each in plugins(folder).items() if name.startswith("in-")}
    assert {name: each["state"] for name, each in found.items()} == dict.fromkeys(
        ("in-llmopt.falback", "in-llmopt.providers", "in-llmopts"), "unknown group"
    )
    assert found["in-llmopts"]["distributions"] == ["group0 1.0"]
    assert found["in-llmopt.falback"]["problem"] == (
        "llmopt does not read the entry-point group 'llmopt.falback'; "
        "if its author means 'llmopt.fallback', they must rename it."
    )


PROFILE = "@hookimpl\ndef provider_profile():\n    return Profile(base_url='https://here.example/v1')\n"
WRONG = [
    (
        "@hookimpl\ndef provider_profile():\n    return {}\n",
        "provider_profile returned dict; expected Profile",
    ),
    ("@hookimpl\ndef provider_profile():\n    return Profile(base_url=7)\n", "a Profile that cannot be used"),
    (
        "@hookimpl\ndef provider_profile():\n    return Profile(base_url='htp://here.example')\n",
        "a Profile that cannot be used (providers.wrong2.base_url: expected https://<host>",
    ),
    (
        "@hookimpl\ndef provider_profile():\n    return Profile(headers={'a b': 'c'})\n",
        "a Profile that cannot be used (headers: one of the names is not a valid header name)",
    ),
    (
        PROFILE + "@hookimpl\ndef classify_error(failure):\n    return 'retry'\n",
        "classify_error returned str",
    ),
    (PROFILE + "@hookimpl\ndef batch_limit(call):\n    return 128\n", "batch_limit returned int"),
    (
        PROFILE + "@hookimpl\ndef build_request(call):\n    return call.text\n",
        "build_request raised AttributeError",
    ),
    (PROFILE + "@hookimpl\ndef rate_limits(response):\n    return {}\n", "rate_limits returned dict"),
]


@pytest.fixture(scope="module")
def wrong_plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin for each source of WRONG, so that one process can report them all."""
    folder = tmp_path_factory.mktemp("wrong")
    for number, (source, _) in enumerate(WRONG):
        module = f"wrong_plugin{number}"
        code = f"from llmopt import Profile, hookimpl\n{source}"
        install(folder, f"wrong{number}-1.0", {f"wrong{number}": module}, {module: code})
    return folder


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[problem for _, problem in WRONG])
def test_a_wrong_return_value_is_reported(number: int, wrong_plugins: Path) -> None:
    """The command calls the hooks that need no network."""
    _, problem = WRONG[number]
    wrong = plugins(wrong_plugins)[f"wrong{number}"]
    assert wrong["state"] == "breaks the contract"
    assert problem in wrong["problem"]


def test_hooks_that_need_the_configuration_are_no_fault(tmp_path: Path) -> None:
    """A hook that needs a configured option, refuses the model or starts an engine is not judged."""
    head = "from llmopt import InvalidInput, Profile, hookimpl\n"
    nowhere = "@hookimpl\ndef batch_limit(settings):\n    return settings.options['region']\n"
    refuses = PROFILE + "@hookimpl\ndef batch_limit(call):\n    raise InvalidInput('no such model')\n"
    refuses += "@hookimpl\ndef open_transport(settings):\n    raise RuntimeError('an engine started')\n"
    modules = {"nowhere_plugin": head + nowhere, "refuses_plugin": head + refuses}
    install(tmp_path, "fine-1.0", {"nowhere": "nowhere_plugin", "refuses": "refuses_plugin"}, modules)
    done = llmopt("plugins", "--json", env=path_with(tmp_path))
    states = {each["name"]: each["state"] for each in json_of(done)["plugins"]}
    assert (done.returncode, states["nowhere"], states["refuses"]) == (0, "ok", "ok")


def test_an_entry_without_its_plugin_is_reported(tmp_path: Path) -> None:
    """Without a command to install a package that may not exist."""
    Path("llmopt.toml").write_text('[providers.mine]\nplugin = "qqqq"\n')
    absent = plugins(tmp_path)["qqqq"]
    assert (absent["state"], absent["entries"]) == ("not installed", ["mine"])
    assert absent["problem"].startswith("no plugin 'qqqq' is installed; llmopt plugins lists")


def test_problems_are_sentences_on_standard_error(folder: Path) -> None:
    done = llmopt("plugins", env=path_with(folder))
    assert done.returncode == 3
    assert len(done.stderr.decode().splitlines()) == 9
    assert b"broken\tbroken 1.0\tbroken_plugin\tdoes not load\t" in done.stdout


def test_without_plugins_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib_metadata.entry_points", tuple)
    # Metadata is read again when the path has changed.
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "pip install llmopt-plugin-local" in invoke("plugins").stderr


RAISING = """
from llmopt import hookimpl

@hookimpl
def build_request(call):
    names = {}
    return names["no such field"]
"""


@pytest.mark.row("G03")
@pytest.mark.parametrize(
    "arguments",
    [
        ("embed", "in.txt", "--model", "raising/m", "--out", "out.npy"),
        ("embed", "in.txt", "--model", "raising/m", "--out", "out.npy", "--errors", "return"),
        ("chat", "raising/m"),
        ("models", "raising"),
    ],
    ids=["embed", "embed-return", "chat", "models"],
)
def test_a_hook_exception_is_printed_with_its_text_and_place(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """In one sentence, which does not blame the caller; LLMOPT_TRACEBACK=1 adds the plugin's own frame."""
    folder = tmp_path / "raising"
    install(folder, "raising-1.0", {"raising": "raising_plugin"}, {"raising_plugin": RAISING})
    Path("llmopt.toml").write_text('[providers.raising]\nbase_url = "http://127.0.0.1:1/v1"\napi_key = "k"\n')
    Path("in.txt").write_text("one\ntwo\n")
    done = llmopt(*arguments, stdin=b"Hello?", env={**path_with(folder), "LLMOPT_TRACEBACK": "1"})
    printed = done.stderr.decode()
    sentence = printed.splitlines()[-1]
    assert (
        "hook build_request raised KeyError: 'no such field' (raising/raising_plugin.py, line 7)" in sentence
    )
    assert "extra" not in sentence
    assert 'return names["no such field"]' in printed
    assert "in build_request" in printed
