"""The schema of the configuration, and error messages for wrong values."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from llmopt.config.schema import Config, EndpointEntry, Flags, ProviderEntry, TimeoutsEntry
from llmopt.errors import ConfigError
from llmopt.values.secret import Secret
from tests.config.helpers import CANARY, endpoints, entry_fault, fault, load


def entry(**keys: object) -> ProviderEntry:
    return load({"providers": {"acme": keys}}).providers["acme"]


def test_every_key_of_a_configuration_is_optional() -> None:
    assert load({}) == Config() == load(None)


def test_every_key_of_an_entry_is_read() -> None:
    """Numbers are floats where fractions make sense."""
    result = entry(
        plugin="local",
        base_url="http://127.0.0.1:8000/v1",
        api_key=CANARY,
        headers={"X-Team": "search"},
        timeouts={"connect": 1, "read": 2, "total": 3, "pool": 4},
        max_retries=0,
        retry_delay=0,
        rpm=500,
        tpm={"small": 1, "default": 2},
        max_batch_size=7,
        max_concurrency=8,
        pool_size=9,
        keepalive=0,
        transport="httpx",
        compress_requests=True,
        max_event_bytes=1 << 20,
        cache_ttl=0,
        cache_dir=Path("cache"),
        allow_http=False,
        flags={"retry": False},
        deployment="d",
    )
    assert result == ProviderEntry(
        name="acme",
        plugin="local",
        base_url="http://127.0.0.1:8000/v1",
        api_key=Secret(CANARY),
        headers={"x-team": "search"},
        timeouts=TimeoutsEntry(connect=1.0, read=2.0, total=3.0, pool=4.0),
        max_retries=0,
        retry_delay=0.0,
        rpm=500.0,
        tpm={"small": 1.0, "default": 2.0},
        max_batch_size=7,
        max_concurrency=8,
        pool_size=9,
        keepalive=0.0,
        transport="httpx",
        compress_requests=True,
        max_event_bytes=1 << 20,
        cache_ttl=0.0,
        cache_dir="cache",
        allow_http=False,
        flags={"retry": False},
        options={"deployment": "d"},
    )
    assert isinstance(result.rpm, float)


def test_the_transport_of_the_configuration_is_that_of_entries_without_one() -> None:
    """Also of entries that are not configured."""
    config = load({"transport": "httpx", "providers": {"acme": {}, "other": {"transport": "pool"}}})
    assert [config.entry(name).transport for name in ("acme", "other", "absent")] == [
        "httpx",
        "pool",
        "httpx",
    ]
    assert load({}).entry("acme").transport is None


@pytest.mark.parametrize("value", ["requests", "", 1, ["httpx"], True])
def test_an_unknown_transport_is_refused(value: object) -> None:
    assert '"pool" or "httpx"' in fault(lambda: load({"transport": value}))
    assert '"pool" or "httpx"' in entry_fault(transport=value)


def test_none_is_the_same_as_an_absent_key() -> None:
    """In tables too."""
    keys = (
        "base_url",
        "api_key",
        "headers",
        "timeouts",
        "rpm",
        "flags",
        "endpoints",
        "max_retries",
        "plugin",
    )
    assert entry(**dict.fromkeys(keys)) == ProviderEntry(name="acme")
    assert entry(headers={"a": None}, rpm={"m": None}, timeouts={"read": None}) == entry(rpm={})


@pytest.mark.parametrize("name", ["rpmm", "rmp"])
def test_the_error_of_a_misspelled_key_has_its_path_and_a_suggestion(name: str) -> None:
    assert entry_fault(**{name: 5}) == f"providers.acme.{name}: unknown key; did you mean rpm?"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"provider": {}}, "provider: unknown key; did you mean providers?"),
        (
            {"providers": {"a": {"timeouts": {"reed": 1}}}},
            "providers.a.timeouts.reed: unknown key; did you mean read?",
        ),
        ({"flags": {"retri": True}}, "flags.retri: unknown key; did you mean retry?"),
        (
            {"providers": {"a": {"flags": {"hedge": True}}}},
            "providers.a.flags.hedge: unknown key; the keys here are",
        ),
        (
            {"zzz": 1},
            "zzz: unknown key; the keys here are cache, cache_dir, flags, providers, shared, transport, wrappers.",
        ),
        ({5: 1}, "the configuration: every key of a table must be text."),
        ({"a b\n": 1}, r"'a b\n': unknown key"),
    ],
)
def test_an_unknown_key_is_an_error_in_every_table(config: Any, message: str) -> None:
    """Only an entry may have keys that the core does not know: those of its plugin."""
    assert message in fault(lambda: load(config))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rpm", "many", "expected a number above 0, got text."),
        ("rpm", True, "expected a number above 0, got true or false."),
        ("max_retries", True, "expected a whole number, 0 or more, got true or false."),
        ("max_retries", 2.0, "expected a whole number, 0 or more, got 2.0."),
        ("max_retries", "3", "expected a whole number, 0 or more, got text."),
        ("max_retries", -1, "expected a whole number, 0 or more, got -1."),
        ("max_batch_size", 0, "expected a whole number, 1 or more, got 0."),
        pytest.param(
            "pool_size", 10**5000, "expected a whole number, 1 or more, got a whole number.", id="huge"
        ),
        ("compress_requests", 1, "expected true or false, got 1."),
        ("allow_http", "yes", "expected true or false, got text."),
        ("base_url", 5, "expected text, got 5."),
        ("base_url", "", "expected text, got text."),
        ("plugin", ["local"], "expected text, got a list."),
        ("cache_dir", 5, "expected the path of a file or folder, got 5."),
        ("ca_file", "", "expected the path of a file or folder, got text."),
        (
            "client_key",
            f"-----BEGIN PRIVATE KEY-----\n{CANARY}",
            "expected the path of a file or folder, got text.",
        ),
        (
            "client_cert",
            f"-----BEGIN CERTIFICATE----- {CANARY}",
            "expected the path of a file or folder, got text.",
        ),
        ("query", "a=b", "expected a table, got text."),
        ("query", {"": CANARY}, "one of the names is empty"),
        ("query", {"a\nb": CANARY}, "one of the names is empty, too long or contains a control character."),
        ("timeouts", 5, "expected a table, got a whole number."),
        ("headers", "X: y", "expected a table, got text."),
        ("flags", True, "expected a table, got true or false."),
        ("endpoints", {"base_url": "x"}, "expected a list, got a table."),
        ("endpoints", [], "this list is empty"),
        ("api_key", 12345, "expected text or a function that returns it, got a whole number."),
    ],
)
def test_the_error_of_a_wrong_value_has_path_type_and_expectation(
    key: str, value: object, message: str
) -> None:
    """It shows numbers but no texts, which might be keys."""
    assert entry_fault(**{key: value}).startswith(f"providers.acme.{key}: {message}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2024.1, "expected text, got a number; write it in quotes."),
        (True, "expected text, got true or false; write it in quotes."),
        (f"{CANARY}\ud800", "its value contains half of a surrogate pair."),
    ],
)
def test_a_parameter_of_the_query_is_text(value: object, message: str) -> None:
    """A version such as 2024.10 would lose a digit as a number."""
    assert entry_fault(query={"api-version": value}) == f"providers.acme.query.api-version: {message}"


def test_query_and_certificates_come_from_every_layer(tmp_path: Path) -> None:
    """The environment names parameters in lower case; an endpoint adds to those of its entry. No value is shown."""
    keys = {
        "query": {"tenant": CANARY},
        "endpoints": [{"query": {"v": "1"}, "ca_file": "~/ca.pem"}, {"client_cert": str(tmp_path / "b.pem")}],
        "client_cert": Path("a.pem"),
        "client_key": "a.key",
    }
    first, second = endpoints(keys, LLMOPT_PROVIDERS__ACME__QUERY__REGION="eu")
    assert first.query == {"tenant": CANARY, "region": "eu", "v": "1"}
    assert first.ca_file == str(Path.home() / "ca.pem")
    assert (first.client_cert, first.client_key) == ("a.pem", "a.key")
    # Another certificate has another private key.
    assert (second.client_cert, second.client_key, second.ca_file) == (str(tmp_path / "b.pem"), None, None)
    assert CANARY not in repr(first)
    assert first.settings(None).query == first.query


def test_a_private_key_needs_its_certificate() -> None:
    """It would silently not be used."""
    assert entry_fault(client_key="a.key") == (
        "providers.acme.client_key: it needs client_cert, the certificate of this key."
    )


@pytest.mark.row("C15")
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), -1, 0, 10**400, 1e300, "1", True]
)
@pytest.mark.parametrize("key", ["connect", "read", "read_large", "catalog", "first", "pool", "total"])
def test_an_invalid_timeout_is_an_error(key: str, value: object) -> None:
    """A timeout is a finite number of seconds above 0."""
    assert entry_fault(timeouts={key: value}).startswith(
        f"providers.acme.timeouts.{key}: expected seconds above 0"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, 10**400, [], {}])
def test_invalid_rates_and_weights_are_errors(value: object) -> None:
    """With a rate of zero every call would wait forever."""
    if value != {}:
        assert "providers.acme.rpm: " in entry_fault(rpm=value)
    assert "providers.acme.tpm.m: " in entry_fault(tpm={"m": value})
    assert "providers.acme.endpoints[0].weight: " in entry_fault(endpoints=[{"weight": value}])


@pytest.mark.parametrize("key", ["retry_delay", "keepalive", "cache_ttl"])
def test_some_durations_may_be_zero(key: str) -> None:
    assert getattr(entry(**{key: 0}), key) == 0.0
    for value in (-0.1, float("nan"), float("inf"), 1e10):
        assert "expected seconds, 0 or more" in entry_fault(**{key: value})


@pytest.mark.parametrize("name", ["Acme", "-a", "_a", "a/b", "a b", "", "ä", "a.b", "a\n", "a" * 200])
def test_an_entry_name_with_a_slash_is_an_error(name: str) -> None:
    """A model reference is split at its first slash."""
    assert "the name of an entry" in fault(lambda: load({"providers": {name: {}}}))


def test_an_entry_name_that_is_no_text_is_an_error() -> None:
    """Even if its text would be a valid name."""
    message = fault(lambda: load({"providers": {5: {}}}))
    assert message == "providers: every key of a table must be text."


@pytest.mark.parametrize("name", ["a", "0", "my-vllm", "a_b", "azure2"])
def test_digits_dashes_and_underscores_are_valid_in_names(name: str) -> None:
    assert load({"providers": {name: {}}}).entry(name) == ProviderEntry(name=name)


def test_an_error_in_an_endpoint_names_its_position() -> None:
    message = entry_fault(endpoints=[{"weight": 1}, {"max_retries": "x"}])
    assert message.startswith("providers.acme.endpoints[1].max_retries: ")
    assert entry_fault(endpoints=["x"]).startswith("providers.acme.endpoints[0]: expected a table, got text")


def test_one_error_lists_all_wrong_keys() -> None:
    """One line each, so that one run shows them all; a long list is cut."""
    message = fault(lambda: load({"flag": 1, "providers": {"a": {"rpm": "x"}, "b": {"tpm": "x"}}}))
    assert message.splitlines() == [
        "providers.a.rpm: expected a number above 0, got text.",
        "providers.b.tpm: expected a number above 0, got text.",
        "flag: unknown key; did you mean flags?",
    ]
    flood = fault(lambda: load({"providers": {f"p{number}": 5 for number in range(30)}}))
    assert flood.splitlines()[-1] == "and 22 more."


def test_api_key_and_api_key_env_exclude_each_other() -> None:
    message = entry_fault(api_key=CANARY, api_key_env="ACME_KEY")
    assert message == "providers.acme.api_key_env: api_key is set as well; give one of the two."


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": f"{CANARY}\r\nX-B: y"},
        {"X-A": f"{CANARY}\n"},
        {"X-A": f"{CANARY}\0"},
        {"X-A": f"{CANARY} é"},
        {"X-A": 5},
        {"X-A": "1", "x-a": "2"},
        {f"X-A: {CANARY}": "1"},
        {"": "1"},
        {"Host": "other.example"},
        {"content-length": "0"},
        {5: "x"},
        [("a", "b")],
    ],
)
def test_invalid_headers_are_errors(headers: object) -> None:
    """No value can add a second header, and framing headers belong to the transport."""
    assert entry_fault(headers=headers).startswith("providers.acme.headers")


@pytest.mark.row("S01")
@pytest.mark.parametrize(
    "key",
    [
        f"{CANARY}\r\n\r\n",
        f"{CANARY}\nx",
        f"{CANARY}\0",
        f"{CANARY}ä",
        pytest.param(CANARY * 60_000, id="a megabyte"),
        "",
        f"Bearer {CANARY}",
        CANARY.encode(),
        [CANARY],
        {CANARY: CANARY},
    ],
)
def test_an_invalid_key_is_an_error_that_does_not_show_it(key: object) -> None:
    """It has the path and the reason."""
    assert entry_fault(api_key=key).startswith("providers.acme.api_key: ")
    assert "providers.acme.endpoints[0].api_key: " in entry_fault(endpoints=[{"api_key": key}])
    with pytest.raises(ConfigError) as caught:
        ProviderEntry(api_key=key)  # type: ignore[arg-type]
    assert CANARY not in str(caught.value)


def test_a_newline_at_the_end_of_a_key_is_removed() -> None:
    """A mounted secret file ends with one."""
    assert entry(api_key=f"{CANARY}\n").api_key == Secret(CANARY)


def test_a_repr_shows_no_secret() -> None:
    """Neither a key, header values and options, nor the password in a URL."""
    shown = repr(
        load(
            {
                "cache": f"redis://:{CANARY}@host",
                "providers": {
                    "a": {"api_key": CANARY, "headers": {"x": CANARY}, "client_secret": CANARY},
                    "b": {"base_url": f"https://user:{CANARY}@host", "endpoints": [{"api_key": CANARY}]},
                    "c": {"base_url": f"https://host?key={CANARY}", "api_key": lambda: CANARY},
                },
            },
            LLMOPT_PROVIDERS__A__BASE_URL=f"https://host/{CANARY}",
        )
    )
    assert CANARY not in shown
    assert "client_secret" in shown


def test_a_token_provider_is_not_called_while_loading() -> None:
    """It is called for every attempt."""

    def token() -> str:
        raise AssertionError

    assert entry(api_key=token).api_key is token


def test_an_entry_is_a_copy_of_its_mapping() -> None:
    """A later change of the mapping has no effect."""
    given: dict[str, Any] = {"providers": {"a": {"headers": {"x": "1"}, "rpm": {"m": 1}, "deployment": "d"}}}
    result = load(given)
    before = copy.deepcopy(result)
    given["providers"]["a"]["headers"]["x"] = "2"
    given["providers"]["a"]["rpm"]["m"] = 2
    given["providers"]["a"]["deployment"] = "e"
    given["providers"]["b"] = {}
    assert result == before


def test_a_configuration_without_keys_pickles() -> None:
    """It can be sent to worker processes."""
    config = load({"providers": {"a": {"rpm": 5}}}, LLMOPT_PROVIDERS__A__BASE_URL="https://host")
    assert pickle.loads(pickle.dumps(config)) == config
    assert repr(pickle.loads(pickle.dumps(config))) == repr(config)


def test_the_default_plugin_has_the_name_of_the_entry() -> None:
    """One plugin can serve many entries."""
    assert (entry().plugin_name, entry(plugin="local").plugin_name) == ("acme", "local")


def test_an_unconfigured_entry_is_empty() -> None:
    """An installed plugin works without configuration."""
    assert Config().entry("acme") == ProviderEntry(name="acme")


def test_constructors_check_their_values_like_tables() -> None:
    """A configuration built in Python is as safe as one from a file."""
    with pytest.raises(ConfigError, match="rpm: expected a number above 0, got -1"):
        ProviderEntry(rpm=-1)
    with pytest.raises(ConfigError, match="timeouts: expected TimeoutsEntry, got a table"):
        ProviderEntry(timeouts={"read": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="endpoints: expected EndpointEntry, got a table"):
        ProviderEntry(endpoints=({"weight": 1},))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="providers: expected ProviderEntry, got a table"):
        Config(providers={"a": {}})  # type: ignore[dict-item]
    assert EndpointEntry(weight=2).weight == 2.0


@pytest.mark.parametrize("value", [True, False, None, "memory"])
def test_the_cache_is_true_false_or_a_folder(value: bool | str | None) -> None:
    assert load({"cache": value}).cache == value


def test_a_cache_of_another_type_is_an_error() -> None:
    assert fault(lambda: load({"cache": 5})) == "cache: expected true, false or text, got a whole number."
    assert fault(lambda: load({"cache": ""})).startswith("cache: ")


def test_flags_are_on_by_default_and_the_last_override_wins() -> None:
    flags = Flags().overridden({"retry": False, "cache": False}, None, {"cache": True})
    assert (flags.retry, flags.cache, flags.breaker) == (False, True, True)
    with pytest.raises(ConfigError, match=r"flags\.retri: unknown key; did you mean retry\?"):
        Flags().overridden({"retri": False})
    with pytest.raises(ConfigError, match=r"flags\.retry: expected true or false, got a whole number"):
        Flags().overridden({"retry": 0})  # type: ignore[dict-item]
