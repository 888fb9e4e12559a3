"""Layers of the configuration: which file is read, what overrides it, and errors of broken files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import llmopt.config.resolve
from llmopt.config.load import Environment, load_config
from llmopt.config.schema import Config, EnvText, ProviderEntry
from llmopt.errors import ConfigError
from llmopt.values.profile import Option, Profile
from llmopt.values.secret import Secret
from tests.config.helpers import CANARY, fault, load, one


def rpm(config: Config) -> object:
    return config.entry("acme").rpm


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def files(nowhere: Path) -> dict[str, Path]:
    """Write a file into every searched place; each sets another rate."""
    home = nowhere.parent / "home" / "llmopt" / "llmopt.toml"
    places = {
        "here": nowhere / "llmopt.toml",
        "home": home,
        "named": nowhere / "x.toml",
        "given": nowhere / "y.toml",
    }
    for number, path in enumerate(places.values(), 1):
        write(path, f"[providers.acme]\nrpm = {number}\n")
    return places


def test_without_a_file_the_configuration_is_empty() -> None:
    assert load_config(environ={}) == Config()


def test_the_first_file_in_the_search_order_is_the_only_one_read(files: dict[str, Path]) -> None:
    """Argument, LLMOPT_CONFIG, current directory, the user's folder."""
    named = {"LLMOPT_CONFIG": str(files["named"])}
    assert rpm(load_config(str(files["given"]), environ=named)) == 4
    assert rpm(load_config(files["given"], environ=named)) == 4
    assert rpm(load_config(environ=named)) == 3
    assert rpm(load_config(environ={"LLMOPT_CONFIG": ""})) == 1
    files["here"].unlink()
    assert rpm(load_config(environ={})) == 2
    files["home"].unlink()
    assert rpm(load_config(environ={})) is None


def test_a_mapping_overrides_the_environment_which_overrides_the_file(files: dict[str, Path]) -> None:
    """Each layer overrides only the keys that it has."""
    write(
        files["here"],
        "[providers.acme]\nrpm = 1\ntpm = 1\nmax_retries = 1\n[providers.acme.timeouts]\nread = 1\n",
    )
    environ = {"LLMOPT_PROVIDERS__ACME__TPM": "2", "LLMOPT_PROVIDERS__ACME__MAX_RETRIES": "2"}
    loaded = load_config(
        {"providers": {"acme": {"max_retries": 3, "timeouts": {"connect": 3}}}}, environ=environ
    )
    entry = loaded.entry("acme")
    assert (entry.rpm, entry.tpm, entry.max_retries) == (1, 2, 3)
    assert (entry.timeouts.read, entry.timeouts.connect) == (1, 3)


def test_a_config_object_is_used_unchanged(files: dict[str, Path]) -> None:
    """No layer is merged with it."""
    config = Config(providers={"acme": ProviderEntry(rpm=9)})
    assert load_config(config, environ={"LLMOPT_PROVIDERS__ACME__RPM": "5"}) is config


def test_the_example_of_the_documentation_is_valid(nowhere: Path) -> None:
    write(
        nowhere / "llmopt.toml",
        """
        cache = true
        [flags]
        coalesce = false
        [providers.my-vllm]
        plugin = "local"
        base_url = "http://127.0.0.1:8000/v1"
        [providers.azure]
        api_version = "2024-10-21"
        [[providers.azure.endpoints]]
        base_url = "https://east.openai.azure.example"
        api_key_env = "EAST"
        weight = 2
        [[providers.azure.endpoints]]
        base_url = "https://west.openai.azure.example"
        rpm = { default = 100, small = 10 }
        """,
    )
    loaded = load_config(environ={})
    assert loaded.flags == {"coalesce": False}
    assert loaded.entry("my-vllm").plugin_name == "local"
    east, west = loaded.entry("azure").endpoints
    assert (east.weight, west.rpm) == (2.0, {"default": 100.0, "small": 10.0})
    assert loaded.entry("azure").options == {"api_version": "2024-10-21"}


def test_an_error_in_a_file_names_the_file(nowhere: Path) -> None:
    """An error in a variable names the environment."""
    write(nowhere / "llmopt.toml", "[providers.acme]\nrpm = true\n")
    message = fault(lambda: load_config(environ={}))
    assert message == "llmopt.toml: providers.acme.rpm: expected a number above 0, got true or false."
    environ = {"LLMOPT_CONFIG": os.devnull, "LLMOPT_PROVIDERS__ACME__RPM": "many"}
    message = fault(lambda: load_config(environ=environ))
    assert message == "environment: providers.acme.rpm: expected a number above 0, got text."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a = 1\n[providers.acme]\nrpm = = 5\n", "line 3"),
        (b"[providers.acme]\nrpm = [1,\n2,\n", "line 3, the end of the document"),
        (b"a = 1\nb = '\xff'\n", "not UTF-8 (at line 2)"),
        pytest.param(b"a = " + b"[" * 100_000, "nested too deeply", id="deep"),
        pytest.param(b"a = " + b"9" * 10_000, "a number or a date in it does not exist", id="long"),
        (b"a = 2024-13-45\n", "llmopt.toml: not valid TOML"),
        (b"a = 1\na = 2\n", "line 2"),
        (f"api_key = '{CANARY}\n".encode(), "line 1"),
        (f"[providers.acme]\napi_key = {CANARY}\n".encode(), "line 2"),
    ],
)
def test_a_syntax_error_names_the_line(nowhere: Path, content: bytes, reason: str) -> None:
    """And shows no content of the file."""
    (nowhere / "llmopt.toml").write_bytes(content)
    message = fault(lambda: load_config(environ={}))
    assert message.startswith("llmopt.toml: not ")
    assert reason in message


def test_a_file_with_byte_order_mark_and_crlf_is_read(nowhere: Path) -> None:
    (nowhere / "llmopt.toml").write_bytes(b"\xef\xbb\xbf[providers.acme]\r\nrpm = 5\r\n")
    assert rpm(load_config(environ={})) == 5


def test_a_named_file_must_exist(nowhere: Path) -> None:
    for call in (
        lambda: load_config("missing.toml", environ={}),
        lambda: load_config(Path("missing.toml"), environ={}),
        lambda: load_config(environ={"LLMOPT_CONFIG": "missing.toml"}),
    ):
        assert fault(call) == "the configuration file missing.toml cannot be read: No such file or directory."
    assert "Is a directory" in fault(lambda: load_config(str(nowhere), environ={}))
    assert "cannot be read" in fault(lambda: load_config("", environ={}))
    assert "not a valid path" in fault(lambda: load_config("a\0b", environ={}))
    assert "cannot be read" in fault(lambda: load_config("~nobody-of-this-name/x.toml", environ={}))


def test_an_unreadable_file_is_an_error(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(nowhere / "llmopt.toml", "")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in fault(lambda: load_config(environ={}))


def test_a_huge_file_is_not_read(nowhere: Path) -> None:
    """No configuration has five megabytes."""
    (nowhere / "llmopt.toml").write_bytes(b"#" * 5_000_000)
    assert "is larger than" in fault(lambda: load_config(environ={}))


@pytest.mark.parametrize("source", [5, b"llmopt.toml", ["x"], object(), 1.5, True])
def test_a_source_of_another_type_is_an_error(source: object) -> None:
    message = fault(lambda: load_config(source, environ={}))  # type: ignore[arg-type]
    assert message.startswith("config: expected a mapping, a path or a Config, got ")


def test_a_traceback_with_local_variables_shows_no_key(nowhere: Path) -> None:
    """Some loggers record the variables of each frame."""
    write(nowhere / "llmopt.toml", f"[providers.acme]\napi_key = '{CANARY}'\nrpm = true\n")
    environ = Environment({"ACME_API_KEY": CANARY})
    with pytest.raises(ConfigError, match="rpm") as caught:
        load_config(environ=environ)
    assert CANARY not in with_locals(caught.value)
    (nowhere / "llmopt.toml").unlink()
    environ = Environment({"ACME_API_KEY": CANARY, "LLMOPT_PROVIDERS__ACME__API_KEY": f"{CANARY} x"})
    with pytest.raises(ConfigError, match="api_key") as caught:
        load_config(environ=environ)
    assert CANARY not in with_locals(caught.value)


def with_locals(error: BaseException) -> str:
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "environ = " in shown
    return shown


class TestEntryInTwoLayers:
    """A key belongs to the base URL that it was configured with."""

    def merged(self, nowhere: Path, lower: str, keys: dict[str, object]) -> ProviderEntry:
        """The entry ``acme`` of a file, overridden by these keys."""
        write(nowhere / "llmopt.toml", f"[providers.acme]\n{lower}")
        return load_config({"providers": {"acme": keys}}, environ={}).entry("acme")

    @pytest.mark.parametrize("key", [f"api_key = '{CANARY}'", "api_key_env = 'ACME_KEY'"])
    @pytest.mark.parametrize(
        "keys",
        [
            {"base_url": "https://other.example"},
            {"endpoints": [{"base_url": "https://other.example"}]},
            {"endpoints": [{"base_url": "https://mine.example"}, {"base_url": "https://other.example"}]},
            {"plugin": "other"},
        ],
    )
    def test_a_key_is_dropped_when_a_higher_layer_changes_the_base_url(
        self, nowhere: Path, key: str, keys: dict[str, object]
    ) -> None:
        """So is all else that belongs to the old address."""
        lower = f"{key}\nbase_url = 'https://mine.example'\nallow_http = true\nrpm = 5\nheaders = {{ x-secret = 'y' }}"
        lower += "\nquery = { key = 'y' }\nca_file = 'a'\nclient_cert = 'b'\nclient_key = 'c'"
        entry = self.merged(nowhere, lower, keys)
        assert (entry.api_key, entry.api_key_env, entry.allow_http) == (None, None, None)
        assert (entry.headers, entry.query) == ({}, {})
        assert (entry.ca_file, entry.client_cert, entry.client_key) == (None, None, None)
        assert entry.rpm == 5

    def test_a_variable_does_not_send_a_files_key_to_another_base_url(self, nowhere: Path) -> None:
        """The rule holds between any two layers."""
        write(nowhere / "llmopt.toml", f"[providers.acme]\napi_key = '{CANARY}'\n")
        environ = {"LLMOPT_PROVIDERS__ACME__BASE_URL": "https://other.example"}
        assert load_config(environ=environ).entry("acme").api_key is None

    def test_a_key_configured_with_the_new_base_url_is_used(self, nowhere: Path) -> None:
        """In either of the two ways to configure it."""
        lower = "api_key = 'old'\nbase_url = 'https://mine.example'"
        entry = self.merged(nowhere, lower, {"base_url": "https://other.example", "api_key_env": "NEW"})
        assert (entry.api_key, entry.api_key_env) == (None, "NEW")

    def test_the_same_base_url_in_a_higher_layer_keeps_the_key(self, nowhere: Path) -> None:
        lower = "api_key = 'old'\nbase_url = 'https://mine.example'"
        same: list[dict[str, object]] = [
            {"base_url": "https://mine.example"},
            {"endpoints": [{"deployment": "a"}, {"deployment": "b"}]},
            {"plugin": "acme"},
            {"rpm": 5},
        ]
        for keys in same:
            assert self.merged(nowhere, lower, keys).api_key == Secret("old")

    def test_a_higher_layer_can_set_the_key_of_a_lower_layers_base_url(self, nowhere: Path) -> None:
        """The file has the URL, and the program the key."""
        entry = self.merged(
            nowhere, "base_url = 'https://mine.example'\napi_key_env = 'X'", {"api_key": "new"}
        )
        assert (entry.base_url, entry.api_key, entry.api_key_env) == (
            "https://mine.example",
            Secret("new"),
            None,
        )

    def test_a_base_url_removes_the_endpoints_of_a_lower_layer(self, nowhere: Path) -> None:
        """They would override it otherwise."""
        lower = "endpoints = [{ base_url = 'https://mine.example', api_key = 'old' }]"
        assert self.merged(nowhere, lower, {"base_url": "https://other.example"}).endpoints == ()

    def test_endpoints_are_replaced_as_a_whole(self, nowhere: Path) -> None:
        """Positions in two lists do not correspond."""
        lower = "endpoints = [{ base_url = 'https://a.example', api_key = 'old' }, { base_url = 'https://b.example' }]"
        entry = self.merged(nowhere, lower, {"endpoints": [{"base_url": "https://a.example", "weight": 2}]})
        assert [(each.base_url, each.weight, each.api_key) for each in entry.endpoints] == [
            ("https://a.example", 2.0, None)
        ]

    def test_tables_are_merged_key_by_key(self, nowhere: Path) -> None:
        """Header names match without regard to case; a number replaces a table and a table a number."""
        lower = "headers = { X-A = '1', X-B = '1' }\nrpm = { a = 1, b = 1 }\nflags = { retry = false }\ntpm = 5\nmore = { x = 1, y = { z = 1 } }"
        keys = {
            "headers": {"x-a": "2"},
            "rpm": {"a": 2},
            "flags": {"cache": False},
            "tpm": {"a": 1},
            "more": {"y": {"w": 2}},
        }
        entry = self.merged(nowhere, lower, keys)
        assert entry.headers == {"x-a": "2", "x-b": "1"}
        assert entry.rpm == {"a": 2.0, "b": 1.0}
        assert entry.flags == {"retry": False, "cache": False}
        assert entry.tpm == {"a": 1.0}
        assert entry.options == {"more": {"x": 1, "y": {"z": 1, "w": 2}}}
        assert self.merged(nowhere, lower, {"rpm": 7}).rpm == 7.0


# Variables whose names begin with LLMOPT_.


def test_variables_switch_flags() -> None:
    """In the common spellings of true and false."""
    for text in ("false", "False", "0", "no", "OFF", " false "):
        assert load({}, LLMOPT_FLAGS__RETRY=text).flags == {"retry": False}
    for text in ("true", "TRUE", "1", "yes", "on"):
        assert load({}, LLMOPT_FLAGS__RETRY=text).flags == {"retry": True}
    message = fault(lambda: load({}, LLMOPT_FLAGS__RETRY="maybe"))
    assert message == "environment: flags.retry: expected true or false, got text."


def test_a_variable_is_converted_to_the_type_of_its_key() -> None:
    """To a number for a number; text stays text even if it looks like a number."""
    loaded = load(
        {},
        LLMOPT_PROVIDERS__ACME__RPM="1_000",
        LLMOPT_PROVIDERS__ACME__MAX_RETRIES="5",
        LLMOPT_PROVIDERS__ACME__TIMEOUTS__READ="1.5",
        LLMOPT_PROVIDERS__ACME__TPM__DEFAULT="3e3",
        LLMOPT_PROVIDERS__ACME__COMPRESS_REQUESTS="true",
        LLMOPT_PROVIDERS__ACME__API_KEY="12345",
        LLMOPT_PROVIDERS__ACME__PLUGIN="5",
        LLMOPT_PROVIDERS__ACME__HEADERS__X_TEAM_NAME="true",
        LLMOPT_CACHE="false",
        LLMOPT_CACHE_DIR="/tmp/cache",
    )
    entry = loaded.entry("acme")
    assert (entry.rpm, entry.max_retries, entry.timeouts.read) == (1000.0, 5, 1.5)
    assert (entry.tpm, entry.compress_requests) == ({"default": 3000.0}, True)
    assert (entry.api_key, entry.plugin) == (Secret("12345"), "5")
    assert entry.headers == {"x-team-name": "true"}
    assert (loaded.cache, loaded.cache_dir) == (False, "/tmp/cache")


@pytest.mark.parametrize(
    "text", ["many", "nan", "inf", "-1", "0", "true", "[1]", "1\n2", "9" * 5000, "{}", "''"]
)
def test_an_invalid_number_in_a_variable_is_an_error(text: str) -> None:
    """With the path of the key; the text is never evaluated."""
    message = fault(lambda: load({}, LLMOPT_PROVIDERS__ACME__RPM=text))
    assert message.startswith("environment: providers.acme.rpm: expected a number above 0, got ")


@pytest.mark.parametrize("name", ["MY_VLLM", "my_vllm", "My-Vllm"])
def test_a_variable_matches_an_entry_without_regard_to_case_and_dashes(name: str) -> None:
    """Names of variables cannot contain a dash."""
    loaded = load({"providers": {"my-vllm": {}}}, **{f"LLMOPT_PROVIDERS__{name}__RPM": "5"})
    assert list(loaded.providers) == ["my-vllm"]
    assert loaded.entry("my-vllm").rpm == 5.0


def test_a_variable_can_create_an_entry() -> None:
    """A container may be configured by variables alone."""
    loaded = load({}, LLMOPT_PROVIDERS__VLLM_A__PLUGIN="local", LLMOPT_PROVIDERS__VLLM_A__RPM="5")
    assert (loaded.entry("vllm_a").plugin_name, loaded.entry("vllm_a").rpm) == ("local", 5.0)


def test_the_longest_matching_entry_name_wins() -> None:
    """For names with two underscores."""
    config: dict[str, Any] = {"providers": {"a": {}, "a__b": {}}}
    loaded = load(config, LLMOPT_PROVIDERS__A__B__RPM="5", LLMOPT_PROVIDERS__A__TPM="6")
    assert (loaded.entry("a__b").rpm, loaded.entry("a").tpm) == (5.0, 6.0)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LLMOPT_PROVIDER__ACME__RPM": "5"}, "unknown key; did you mean providers?"),
        ({"LLMOPT_FLAG__RETRY": "0"}, "unknown key; did you mean flags?"),
        ({"LLMOPT_FLAGS": "x"}, "name the key as well, as in LLMOPT_FLAGS__RETRY=false"),
        ({"LLMOPT_PROVIDERS": "x"}, "name the key as well, as in LLMOPT_PROVIDERS__<NAME>__<KEY>=value"),
        ({"LLMOPT_PROVIDERS__ACME": "x"}, "name an entry and a key"),
        ({"LLMOPT_PROVIDERS____RPM": "x"}, "name an entry and a key"),
        ({"LLMOPT_FLAGS__RETRI": "true"}, "flags.retri: unknown key; did you mean retry?"),
        ({"LLMOPT_PROVIDERS___A__RPM": "5"}, "the name of an entry"),
        ({"LLMOPT_PROVIDERS__ACME__ENDPOINTS": "[]"}, "providers.acme.endpoints: expected a list, got text"),
        (
            {"LLMOPT_PROVIDERS__A__TPM": "5", "LLMOPT_PROVIDERS__A__TPM__DEFAULT": "5"},
            "sets the whole of tpm",
        ),
        (
            {"LLMOPT_PROVIDERS__A__RPM": "5", "LLMOPT_PROVIDERS__a__RPM": "6"},
            "another variable sets providers.a.rpm",
        ),
        (
            {"LLMOPT_PROVIDERS__A__API_KEY": CANARY, "LLMOPT_PROVIDERS__A__API_KEY_ENV": "X"},
            "give one of the two",
        ),
        ({"LLMOPT_PROVIDERS__A__API_KEY": f"{CANARY} x"}, "providers.a.api_key: "),
    ],
)
def test_a_variable_without_a_valid_key_is_an_error(variables: dict[str, str], message: str) -> None:
    """A typing error must not be ignored."""
    assert message in fault(lambda: load({}, **variables))


def test_a_variable_that_matches_two_entries_is_an_error() -> None:
    """Without such a variable both entries work."""
    config: dict[str, Any] = {"providers": {"a-b": {}, "a_b": {}}}
    assert load(config).providers.keys() == {"a-b", "a_b"}
    assert "this matches the entries a-b and a_b" in fault(
        lambda: load(config, LLMOPT_PROVIDERS__A_B__RPM="5")
    )


def test_empty_and_unrelated_variables_are_ignored() -> None:
    """Other programs may use the prefix with a single underscore."""
    loaded = load(
        {}, LLMOPT_LOG="x", PATH="x", LLMOPT_FLAGS__RETRY="", LLMOPT_CACHE="", LLMOPT_PROVIDERS__A__RPM=""
    )
    assert loaded == load({})


def test_a_plugins_option_from_a_variable_gets_its_declared_type() -> None:
    """The type is known once the plugin's profile is."""
    profile = Profile(
        base_url="https://a.example",
        options=(
            Option(name="size", type=int),
            Option(name="ratio", type=float),
            Option(name="strict", type=bool),
        ),
    )
    loaded = one(
        {},
        profile,
        LLMOPT_PROVIDERS__ACME__SIZE="5",
        LLMOPT_PROVIDERS__ACME__RATIO="2",
        LLMOPT_PROVIDERS__ACME__STRICT="no",
    )
    assert loaded.options == {"size": 5, "ratio": 2.0, "strict": False}
    message = fault(lambda: one({}, profile, LLMOPT_PROVIDERS__ACME__SIZE="five"))
    assert message == (
        "providers.acme.size (environment variable LLMOPT_PROVIDERS__ACME__SIZE): expected a whole number, got text."
    )


def test_repr_of_a_variables_text_does_not_show_it() -> None:
    """It may be a key."""
    text = EnvText(CANARY, "ACME_KEY")
    assert repr(text) == "EnvText('***', variable='ACME_KEY')"
    assert text == CANARY


# The cost of an import.

SLOW = (
    "asyncio",
    "cattrs",
    "difflib",
    "httptools",
    "httpx",
    "idna",
    "msgspec",
    "numpy",
    "platformdirs",
    "tomllib",
)
FOLDER = Path(llmopt.config.resolve.__file__).parent


def imported(code: str) -> set[str]:
    """The slow modules that a fresh interpreter has loaded after this code."""
    core = str(FOLDER.parents[1])
    code = f"import sys; sys.path.insert(0, {core!r}); {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split()) & set(SLOW)


def test_importing_the_package_imports_nothing_slow() -> None:
    modules = ", ".join(f"llmopt.config.{path.stem}" for path in FOLDER.glob("[a-z]*.py"))
    assert imported(f"import {modules}") == set()


def test_the_core_knows_no_provider_by_name() -> None:
    """Providers are plugins."""
    for path in FOLDER.glob("*.py"):
        assert not re.search("openai|azure|mistral", path.read_text(encoding="utf-8"), re.IGNORECASE), path
