"""The option ``shared`` and the table ``[shared]``: which store is used, and what is wrong with a wrong one."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any, Final

import pytest

import llmopt
from llmopt.client.options import shared_options
from llmopt.config.load import load_config
from llmopt.config.schema import Config, SharedEntry
from llmopt.shared.state import open_store
from llmopt.testing import SimulatedClock, SimulatedStore

ENVIRONMENT: Final = {"LLMOPT_SHARED_SECRET": "a secret text", "OTHER": "another one"}
URL: Final = "known://user:pass-word@host/0"


def make(url: str) -> llmopt.SharedState:
    """The factory of an installed package."""
    if "refused" in url:
        raise ValueError(url)
    if "nothing" in url:
        return None  # type: ignore[return-value] # a package with a fault
    return SimulatedStore(SimulatedClock()).connect()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package for one scheme is installed."""

    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        known = (group, name) == ("llmopt.shared", "known")
        return [EntryPoint("known", f"{__name__}:make", "llmopt.shared")] if known else []

    monkeypatch.setattr("importlib_metadata.entry_points", entry_points)


def config(**table: Any) -> Config:
    return load_config({"shared": table}, environ={})


def test_nothing_is_shared_by_default() -> None:
    """And nothing where the client says so."""
    assert shared_options(None, config(), {}) is None
    assert shared_options(False, config(url=URL), {}) is None


def test_the_url_of_the_configuration_opens_the_store_of_its_scheme() -> None:
    """The client closes what it has opened; a store that it was given belongs to the user."""
    options = shared_options(None, config(url=URL, required=True), ENVIRONMENT)
    assert options is not None
    assert options.owned
    assert options.required
    assert options.secret == b"a secret text"
    given = SimulatedStore(SimulatedClock()).connect()
    options = shared_options(given, config(secret_env="OTHER"), ENVIRONMENT)
    assert options is not None
    assert options.store is given
    assert not options.owned
    assert options.secret == b"another one"


def test_neither_secret_nor_url_is_shown() -> None:
    """Not in a repr, and not in an error."""
    options = shared_options(URL, config(url=URL), ENVIRONMENT)
    assert "secret text" not in repr(options)
    assert "pass-word" not in repr(config(url=URL))
    with pytest.raises(llmopt.ConfigError, match=r"cannot be made \(ValueError\)") as caught:
        open_store("known://user:pass-word@refused")
    assert "pass-word" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("valkey://host:6379/0", "pip install llmopt-valkey"),
        ("rediss://host", "pip install llmopt-valkey"),
        ("etcd://host", "no store for etcd:// is installed"),
        ("host:6379", "expected a URL such as valkey://host:6379/0"),
        ("valkey://", "expected a URL such as valkey://host:6379/0"),
        ("known://nothing", "is no llmopt.SharedState"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_clear_error(url: str, words: str) -> None:
    """It says what to install, or what to write."""
    with pytest.raises(llmopt.ConfigError, match="shared:") as caught:
        shared_options(url, config(), ENVIRONMENT)
    assert words in str(caught.value)


def test_a_secret_is_needed() -> None:
    """The error names the variable, and what to do."""
    with pytest.raises(llmopt.ConfigError, match="LLMOPT_SHARED_SECRET is not set"):
        shared_options(URL, config(), {})
    with pytest.raises(llmopt.ConfigError, match="MY_SECRET is not set"):
        shared_options(URL, config(secret_env="MY_SECRET"), ENVIRONMENT)


@pytest.mark.parametrize("choice", [True, 1, b"valkey://host", object(), ["valkey://host"]])
def test_a_value_of_the_wrong_type_is_refused(choice: Any) -> None:
    """Before any I/O."""
    with pytest.raises(llmopt.ConfigError, match="shared must be a URL or an object"):
        shared_options(choice, config(), ENVIRONMENT)


def test_required_without_a_store_is_a_mistake() -> None:
    """Nobody writes it who does not want one."""
    with pytest.raises(llmopt.ConfigError, match=r"set shared\.url as well"):
        shared_options(None, config(required=True), ENVIRONMENT)


def test_the_table_in_all_layers(tmp_path: Any) -> None:
    """File, environment and argument are merged key by key."""
    file = tmp_path / "llmopt.toml"
    file.write_text('[shared]\nurl = "valkey://file"\nsecret_env = "OTHER"\n')
    environ = {"LLMOPT_CONFIG": str(file), "LLMOPT_SHARED__REQUIRED": "yes", "LLMOPT_SHARED_SECRET": "s"}
    loaded = load_config({"shared": {"url": "valkey://argument"}}, environ=environ)
    assert loaded.shared == SharedEntry(url="valkey://argument", secret_env="OTHER", required=True)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"urls": "x"}, "did you mean url?"),
        ({"url": 1}, "shared.url: expected text"),
        ({"required": "perhaps"}, "shared.required: expected true or false"),
        ({"secret_env": "not a name"}, "shared.secret_env: expected the name"),
    ],
)
def test_a_wrong_key_is_named(table: dict[str, Any], words: str) -> None:
    """With its path."""
    with pytest.raises(llmopt.ConfigError) as caught:
        config(**table)
    assert words in str(caught.value)


def test_both_clients_check_it_when_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the first call."""
    monkeypatch.delenv("LLMOPT_SHARED_SECRET", raising=False)
    for kind in (llmopt.AsyncClient, llmopt.Client):
        with pytest.raises(llmopt.ConfigError, match="LLMOPT_SHARED_SECRET"):
            kind({}, shared="known://host")
