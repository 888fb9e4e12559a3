"""Resolving a provider: profile, entry and endpoint merged, and the plugin's own options."""

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from llmopt.config.resolve import Endpoint, resolve_endpoints
from llmopt.config.schema import Config, EndpointEntry, Flags, ProviderEntry
from llmopt.transport.tls import tls_context
from llmopt.values.calls import Settings
from llmopt.values.profile import Option, Profile, Timeouts
from llmopt.values.secret import Secret
from tests.config.helpers import ACME, CANARY, endpoints, entry_fault, fault, load, one

OPTIONS = evolve(
    ACME,
    options=(
        Option(name="deployment", help="The name of the deployment."),
        Option(name="api_version", env=("ACME_API_VERSION", "API_VERSION"), choices=("v1", "v2")),
        Option(name="size", type=int),
        Option(name="ratio", type=float),
        Option(name="strict", type=bool),
        Option(name="models", type=dict),
        Option(name="scopes", type=list),
        Option(name="anything", type=object),
    ),
)


def test_an_empty_entry_has_the_values_of_its_profile() -> None:
    """All others are off or unlimited."""
    profile = Profile(
        base_url="https://api.acme.example/v1/",
        key_required=False,
        auth="api-key",
        headers={"X-Version": "1"},
        timeouts=Timeouts(connect=1, read=2, read_large=3, catalog=4, pool=5, total=6, first=7),
        max_retries=8,
        retry_delay=9,
        pool_size=10,
        max_concurrency=11,
        keepalive=12,
        rpm=13,
        tpm=14,
        compress_requests=True,
    )
    (endpoint,) = resolve_endpoints(ProviderEntry(name="a"), profile, client_flags=Flags(), environ={})
    assert endpoint == Endpoint(
        provider="a",
        plugin="a",
        path="providers.a",
        base_url="https://api.acme.example/v1",
        origin="https://api.acme.example",
        credential=endpoint.credential,
        auth="api-key",
        headers={"x-version": "1"},
        timeouts=profile.timeouts,
        max_retries=8,
        retry_delay=9,
        pool_size=10,
        max_concurrency=10,
        keepalive=12,
        rpm=endpoint.rpm,
        tpm=endpoint.tpm,
        compress_requests=True,
    )
    assert (endpoint.rpm.get("m"), endpoint.tpm.get("m")) == (13, 14)
    assert endpoint.credential.static_secret() is None


def test_an_endpoint_overrides_its_entry_which_overrides_the_profile() -> None:
    """Key by key, in tables too."""
    keys: dict[str, Any] = {
        "max_retries": 5,
        "keepalive": 5,
        "headers": {"a": "entry", "b": "entry"},
        "timeouts": {"connect": 5, "pool": 5},
        "flags": {"retry": False, "cache": False},
        "rpm": {"m": 5, "default": 50},
        "tpm": 5,
        "deployment": "entry",
        "size": 5,
        "endpoints": [
            {
                "max_retries": 1,
                "headers": {"B": "endpoint"},
                "timeouts": {"connect": 1},
                "flags": {"cache": True},
                "rpm": {"m": 1},
                "tpm": {"m": 1},
                "deployment": "endpoint",
                "weight": 3,
            },
            {},
        ],
    }
    profile = evolve(OPTIONS, headers={"a": "profile", "c": "profile"}, tpm=99)
    first, second = endpoints(keys, profile)
    assert (first.index, first.weight, first.max_retries, first.keepalive) == (0, 3.0, 1, 5.0)
    assert first.headers == {"a": "entry", "b": "endpoint", "c": "profile"}
    assert (first.timeouts.connect, first.timeouts.pool, first.timeouts.read) == (1.0, 5.0, 60.0)
    assert (first.flags.retry, first.flags.cache) == (False, True)
    assert (first.rpm.get("m"), first.rpm.get("n")) == (1.0, 50.0)
    assert (first.tpm.get("m"), first.tpm.get("n")) == (1.0, 99)
    assert first.options == {"deployment": "endpoint", "size": 5}
    assert (second.index, second.weight, second.max_retries) == (1, 1.0, 5)
    assert (second.rpm.get("m"), second.tpm.get("n"), second.options["deployment"]) == (5.0, 5.0, "entry")
    assert (first.path, second.path) == ("providers.acme.endpoints[0]", "providers.acme.endpoints[1]")


@pytest.mark.parametrize(
    ("keys", "environ", "end"),
    [
        ({}, {}, "done"),
        ({"base_url": "https://api.acme.example/v2"}, {}, "done"),
        ({"base_url": "https://eu.acme.example/v1"}, {}, "done"),
        ({"base_url": "https://proxy.corp.example/v1"}, {}, "any"),
        ({"base_url": "http://127.0.0.1:8000/v1"}, {}, "any"),
        ({}, {"ACME_BASE_URL": "https://proxy.corp.example/v1"}, "any"),
    ],
)
def test_what_ends_a_stream_belongs_to_the_address(
    keys: dict[str, Any], environ: dict[str, str], end: str
) -> None:
    """At the provider's own hosts as the profile says; nothing is known of other servers."""
    profile = Profile(
        base_url="https://api.acme.example/v1",
        base_url_env=("ACME_BASE_URL",),
        own_hosts=("*.acme.example",),
        stream_end="done",
    )
    entry = ProviderEntry(name="acme", **keys)
    (found,) = resolve_endpoints(entry, profile, client_flags=Flags(), environ=environ)
    assert found.stream_end == end


def test_false_and_zero_in_an_endpoint_override_the_entry() -> None:
    keys = {
        "compress_requests": True,
        "max_retries": 3,
        "keepalive": 5,
        "endpoints": [{"compress_requests": False, "max_retries": 0, "keepalive": 0}],
    }
    endpoint = one(keys)
    assert (endpoint.compress_requests, endpoint.max_retries, endpoint.keepalive) == (False, 0, 0.0)


def test_one_plugin_serves_several_entries() -> None:
    """Each with its own name, base URL and key."""
    config = load(
        {
            "providers": {
                "a": {"plugin": "local", "base_url": "http://127.0.0.1:1/v1", "api_key": "ka"},
                "b": {"plugin": "local", "base_url": "http://127.0.0.1:2/v1", "rpm": 5},
                "local": {},
            }
        }
    )
    profile = Profile(base_url="http://127.0.0.1:3/v1", key_required=False)
    endpoint = [
        resolve_endpoints(config.entry(name), profile, client_flags=Flags(), environ={})[0]
        for name in ("a", "b", "local")
    ]
    assert [each.provider for each in endpoint] == ["a", "b", "local"]
    assert {each.plugin for each in endpoint} == {"local"}
    assert [each.base_url for each in endpoint] == [f"http://127.0.0.1:{port}/v1" for port in (1, 2, 3)]
    assert [each.credential.static_secret() for each in endpoint] == [Secret("ka"), None, None]


def test_the_flags_of_an_entry_override_those_of_the_client() -> None:
    endpoint = one({"flags": {"retry": True}}, LLMOPT_FLAGS__RETRY="0", LLMOPT_FLAGS__CACHE="0")
    assert (endpoint.flags.retry, endpoint.flags.cache, endpoint.flags.breaker) == (True, False, True)


@pytest.mark.parametrize(
    ("keys", "concurrency", "pool"),
    [
        ({}, 16, 64),
        ({"max_concurrency": 4}, 4, 64),
        ({"pool_size": 4}, 4, 4),
        ({"max_concurrency": 100}, 100, 100),
        ({"max_concurrency": 100, "pool_size": 50}, 50, 50),
        ({"pool_size": 50, "endpoints": [{"max_concurrency": 100}]}, 50, 50),
    ],
)
def test_max_concurrency_never_exceeds_the_pool_size(
    keys: dict[str, Any], concurrency: int, pool: int
) -> None:
    """A higher max_concurrency raises the pool size, unless that is configured."""
    endpoint = one(keys)
    assert (endpoint.max_concurrency, endpoint.pool_size) == (concurrency, pool)


def test_a_read_timeout_bounds_the_other_timeouts() -> None:
    """It can shorten the timeout of a catalog, and what the user has set is known: it bounds the first attempt too."""
    usual = evolve(ACME, timeouts=Timeouts(read=60, read_large=120, catalog=15, first=300))
    short, long = (
        one({"timeouts": {"read": 5}}, usual).timeouts,
        one({"timeouts": {"read": 900}}, usual).timeouts,
    )
    assert (short.read, short.read_large, short.catalog, short.first) == (5, 5, 5, 300)
    assert short.configured == {"read", "read_large", "catalog"}
    assert (long.read, long.read_large, long.catalog, long.first) == (900, 900, 15, 300)
    own = one(
        {"timeouts": {"read": 5, "read_large": 50, "catalog": 2, "first": 9, "total": 99}}, usual
    ).timeouts
    assert (own.read, own.read_large, own.catalog, own.first, own.total) == (5, 50, 2, 9, 99)
    assert one({"timeouts": {"read": 5}}).timeouts.first is None


@pytest.mark.row("C15")
def test_a_timeout_of_none_is_the_one_of_the_profile() -> None:
    """None does not switch a timeout off."""
    assert one({"timeouts": {"read": None, "connect": None}}).timeouts == ACME.timeouts


def test_a_rate_is_that_of_the_first_listed_name() -> None:
    """Of the deployment, else the model, else the default."""
    endpoint = one({"rpm": {"east": 1, "small": 2, "default": 3}})
    assert endpoint.rpm.get("east", "small") == 1.0
    assert endpoint.rpm.get("west", "small") == 2.0
    assert endpoint.rpm.get("west", "large") == 3.0
    assert one({"rpm": {"small": 2}}).rpm.get("large") is None
    assert [endpoint.rpm.is_configured(name) for name in ("east", "large")] == [True, True]
    partly = one({"rpm": {"small": 2}}).rpm
    assert [partly.is_configured(name) for name in ("small", "large")] == [True, False]
    assert not one({}).rpm.is_configured("small")
    assert one({"rpm": 5}).rpm.is_configured("small")


def test_a_profile_may_depend_on_the_endpoint() -> None:
    """The hook is called for each endpoint, with the merged entry."""
    entries: list[ProviderEntry] = []

    def profile(entry: ProviderEntry) -> Profile:
        entries.append(entry)
        return evolve(OPTIONS, in_process=entry.base_url is None)

    inside, outside = endpoints(
        {"size": 5, "endpoints": [{}, {"base_url": "https://a.example", "size": 6}]}, profile
    )
    assert (inside.in_process, inside.base_url, inside.origin) == (True, "", "")
    assert (outside.in_process, outside.base_url) == (False, "https://a.example")
    assert [(each.name, each.endpoints, each.options) for each in entries] == [
        ("acme", (), {"size": 5}),
        ("acme", (), {"size": 6}),
    ]


def test_an_in_process_engine_needs_neither_url_nor_key() -> None:
    """A base URL would be ignored, so it is an error."""
    profile = Profile(in_process=True)
    assert one({}, profile).credential.static_secret() is None
    message = fault(lambda: one({"base_url": "https://a.example"}, profile))
    assert message == "providers.acme.base_url: this provider works inside the process; leave base_url out."


def test_the_error_of_a_missing_base_url_names_its_variables() -> None:
    """Only the user knows the base URL of an Azure resource."""
    profile = evolve(ACME, base_url=None)
    assert fault(lambda: one({}, profile)) == (
        "providers.acme: there is no base URL; set base_url, or the environment variable ACME_BASE_URL."
    )
    assert fault(lambda: one({}, Profile())) == "providers.acme: there is no base URL; set base_url."
    assert one({}, profile, ACME_BASE_URL="https://r.acme.cloud/").base_url == "https://r.acme.cloud"


def test_a_base_url_in_a_variable_is_checked_too() -> None:
    """A configured base URL overrides it."""
    message = fault(lambda: one({}, ACME_BASE_URL=f"https://user:{CANARY}@host"))
    assert message.startswith(
        "providers.acme.base_url (environment variable ACME_BASE_URL): it contains an @"
    )
    assert (
        one({"base_url": "https://b.example"}, ACME_BASE_URL="https://a.example").base_url
        == "https://b.example"
    )


def test_options_have_the_types_of_the_profile() -> None:
    """Options that are not set are absent."""
    keys = {
        "deployment": "d",
        "api_version": "v1",
        "size": 5,
        "ratio": 2,
        "strict": False,
        "models": {"a": {"b": 1}},
        "scopes": ["x"],
        "anything": True,
    }
    assert one(keys, OPTIONS).options == keys
    assert isinstance(one(keys, OPTIONS).options["ratio"], float)
    assert one({"deployment": None}, OPTIONS).options == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"deploymnt": "d"}, "providers.acme.deploymnt: unknown key; did you mean deployment?"),
        ({"max_retry": 1}, "providers.acme.max_retry: unknown key; did you mean max_retries?"),
        ({"weight": 1}, "providers.acme.weight: unknown key"),
        ({"options": {"size": 1}}, "providers.acme.options: unknown key"),
        ({"name": "x"}, "providers.acme.name: unknown key"),
        ({"endpoints": [{"rpmm": 1}]}, "providers.acme.endpoints[0].rpmm: unknown key; did you mean rpm?"),
        ({"endpoints": [{"plugin": "x"}]}, "providers.acme.endpoints[0].plugin: unknown key"),
        ({"endpoints": [{"endpoints": []}]}, "providers.acme.endpoints[0].endpoints: unknown key"),
        (
            {"deployment": 5},
            "providers.acme.deployment: expected text, got a whole number. The name of the deployment.",
        ),
        ({"api_version": "v3"}, "providers.acme.api_version: expected one of v1, v2, got text."),
        ({"size": True}, "providers.acme.size: expected a whole number, got true or false."),
        ({"size": 1.0}, "providers.acme.size: expected a whole number, got a number."),
        ({"size": "5"}, "providers.acme.size: expected a whole number, got text."),
        ({"ratio": float("nan")}, "providers.acme.ratio: expected a number, got a number."),
        ({"ratio": float("inf")}, "providers.acme.ratio: expected a number, got a number."),
        ({"strict": 1}, "providers.acme.strict: expected true or false, got a whole number."),
        ({"models": ["a"]}, "providers.acme.models: expected a table, got a list."),
        ({"scopes": "a"}, "providers.acme.scopes: expected a list, got text."),
        (
            {"endpoints": [{}, {"size": "x"}]},
            "providers.acme.endpoints[1].size: expected a whole number, got text.",
        ),
        ({"size": "x", "endpoints": [{}]}, "providers.acme.size: expected a whole number, got text."),
    ],
)
def test_the_error_of_a_wrong_option_names_its_path(keys: dict[str, Any], message: str) -> None:
    assert fault(lambda: endpoints(keys, OPTIONS)).startswith(message)


def test_without_declared_options_any_other_key_is_an_error() -> None:
    assert entry_fault(deployment="d").startswith("providers.acme.deployment: unknown key")


def test_the_configuration_overrides_the_variables_of_an_option() -> None:
    """The first variable that is not empty is used; an error names it."""
    assert one({}, OPTIONS, API_VERSION="v2").options == {"api_version": "v2"}
    assert one({}, OPTIONS, ACME_API_VERSION="v1", API_VERSION="v2").options == {"api_version": "v1"}
    assert one({"api_version": "v1"}, OPTIONS, API_VERSION="v2").options == {"api_version": "v1"}
    assert type(one({}, OPTIONS, API_VERSION="v2").options["api_version"]) is str
    message = fault(lambda: one({}, OPTIONS, API_VERSION="v3"))
    assert message.startswith(
        "providers.acme.api_version (environment variable API_VERSION): expected one of v1, v2"
    )


def test_a_table_option_may_be_set_by_variables() -> None:
    """One variable for each key."""
    endpoint = one({}, OPTIONS, LLMOPT_PROVIDERS__ACME__MODELS__A="b").options
    assert endpoint == {"models": {"a": "b"}}
    assert type(endpoint["models"]["a"]) is str


def test_settings_of_an_endpoint() -> None:
    """They have the credential of one attempt, and everything else that a hook may know."""
    endpoint = one({"api_key": lambda: "x", "headers": {"A": "1"}, "size": 5}, OPTIONS)
    assert endpoint.settings(Secret(CANARY)) == Settings(
        provider="acme",
        plugin="acme",
        base_url="https://api.acme.example/v1",
        credential=Secret(CANARY),
        credential_kind="token",
        auth="bearer",
        headers={"a": "1"},
        options={"size": 5},
    )


def test_a_repr_of_an_endpoint_shows_no_secret() -> None:
    """Endpoints appear in logs."""
    keys = {"api_key": CANARY, "headers": {"x": CANARY}, "deployment": CANARY}
    assert CANARY not in repr(one(keys, OPTIONS))


def test_a_tilde_in_a_folder_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert one({"cache_dir": "~/cache"}).cache_dir == "/home/me/cache"
    assert one({"cache_dir": Path("/x")}).cache_dir == "/x"
    assert (one({}).cache_dir, one({}).cache_ttl, one({"cache_ttl": 5}).cache_ttl) == (None, None, 5.0)


def test_a_configuration_built_in_python_resolves_like_one_from_a_file() -> None:
    """Names of entries are the keys of the mapping."""
    config = Config(
        providers={"acme": ProviderEntry(endpoints=(EndpointEntry(base_url="https://a.example"),))}
    )
    (endpoint,) = resolve_endpoints(config.entry("acme"), ACME, client_flags=Flags(), environ={})
    assert (endpoint.provider, endpoint.base_url) == ("acme", "https://a.example")


@pytest.mark.parametrize(
    ("environ", "ca_file"),
    [
        ({}, None),
        ({"REQUESTS_CA_BUNDLE": "/r.pem"}, "/r.pem"),
        ({"CURL_CA_BUNDLE": "/c.pem"}, "/c.pem"),
        ({"REQUESTS_CA_BUNDLE": "/r.pem", "CURL_CA_BUNDLE": "/c.pem"}, "/r.pem"),
        ({"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": "/c.pem"}, "/c.pem"),
        ({"REQUESTS_CA_BUNDLE": "/r.pem", "SSL_CERT_FILE": "/s.pem"}, None),
        ({"CURL_CA_BUNDLE": "/c.pem", "SSL_CERT_DIR": "/s"}, None),
    ],
)
def test_the_authorities_of_the_whole_machine_count_last(
    environ: dict[str, str], ca_file: str | None
) -> None:
    """OpenSSL itself reads SSL_CERT_FILE and SSL_CERT_DIR; the entry's own key wins over all of them."""
    assert one({}, **environ).ca_file == ca_file
    assert one({"ca_file": "/own.pem"}, **environ).ca_file == "/own.pem"
    assert one({"base_url": "http://127.0.0.1:8000"}, **environ).ca_file is None


def test_a_message_about_shared_authorities_names_the_variable() -> None:
    """No key of the configuration is to be corrected."""
    endpoint = one({}, REQUESTS_CA_BUNDLE="/nowhere/ca.pem")
    assert fault(lambda: tls_context(endpoint)) == (
        "providers.acme.ca_file (environment variable REQUESTS_CA_BUNDLE): "
        "the file '/nowhere/ca.pem' cannot be read: no such file or directory."
    )
