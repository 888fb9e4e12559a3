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
    """A file in every place where one is looked for; each sets another rate."""
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


def test_without_any_file_nothing_is_configured() -> None:
    """That is no error."""
    assert load_config(environ={}) == Config()


def test_the_nearest_file_is_the_one_that_counts(files: dict[str, Path]) -> None:
    """Argument, then LLMOPT_CONFIG, then the current directory, then the user's folder; one file only."""
    named = {"LLMOPT_CONFIG": str(files["named"])}
    assert rpm(load_config(str(files["given"]), environ=named)) == 4
    assert rpm(load_config(files["given"], environ=named)) == 4
    assert rpm(load_config(environ=named)) == 3
    assert rpm(load_config(environ={"LLMOPT_CONFIG": ""})) == 1
    files["here"].unlink()
    assert rpm(load_config(environ={})) == 2
    files["home"].unlink()
    assert rpm(load_config(environ={})) is None


def test_a_mapping_goes_over_the_environment_and_that_over_the_file(files: dict[str, Path]) -> None:
    """Each layer overrides the keys it names, and no others."""
    write(
        files["here"],
        "[providers.acme]\nrpm = 1\ntpm = 1\nmax_retries = 1\n[providers.acme.timeouts]\nread = 1\n",
    )
    environ = {"LLMOPT_PROVIDERS__ACME__TPM": "2", "LLMOPT_PROVIDERS__ACME__MAX_RETRIES": "2"}
    found = load_config(
        {"providers": {"acme": {"max_retries": 3, "timeouts": {"connect": 3}}}}, environ=environ
    )
    entry = found.entry("acme")
    assert (entry.rpm, entry.tpm, entry.max_retries) == (1, 2, 3)
    assert (entry.timeouts.read, entry.timeouts.connect) == (1, 3)


def test_a_finished_configuration_is_taken_as_it_is(files: dict[str, Path]) -> None:
    """No layer goes over or under it."""
    config = Config(providers={"acme": ProviderEntry(rpm=9)})
    assert load_config(config, environ={"LLMOPT_PROVIDERS__ACME__RPM": "5"}) is config


def test_a_file_of_the_design_is_read(nowhere: Path) -> None:
    """The example of the documentation."""
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
    found = load_config(environ={})
    assert found.flags == {"coalesce": False}
    assert found.entry("my-vllm").plugin_name == "local"
    east, west = found.entry("azure").endpoints
    assert (east.weight, west.rpm) == (2.0, {"default": 100.0, "small": 10.0})
    assert found.entry("azure").options == {"api_version": "2024-10-21"}


def test_a_fault_in_a_file_names_the_file(nowhere: Path) -> None:
    """And a fault in the environment names the environment."""
    write(nowhere / "llmopt.toml", "[providers.acme]\nrpm = true\n")
    told = fault(lambda: load_config(environ={}))
    assert told == "llmopt.toml: providers.acme.rpm: expected a number above 0, got true or false."
    environ = {"LLMOPT_CONFIG": os.devnull, "LLMOPT_PROVIDERS__ACME__RPM": "many"}
    told = fault(lambda: load_config(environ=environ))
    assert told == "environment: providers.acme.rpm: expected a number above 0, got text."


@pytest.mark.parametrize(
    ("content", "told"),
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
def test_a_file_that_is_not_toml_names_its_line(nowhere: Path, content: bytes, told: str) -> None:
    """And shows nothing of what stands there."""
    (nowhere / "llmopt.toml").write_bytes(content)
    message = fault(lambda: load_config(environ={}))
    assert message.startswith("llmopt.toml: not ")
    assert told in message


def test_a_file_from_windows_is_read(nowhere: Path) -> None:
    """A byte order mark and CR LF are no part of the content."""
    (nowhere / "llmopt.toml").write_bytes(b"\xef\xbb\xbf[providers.acme]\r\nrpm = 5\r\n")
    assert rpm(load_config(environ={})) == 5


def test_a_named_file_must_be_there(nowhere: Path) -> None:
    """Whoever names a file wants it read."""
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


def test_a_file_that_may_not_be_read_is_told(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not passed over in silence."""
    write(nowhere / "llmopt.toml", "")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in fault(lambda: load_config(environ={}))


def test_a_huge_file_is_not_read(nowhere: Path) -> None:
    """A configuration has no five megabytes."""
    (nowhere / "llmopt.toml").write_bytes(b"#" * 5_000_000)
    assert "is larger than" in fault(lambda: load_config(environ={}))


@pytest.mark.parametrize("source", [5, b"llmopt.toml", ["x"], object(), 1.5, True])
def test_a_source_of_another_kind_is_refused(source: object) -> None:
    """Bytes are no path, and a number is no file."""
    told = fault(lambda: load_config(source, environ={}))  # type: ignore[arg-type]
    assert told.startswith("config: expected a mapping, a path or a Config, got ")


def test_a_traceback_with_local_variables_shows_no_key(nowhere: Path) -> None:
    """Whoever logs frames with their variables logs no key that came from a file or a variable."""
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


class TestEntryOfTwoLayers:
    """A key belongs to the place that it was given for."""

    def merged(self, nowhere: Path, lower: str, keys: dict[str, object]) -> ProviderEntry:
        """An entry ``acme`` of a file with these keys over it."""
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
    def test_a_key_stays_behind_when_a_higher_layer_goes_elsewhere(
        self, nowhere: Path, key: str, keys: dict[str, object]
    ) -> None:
        """Neither the key nor the headers nor the leave to go unencrypted travel along."""
        lower = f"{key}\nbase_url = 'https://mine.example'\nallow_http = true\nrpm = 5\nheaders = {{ x-secret = 'y' }}"
        found = self.merged(nowhere, lower, keys)
        assert (found.api_key, found.api_key_env, found.headers, found.allow_http) == (None, None, {}, None)
        assert found.rpm == 5

    def test_the_environment_sends_a_file_s_key_nowhere_else_either(self, nowhere: Path) -> None:
        """The rule holds between any two layers."""
        write(nowhere / "llmopt.toml", f"[providers.acme]\napi_key = '{CANARY}'\n")
        environ = {"LLMOPT_PROVIDERS__ACME__BASE_URL": "https://other.example"}
        assert load_config(environ=environ).entry("acme").api_key is None

    def test_a_key_given_with_the_new_place_is_the_one_used(self, nowhere: Path) -> None:
        """Whichever of the two ways of giving it is used."""
        lower = "api_key = 'old'\nbase_url = 'https://mine.example'"
        found = self.merged(nowhere, lower, {"base_url": "https://other.example", "api_key_env": "NEW"})
        assert (found.api_key, found.api_key_env) == (None, "NEW")

    def test_the_same_place_said_again_keeps_the_key(self, nowhere: Path) -> None:
        """Nothing goes elsewhere then."""
        lower = "api_key = 'old'\nbase_url = 'https://mine.example'"
        same: list[dict[str, object]] = [
            {"base_url": "https://mine.example"},
            {"endpoints": [{"deployment": "a"}, {"deployment": "b"}]},
            {"plugin": "acme"},
            {"rpm": 5},
        ]
        for keys in same:
            assert self.merged(nowhere, lower, keys).api_key == Secret("old")

    def test_a_key_for_a_lower_layer_s_place_is_used_there(self, nowhere: Path) -> None:
        """A file says where, the program says with which key."""
        found = self.merged(
            nowhere, "base_url = 'https://mine.example'\napi_key_env = 'X'", {"api_key": "new"}
        )
        assert (found.base_url, found.api_key, found.api_key_env) == (
            "https://mine.example",
            Secret("new"),
            None,
        )

    def test_a_base_url_ends_the_lower_layer_s_endpoints(self, nowhere: Path) -> None:
        """They would win over it otherwise."""
        lower = "endpoints = [{ base_url = 'https://mine.example', api_key = 'old' }]"
        assert self.merged(nowhere, lower, {"base_url": "https://other.example"}).endpoints == ()

    def test_endpoints_are_replaced_as_a_whole(self, nowhere: Path) -> None:
        """Their positions mean nothing across layers."""
        lower = "endpoints = [{ base_url = 'https://a.example', api_key = 'old' }, { base_url = 'https://b.example' }]"
        found = self.merged(nowhere, lower, {"endpoints": [{"base_url": "https://a.example", "weight": 2}]})
        assert [(each.base_url, each.weight, each.api_key) for each in found.endpoints] == [
            ("https://a.example", 2.0, None)
        ]

    def test_tables_are_merged_key_by_key(self, nowhere: Path) -> None:
        """Header names without regard to case; a number ends a table and a table a number."""
        lower = "headers = { X-A = '1', X-B = '1' }\nrpm = { a = 1, b = 1 }\nflags = { retry = false }\ntpm = 5\nmore = { x = 1, y = { z = 1 } }"
        keys = {
            "headers": {"x-a": "2"},
            "rpm": {"a": 2},
            "flags": {"cache": False},
            "tpm": {"a": 1},
            "more": {"y": {"w": 2}},
        }
        found = self.merged(nowhere, lower, keys)
        assert found.headers == {"x-a": "2", "x-b": "1"}
        assert found.rpm == {"a": 2.0, "b": 1.0}
        assert found.flags == {"retry": False, "cache": False}
        assert found.tpm == {"a": 1.0}
        assert found.options == {"more": {"x": 1, "y": {"z": 1, "w": 2}}}
        assert self.merged(nowhere, lower, {"rpm": 7}).rpm == 7.0


# Variables that begin with LLMOPT_.


def test_flags_are_switched_by_variables() -> None:
    """In the spellings that people use for true and false."""
    for text in ("false", "False", "0", "no", "OFF", " false "):
        assert load({}, LLMOPT_FLAGS__RETRY=text).flags == {"retry": False}
    for text in ("true", "TRUE", "1", "yes", "on"):
        assert load({}, LLMOPT_FLAGS__RETRY=text).flags == {"retry": True}
    told = fault(lambda: load({}, LLMOPT_FLAGS__RETRY="maybe"))
    assert told == "environment: flags.retry: expected true or false, got text."


def test_values_become_what_their_key_wants() -> None:
    """A number where a number is wanted, text where text is, even if it looks like a number."""
    found = load(
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
    entry = found.entry("acme")
    assert (entry.rpm, entry.max_retries, entry.timeouts.read) == (1000.0, 5, 1.5)
    assert (entry.tpm, entry.compress_requests) == ({"default": 3000.0}, True)
    assert (entry.api_key, entry.plugin) == (Secret("12345"), "5")
    assert entry.headers == {"x-team-name": "true"}
    assert (found.cache, found.cache_dir) == (False, "/tmp/cache")


@pytest.mark.parametrize(
    "text", ["many", "nan", "inf", "-1", "0", "true", "[1]", "1\n2", "9" * 5000, "{}", "''"]
)
def test_a_variable_that_spells_no_sensible_number_is_refused(text: str) -> None:
    """With the path of the key, and in no way that evaluates the text."""
    told = fault(lambda: load({}, LLMOPT_PROVIDERS__ACME__RPM=text))
    assert told.startswith("environment: providers.acme.rpm: expected a number above 0, got ")


@pytest.mark.parametrize("name", ["MY_VLLM", "my_vllm", "My-Vllm"])
def test_a_known_entry_is_found_without_regard_to_case_and_dashes(name: str) -> None:
    """Shells know no - in the name of a variable."""
    found = load({"providers": {"my-vllm": {}}}, **{f"LLMOPT_PROVIDERS__{name}__RPM": "5"})
    assert list(found.providers) == ["my-vllm"]
    assert found.entry("my-vllm").rpm == 5.0


def test_an_unknown_entry_is_made() -> None:
    """A container may be configured by variables alone."""
    found = load({}, LLMOPT_PROVIDERS__VLLM_A__PLUGIN="local", LLMOPT_PROVIDERS__VLLM_A__RPM="5")
    assert (found.entry("vllm_a").plugin_name, found.entry("vllm_a").rpm) == ("local", 5.0)


def test_a_name_with_two_underscores_is_found_whole() -> None:
    """The longest name of an entry that fits is the one meant."""
    config: dict[str, Any] = {"providers": {"a": {}, "a__b": {}}}
    found = load(config, LLMOPT_PROVIDERS__A__B__RPM="5", LLMOPT_PROVIDERS__A__TPM="6")
    assert (found.entry("a__b").rpm, found.entry("a").tpm) == (5.0, 6.0)


@pytest.mark.parametrize(
    ("variables", "told"),
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
def test_a_variable_that_names_no_key_is_refused(variables: dict[str, str], told: str) -> None:
    """A typing error must not pass for a setting."""
    assert told in fault(lambda: load({}, **variables))


def test_two_entries_that_look_alike_to_a_shell_are_told_apart_by_an_error() -> None:
    """Only when a variable might mean either."""
    config: dict[str, Any] = {"providers": {"a-b": {}, "a_b": {}}}
    assert load(config).providers.keys() == {"a-b", "a_b"}
    assert "this matches the entries a-b and a_b" in fault(
        lambda: load(config, LLMOPT_PROVIDERS__A_B__RPM="5")
    )


def test_variables_of_others_and_empty_ones_are_passed_over() -> None:
    """The prefix with a single underscore is not ours alone."""
    found = load(
        {}, LLMOPT_LOG="x", PATH="x", LLMOPT_FLAGS__RETRY="", LLMOPT_CACHE="", LLMOPT_PROVIDERS__A__RPM=""
    )
    assert found == load({})


def test_a_plugin_s_option_from_a_variable_gets_its_declared_type() -> None:
    """Its type is known only when the plugin's profile is."""
    profile = Profile(
        base_url="https://a.example",
        options=(
            Option(name="size", type=int),
            Option(name="ratio", type=float),
            Option(name="strict", type=bool),
        ),
    )
    found = one(
        {},
        profile,
        LLMOPT_PROVIDERS__ACME__SIZE="5",
        LLMOPT_PROVIDERS__ACME__RATIO="2",
        LLMOPT_PROVIDERS__ACME__STRICT="no",
    )
    assert found.options == {"size": 5, "ratio": 2.0, "strict": False}
    told = fault(lambda: one({}, profile, LLMOPT_PROVIDERS__ACME__SIZE="five"))
    assert told == (
        "providers.acme.size (environment variable LLMOPT_PROVIDERS__ACME__SIZE): expected a whole number, got text."
    )


def test_text_of_a_variable_does_not_show_itself() -> None:
    """It may be a key."""
    text = EnvText(CANARY, "ACME_KEY")
    assert repr(text) == "EnvText('***', variable='ACME_KEY')"
    assert text == CANARY


# Reading a configuration costs what it needs and no more.

SLOW = (
    "aiohttp",
    "asyncio",
    "cattrs",
    "difflib",
    "httpx",
    "idna",
    "msgspec",
    "numpy",
    "platformdirs",
    "tomllib",
)
FOLDER = Path(llmopt.config.resolve.__file__).parent


def imported(code: str) -> set[str]:
    """Which of the slow modules a fresh interpreter has imported after this code."""
    core = str(FOLDER.parents[1])
    code = f"import sys; sys.path.insert(0, {core!r}); {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split()) & set(SLOW)


def test_importing_the_package_imports_nothing_slow() -> None:
    """Everything slow waits until it is needed."""
    modules = ", ".join(f"llmopt.config.{path.stem}" for path in FOLDER.glob("[a-z]*.py"))
    assert imported(f"import {modules}") == set()


def test_the_core_knows_no_provider_by_name() -> None:
    """Providers are plugins."""
    for path in FOLDER.glob("*.py"):
        assert not re.search("openai|azure|mistral", path.read_text(encoding="utf-8"), re.IGNORECASE), path
