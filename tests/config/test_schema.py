"""The schema of the configuration, and error messages for wrong values."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from llmopt.config.schema import Config, EndpointEntry, Flags, ProviderEntry, TimeoutsEntry
from llmopt.errors import ConfigError
from llmopt.values.secret import Secret
from tests.config.helpers import CANARY, entry_fault, fault, load


def entry(**keys: object) -> ProviderEntry:
    return load({"providers": {"acme": keys}}).providers["acme"]


def test_an_empty_configuration_says_nothing() -> None:
    """Every key may be left out."""
    assert load({}) == Config() == load(None)


def test_a_full_entry_is_read() -> None:
    """Every key of the design is there, numbers as floats where fractions make sense."""
    found = entry(
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
        compress_requests=True,
        cache_ttl=0,
        cache_dir=Path("cache"),
        allow_http=False,
        flags={"retry": False},
        deployment="d",
    )
    assert found == ProviderEntry(
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
        compress_requests=True,
        cache_ttl=0.0,
        cache_dir="cache",
        allow_http=False,
        flags={"retry": False},
        options={"deployment": "d"},
    )
    assert isinstance(found.rpm, float)


def test_none_says_the_same_as_leaving_a_key_out() -> None:
    """None is no value anywhere, also inside of tables."""
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
def test_a_misspelled_key_is_named_with_its_path_and_the_one_meant(name: str) -> None:
    """The message of the design, to the letter."""
    assert entry_fault(**{name: 5}) == f"providers.acme.{name}: unknown key; did you mean rpm?"


@pytest.mark.parametrize(
    ("config", "told"),
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
        ({"zzz": 1}, "zzz: unknown key; the keys here are cache, cache_dir, flags, providers."),
        ({5: 1}, "the configuration: every key of a table must be text."),
        ({"a b\n": 1}, r"'a b\n': unknown key"),
    ],
)
def test_unknown_keys_are_refused_wherever_they_stand(config: Any, told: str) -> None:
    """Only an entry may hold keys that the core does not know: its plugin's."""
    assert told in fault(lambda: load(config))


@pytest.mark.parametrize(
    ("key", "value", "told"),
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
        ("cache_dir", 5, "expected a path, got 5."),
        ("timeouts", 5, "expected a table, got a whole number."),
        ("headers", "X: y", "expected a table, got text."),
        ("flags", True, "expected a table, got true or false."),
        ("endpoints", {"base_url": "x"}, "expected a list, got a table."),
        ("endpoints", [], "this list is empty"),
        ("api_key", 12345, "expected text or a function that returns it, got a whole number."),
    ],
)
def test_a_wrong_value_is_told_by_path_kind_and_what_is_expected(key: str, value: object, told: str) -> None:
    """Numbers are shown, texts never: they might be a key."""
    assert entry_fault(**{key: value}).startswith(f"providers.acme.{key}: {told}")


@pytest.mark.row("C15")
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), -1, 0, 10**400, 1e300, "1", True]
)
@pytest.mark.parametrize("key", ["connect", "read", "read_large", "catalog", "first", "pool", "total"])
def test_senseless_timeouts_are_refused(key: str, value: object) -> None:
    """A timeout is a number of seconds above 0 that a clock can hold."""
    assert entry_fault(timeouts={key: value}).startswith(
        f"providers.acme.timeouts.{key}: expected seconds above 0"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, 10**400, [], {}])
def test_senseless_rates_and_weights_are_refused(value: object) -> None:
    """Zero requests a minute is no rate but a way to wait for ever."""
    if value != {}:
        assert "providers.acme.rpm: " in entry_fault(rpm=value)
    assert "providers.acme.tpm.m: " in entry_fault(tpm={"m": value})
    assert "providers.acme.endpoints[0].weight: " in entry_fault(endpoints=[{"weight": value}])


@pytest.mark.parametrize("key", ["retry_delay", "keepalive", "cache_ttl"])
def test_some_times_may_be_none_at_all(key: str) -> None:
    """Zero is refused only where it makes no sense."""
    assert getattr(entry(**{key: 0}), key) == 0.0
    for value in (-0.1, float("nan"), float("inf"), 1e10):
        assert "expected seconds, 0 or more" in entry_fault(**{key: value})


@pytest.mark.parametrize("name", ["Acme", "-a", "_a", "a/b", "a b", "", "ä", "a.b", "a\n", "a" * 200])
def test_names_of_entries_leave_the_slash_to_decide(name: str) -> None:
    """A model reference is split at the first slash, so a name is plain."""
    assert "the name of an entry" in fault(lambda: load({"providers": {name: {}}}))


def test_a_name_that_is_no_text_is_refused() -> None:
    """Also one that would look right when printed."""
    told = fault(lambda: load({"providers": {5: {}}}))
    assert told == "providers: every key of a table must be text."


@pytest.mark.parametrize("name", ["a", "0", "my-vllm", "a_b", "azure2"])
def test_plain_names_are_taken(name: str) -> None:
    """Digits, - and _ belong to a name."""
    assert load({"providers": {name: {}}}).entry(name) == ProviderEntry(name=name)


def test_the_second_of_several_endpoints_is_named_by_its_position() -> None:
    """A path leads to the one value that is wrong."""
    told = entry_fault(endpoints=[{"weight": 1}, {"max_retries": "x"}])
    assert told.startswith("providers.acme.endpoints[1].max_retries: ")
    assert entry_fault(endpoints=["x"]).startswith("providers.acme.endpoints[0]: expected a table, got text")


def test_faults_in_several_places_are_all_told() -> None:
    """One line each, so that one run mends them; a flood is cut."""
    told = fault(lambda: load({"flag": 1, "providers": {"a": {"rpm": "x"}, "b": {"tpm": "x"}}}))
    assert told.splitlines() == [
        "providers.a.rpm: expected a number above 0, got text.",
        "providers.b.tpm: expected a number above 0, got text.",
        "flag: unknown key; did you mean flags?",
    ]
    flood = fault(lambda: load({"providers": {f"p{number}": 5 for number in range(30)}}))
    assert flood.splitlines()[-1] == "and 22 more."


def test_a_key_and_the_name_of_its_variable_exclude_each_other() -> None:
    """Which of them should win would be a guess."""
    told = entry_fault(api_key=CANARY, api_key_env="ACME_KEY")
    assert told == "providers.acme.api_key_env: api_key is set as well; give one of the two."


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
def test_headers_that_cannot_be_sent_are_refused(headers: object) -> None:
    """No second header can be smuggled in, and the framing is ours."""
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
def test_a_key_that_cannot_be_one_is_refused_unseen(key: object) -> None:
    """The path and what is wrong are told, no part of the key."""
    assert entry_fault(api_key=key).startswith("providers.acme.api_key: ")
    assert "providers.acme.endpoints[0].api_key: " in entry_fault(endpoints=[{"api_key": key}])
    with pytest.raises(ConfigError) as caught:
        ProviderEntry(api_key=key)  # type: ignore[arg-type]
    assert CANARY not in str(caught.value)


def test_a_newline_at_the_end_of_a_key_is_no_part_of_it() -> None:
    """A mounted secret file ends with one."""
    assert entry(api_key=f"{CANARY}\n").api_key == Secret(CANARY)


def test_a_repr_shows_no_secret() -> None:
    """Key, header values, options and a URL's password stay hidden."""
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


def test_a_function_that_gives_keys_is_kept_as_it_is() -> None:
    """It is called for every attempt, not now."""

    def token() -> str:
        raise AssertionError

    assert entry(api_key=token).api_key is token


def test_entries_are_copies_of_what_was_given() -> None:
    """Changing the mapping afterwards changes nothing."""
    given: dict[str, Any] = {"providers": {"a": {"headers": {"x": "1"}, "rpm": {"m": 1}, "deployment": "d"}}}
    found = load(given)
    before = copy.deepcopy(found)
    given["providers"]["a"]["headers"]["x"] = "2"
    given["providers"]["a"]["rpm"]["m"] = 2
    given["providers"]["a"]["deployment"] = "e"
    given["providers"]["b"] = {}
    assert found == before


def test_a_configuration_without_keys_pickles() -> None:
    """Worker processes may be handed one."""
    config = load({"providers": {"a": {"rpm": 5}}}, LLMOPT_PROVIDERS__A__BASE_URL="https://host")
    assert pickle.loads(pickle.dumps(config)) == config
    assert repr(pickle.loads(pickle.dumps(config))) == repr(config)


def test_a_plugin_is_named_like_its_entry_unless_said_otherwise() -> None:
    """One plugin serves many entries."""
    assert (entry().plugin_name, entry(plugin="local").plugin_name) == ("acme", "local")


def test_an_entry_that_is_not_configured_is_an_empty_one() -> None:
    """An installed plugin works without configuration."""
    assert Config().entry("acme") == ProviderEntry(name="acme")


def test_constructors_check_what_tables_are_checked_for() -> None:
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
def test_the_cache_is_on_off_or_somewhere(value: bool | str | None) -> None:
    """One key says whether and where."""
    assert load({"cache": value}).cache == value


def test_a_cache_of_another_kind_is_refused() -> None:
    """Neither numbers nor nothing in quotes."""
    assert fault(lambda: load({"cache": 5})) == "cache: expected true, false or text, got a whole number."
    assert fault(lambda: load({"cache": ""})).startswith("cache: ")


def test_flags_are_on_until_switched_off_and_the_last_word_wins() -> None:
    """Overrides are laid over each other in order."""
    flags = Flags().overridden({"retry": False, "cache": False}, None, {"cache": True})
    assert (flags.retry, flags.cache, flags.breaker) == (False, True, True)
    with pytest.raises(ConfigError, match=r"flags\.retri: unknown key; did you mean retry\?"):
        Flags().overridden({"retri": False})
    with pytest.raises(ConfigError, match=r"flags\.retry: expected true or false, got a whole number"):
        Flags().overridden({"retry": 0})  # type: ignore[dict-item]
