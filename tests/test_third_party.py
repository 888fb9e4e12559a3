"""A stranger's plugin: built as a wheel, installed with pip, found, used, removed; refused where it must be."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

import llmopt
from llmopt.providers.discovery import how_to_install
from tests.support.emulators import OpenAIEmulator, serve_in_thread, vector_for
from tests.support.scale import NIGHTLY, scaled
from tests.thirdparty.wheels import Environment, build_wheel, write_wheel

ACME = Path(__file__).parent / "thirdparty" / "acme"
_LISTED = "llmopt plugins lists what is installed, and docs/plugins.md describes how to add a provider"
EMPTY = '"""A plugin that leaves everything to the core."""\n'

_DISCOVER = "from llmopt.providers.discovery import discover_plugins\n"
_INSTALLED = f"{_DISCOVER}found = sorted(discover_plugins())"
_ASK = """
import llmopt
found = {}
for name in NAMES:
    try:
        with llmopt.Client({"providers": {}}) as client:
            found[name] = client.embed(f"{name}/acme-embed", ["a text"]).vectors.shape
    except llmopt.LLMOptError as error:
        found[name] = [type(error).__name__, str(error)]
"""


def error_of(environment: Environment, name: str, path: tuple[Path, ...] = ()) -> tuple[str, str]:
    """The class and the message of the error that a call to a provider ends in."""
    kind, message = environment.tell(f"NAMES = {[name]!r}{_ASK}", path=path)[name]
    return kind, message


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Acme's wheel, as its author would build it."""
    pytest.importorskip("pip", reason="this environment has no pip to install with")
    return build_wheel(ACME, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with Acme's plugin in it."""
    found = Environment(tmp_path_factory.mktemp("environment"))
    found.install(wheel)
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIEmulator]:
    """Acme's server: it speaks the common dialect."""
    with serve_in_thread(
        OpenAIEmulator(key="acme-emulated", embedding_models={"acme-embed": 16})
    ) as emulator:
        yield emulator


def config(server: OpenAIEmulator) -> str:
    """The configuration of a client that uses it."""
    return repr({"providers": {"acme": {"base_url": server.base_url, "api_key": "acme-emulated"}}})


def test_the_example_plugin_is_short() -> None:
    """At most 25 lines for a provider that speaks the common dialect, and a test file of three."""
    module = (ACME / "llmopt_plugin_acme" / "__init__.py").read_text()
    assert len(module.splitlines()) <= 25
    test = (ACME / "tests" / "test_acme.py").read_text()
    assert len([line for line in test.splitlines() if line]) == 3


def test_an_installed_plugin_is_found(environment: Environment) -> None:
    """By its entry point, without an import."""
    code = f"{_DISCOVER}import sys\nfound = [sorted(discover_plugins()), 'llmopt_plugin_acme' in sys.modules]"
    names, imported = environment.tell(code)
    assert "acme" in names
    assert imported is False


def test_an_installed_plugin_is_used(environment: Environment, server: OpenAIEmulator) -> None:
    """Over a real socket: vectors in their order, and the list of models."""
    code = f"""
import llmopt
with llmopt.Client({config(server)}) as client:
    rows = client.embed("acme/acme-embed", ["one", "two", "one"]).vectors
    found = [rows.tolist(), [model.id for model in client.list_models("acme")]]
"""
    rows, models = environment.tell(code)
    assert rows == [vector_for(text, 16).tolist() for text in ("one", "two", "one")]
    assert "acme-embed" in models


def test_an_installed_plugin_passes_the_kit(environment: Environment) -> None:
    """By its name, and nothing about its packaging is left out."""
    done = environment.run("-m", "llmopt_conformance", "acme", "--verbose")
    assert done.returncode == 0, done.stdout
    for check in ("package.entry-point", "package.name", "package.requires", "package.typed", "import.light"):
        assert f"passed  {check}\n" in done.stdout
    assert "passed  own-errors.the-credit-is-used-up" in done.stdout


def test_the_plugins_own_test_file_passes(environment: Environment, tmp_path: Path) -> None:
    """As its author runs them; before each change some, because the command above runs the same checks."""
    shutil.copy(ACME / "tests" / "test_acme.py", tmp_path)
    some = [] if NIGHTLY else ["-k", "embeddings or request"]
    done = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *some, str(tmp_path))
    assert done.returncode == 0, done.stdout
    passed = int(done.stdout.rpartition(" passed")[0].rpartition("\n")[2].split()[0])
    assert passed >= scaled(30, nightly=60)


def test_removing_a_plugin_leaves_no_trace(tmp_path: Path, wheel: Path) -> None:
    """Every file is gone, the provider is unknown, and the error names no package that is not ours."""
    environment = Environment(tmp_path)
    before = environment.files()
    environment.install(wheel)
    assert environment.files() > before
    assert "acme" in environment.tell(_INSTALLED)
    environment.uninstall("llmopt-plugin-acme")
    assert environment.files() == before
    assert "acme" not in environment.tell(_INSTALLED)
    kind, message = error_of(environment, "acme")
    assert kind == "UnknownProvider"
    assert message.endswith(_LISTED)


def _unpacked(wheel: Path, folder: Path) -> Path:
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.row("G02")
def test_two_distributions_with_one_name_are_refused(tmp_path: Path, wheel: Path) -> None:
    """Both are named, whichever comes first on the path; other providers work."""
    other = write_wheel(tmp_path, "acme-for-llmopt", "9.1", "acme", {"acme_for_llmopt.py": EMPTY})
    first, second = _unpacked(wheel, tmp_path / "first"), _unpacked(other, tmp_path / "second")
    environment = Environment(tmp_path / "environment")
    told = [error_of(environment, "acme", order) for order in ((first, second), (second, first))]
    assert told[0] == told[1]
    kind, message = told[0]
    assert kind == "PluginConflict"
    assert "acme-for-llmopt 9.1" in message
    assert "llmopt-plugin-acme 1.2.3" in message
    assert "uninstall" in message


def test_the_same_distribution_twice_on_the_path_is_no_conflict(tmp_path: Path, wheel: Path) -> None:
    """As an editable checkout beside an installed wheel is: the first one counts."""
    first, second = _unpacked(wheel, tmp_path / "first"), _unpacked(wheel, tmp_path / "second")
    environment = Environment(tmp_path / "environment")
    kind, _ = error_of(environment, "acme", (first, second))
    assert kind == "ConfigError"


BROKEN = {
    "no-module": "import llmopt_there_is_no_such_module\n",
    "no-name": "from llmopt import ThereIsNoSuchName\n",
    "no-syntax": "def build_request(:\n",
    "no-sense": "raise RuntimeError('broken on purpose')\n",
    "exits": "import sys\nsys.exit(3)\n",
    "misspelled": "from llmopt import hookimpl\n@hookimpl\ndef batch_limits():\n    return None\n",
    "unmarked": "def batch_limit():\n    return None\n",
    "not-pure": "from llmopt import hookimpl\n@hookimpl\ndef provider_profile():\n    return 7\n",
}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with Acme's plugin among broken ones."""
    folder = tmp_path_factory.mktemp("broken")
    wheels = [
        write_wheel(
            folder, f"llmopt-plugin-{name}", "1.0", name, {f"broken_{name.replace('-', '_')}.py": source}
        )
        for name, source in BROKEN.items()
    ]
    found = Environment(tmp_path_factory.mktemp("crowded"))
    found.install(wheel, *wheels)
    return found


@pytest.mark.row("G01")
def test_broken_plugins_do_not_affect_others(crowded: Environment, server: OpenAIEmulator) -> None:
    """All of them are found, one works, and everything is listed that can be."""
    code = f"""
import llmopt
with llmopt.Client({config(server)}) as client:
    every = client.batch_list_models()
    found = [list(client.embed("acme/acme-embed", ["a text"]).vectors.shape), sorted(every), len(every["acme"])]
"""
    shape, listed, models = crowded.tell(code)
    assert shape == [1, 16]
    assert "acme" in listed
    assert models > 0
    assert set(BROKEN) < set(crowded.tell(_INSTALLED))


@pytest.fixture(scope="module")
def errors(crowded: Environment) -> dict[str, tuple[str, str]]:
    """What a call to each broken plugin ends in, all in one process."""
    found: dict[str, tuple[str, str]] = crowded.tell(f"NAMES = {list(BROKEN)!r}{_ASK}")
    return found


@pytest.mark.row("G01")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_raises_an_error_with_its_cause(
    errors: dict[str, tuple[str, str]], name: str
) -> None:
    """It is a PluginError that names the provider and the cause."""
    kind, message = errors[name]
    assert kind in ("PluginLoadError", "PluginContractError")
    assert repr(name) in message
    cause = {
        "no-module": "llmopt_there_is_no_such_module",
        "no-name": "ThereIsNoSuchName",
        "no-syntax": "SyntaxError",
        "no-sense": "broken on purpose",
        "exits": "SystemExit",
        "misspelled": "batch_limits",
        "unmarked": "@llmopt.hookimpl",
        "not-pure": "returned int; expected Profile",
    }[name]
    assert cause in message


@pytest.mark.parametrize(
    ("providers", "model", "end"),
    [
        ({}, "qqqq/m", _LISTED),
        ({"mine": {"plugin": "qqqq"}}, "mine/m/with/slashes", _LISTED),
        ({}, "llmopt-plugin-qqqq/m", _LISTED),
        ({}, "opemai/m", "did you mean 'openai'? If not, " + _LISTED),
        ({"mine": {"plugin": "opemai"}}, "mine/m", "did you mean 'openai'? If not, " + _LISTED),
    ],
)
def test_an_unknown_provider_is_no_package(
    providers: dict[str, dict[str, str]], model: str, end: str
) -> None:
    """A guessed package may be a stranger's; a name that is similar comes first."""
    with llmopt.Client({"providers": providers}) as client, pytest.raises(llmopt.UnknownProvider) as caught:
        client.embed(model, ["a text"])
    assert str(caught.value).endswith(f"; {end}")
    assert "pip install" not in str(caught.value)


@pytest.mark.parametrize(
    ("plugin", "advice"),
    [
        ("openai", "try: pip install llmopt-plugin-openai"),
        ("llmopt-plugin-openai", "try: pip install llmopt-plugin-openai"),
        ("groq", "try: pip install llmopt-plugin-compatible"),
        ("opemai", "if you mean 'openai', try: pip install llmopt-plugin-openai"),
    ],
)
def test_one_of_our_packages_is_named(plugin: str, advice: str) -> None:
    """For its own names, those of the table, and what is similar to one."""
    assert how_to_install(plugin) == advice


def test_the_packages_that_are_named_are_ours() -> None:
    """Each with the names that it serves."""
    ours = {}
    for project in (Path(__file__).parents[1] / "plugins").glob("*/pyproject.toml"):
        table = tomllib.loads(project.read_text())["project"]
        points = table["entry-points"]
        ours[table["name"]] = [*points["llmopt"], *points.get("llmopt.fallback", ())]
    listed = Path(llmopt.__file__).parent / "providers" / "packages.toml"
    assert tomllib.loads(listed.read_text()) == ours
