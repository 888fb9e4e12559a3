"""Variables that begin with LLMOPT_."""

from typing import Any

import pytest

from llmopt.config.schema import EnvText
from llmopt.values.profile import Option, Profile
from llmopt.values.secret import Secret
from tests.config.helpers import CANARY, fault, load, one


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
        ({"LLMOPT_PROVIDERS__A__TPM": "5", "LLMOPT_PROVIDERS__A__TPM__DEFAULT": "5"}, "for the whole of tpm"),
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
    assert "this may mean a-b or a_b" in fault(lambda: load(config, LLMOPT_PROVIDERS__A_B__RPM="5"))


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
