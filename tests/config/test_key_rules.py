"""Which key goes where."""

import pytest
from attrs import evolve

from llmopt.values.profile import Profile
from llmopt.values.secret import Secret
from tests.config.helpers import ACME, CANARY, endpoints, fault, load, one

KEY = {"ACME_API_KEY": CANARY}


@pytest.mark.parametrize(
    "base_url",
    [
        None,
        "https://api.acme.example",
        "https://api.acme.example/v2",
        "https://API.ACME.example:443/v2",
        "https://eu.acme.cloud/v1",
        "https://eu.acme.cloud:8443/v1",
    ],
)
def test_a_key_from_the_environment_goes_to_its_provider(base_url: str | None) -> None:
    """The profile's own origin, whatever the path, and its own hosts."""
    found = one({"base_url": base_url}, **KEY)
    assert found.credential.static_secret() == Secret(CANARY)
    assert found.credential.describe() == "environment variable ACME_API_KEY"


@pytest.mark.parametrize(
    "base_url",
    [
        "https://evil.example",
        "https://api.acme.example.evil.example",
        "https://api.acme.example:8443",
        "https://acme.cloud",
        "https://evilacme.cloud",
        "http://localhost:8000",
    ],
)
def test_s03_a_foreign_origin_gets_no_key_from_the_environment(base_url: str) -> None:
    """The error says why and what to do; the endpoint itself is there."""
    found = one({"base_url": base_url}, **KEY)
    told = fault(found.credential.static_secret)
    assert told == (
        "providers.acme: set api_key or api_key_env in providers.acme, because a key from the environment "
        "goes only to https://api.acme.example or https://*.acme.cloud "
        "or the base URL in the environment variable ACME_BASE_URL."
    )
    assert found.credential.describe() == "none (ACME_API_KEY is not sent to this base URL)"


def test_a_message_for_a_provider_with_one_place_is_short() -> None:
    """The example of the design."""
    profile = Profile(base_url="https://api.x.com/v1", key_env=("X_KEY",))
    told = fault(one({"base_url": "https://evil.example"}, profile, X_KEY=CANARY).credential.static_secret)
    assert told.endswith("because a key from the environment goes only to https://api.x.com.")
    told = fault(
        one(
            {"base_url": "https://a.example"}, Profile(key_env=("X_KEY",)), X_KEY=CANARY
        ).credential.static_secret
    )
    assert told.endswith("a key from the environment goes only to a base URL from the environment.")


def test_an_own_host_gets_a_key_over_http_only_on_this_machine() -> None:
    """Leave to go unencrypted is no leave to show a key that was not given for it."""
    keys = {"base_url": "http://eu.acme.cloud", "allow_http": True}
    assert "goes only to" in fault(one(keys, **KEY).credential.static_secret)
    local = evolve(ACME, own_hosts=("localhost",))
    assert one({"base_url": "http://localhost:8000"}, local, **KEY).credential.static_secret() == Secret(
        CANARY
    )


@pytest.mark.parametrize("variable", ["ACME_BASE_URL", "LLMOPT_PROVIDERS__ACME__BASE_URL"])
def test_a_base_url_from_the_environment_is_vouched_for_by_it(variable: str) -> None:
    """Who can set the one can read the other."""
    found = one({}, **KEY, **{variable: "https://proxy.example/v1"})
    assert found.base_url == "https://proxy.example/v1"
    assert found.credential.static_secret() == Secret(CANARY)


def test_a_base_url_of_a_mapping_is_not_vouched_for_by_one_in_the_environment() -> None:
    """The configured one is where requests go, so it is the one that counts."""
    for variable in ("ACME_BASE_URL", "LLMOPT_PROVIDERS__ACME__BASE_URL"):
        found = one({"base_url": "https://evil.example"}, **KEY, **{variable: "https://proxy.example"})
        assert found.base_url == "https://evil.example"
        assert "goes only to" in fault(found.credential.static_secret)


def test_a_configured_key_goes_where_its_entry_points() -> None:
    """In any of the three ways to give one."""
    there = {"base_url": "https://mine.example"}
    found = one({**there, "api_key": "mine"}, **KEY)
    assert (found.credential.static_secret(), found.credential.describe()) == (
        Secret("mine"),
        "configuration",
    )
    found = one({**there, "api_key_env": "MINE"}, **KEY, MINE="mine\n")
    assert (found.credential.static_secret(), found.credential.describe()) == (
        Secret("mine"),
        "environment variable MINE",
    )
    found = one({**there, "api_key": lambda: "mine"}, **KEY)
    assert (found.credential.kind, found.credential.describe()) == ("token", "token provider")
    place = {"LLMOPT_PROVIDERS__ACME__BASE_URL": "https://mine.example"}
    found = one({}, **KEY, **place, LLMOPT_PROVIDERS__ACME__API_KEY="mine")
    assert found.credential.static_secret() == Secret("mine")


def test_a_key_set_for_an_entry_by_a_variable_does_not_follow_a_program_elsewhere() -> None:
    """The variable and the base URL come from different layers, so nothing says that they belong together."""
    found = one({"base_url": "https://mine.example"}, LLMOPT_PROVIDERS__ACME__API_KEY=CANARY)
    assert fault(found.credential.static_secret).startswith(
        "providers.acme: set api_key or api_key_env in providers.acme"
    )


def test_endpoints_have_keys_of_their_own_or_share_the_entry_s() -> None:
    """Both ways of giving a key in an endpoint end the entry's."""
    found = endpoints(
        {
            "api_key": "shared",
            "endpoints": [
                {"base_url": "https://a.example"},
                {"base_url": "https://b.example", "api_key": "own"},
                {"base_url": "https://c.example", "api_key_env": "OWN"},
            ],
        },
        OWN="third",
    )
    assert [each.credential.static_secret() for each in found] == [
        Secret("shared"),
        Secret("own"),
        Secret("third"),
    ]


def test_each_endpoint_is_judged_by_its_own_place() -> None:
    """One may get the key of the environment, the other not."""
    own, foreign = endpoints({"endpoints": [{}, {"base_url": "https://evil.example"}]}, **KEY)
    assert own.credential.static_secret() == Secret(CANARY)
    assert fault(foreign.credential.static_secret).startswith(
        "providers.acme.endpoints[1]: set api_key or api_key_env in providers.acme.endpoints[1], because"
    )


def test_a_missing_key_is_told_when_it_is_asked_for() -> None:
    """Listing providers works without; the message names every variable that would do."""
    found = one({}, ACME_API_KEY="")
    assert found.credential.describe() == "none"
    assert fault(found.credential.static_secret) == (
        "providers.acme: there is no key; set the environment variable ACME_API_KEY or ACME_KEY, "
        "or api_key or api_key_env in providers.acme."
    )
    told = fault(one({}, Profile(base_url="https://a.example")).credential.static_secret)
    assert told == "providers.acme: there is no key; set api_key or api_key_env in providers.acme."


def test_the_first_variable_that_holds_something_wins() -> None:
    """In the order of the profile; an empty one counts as not set."""
    assert one({}, ACME_API_KEY="", ACME_KEY="second").credential.static_secret() == Secret("second")
    assert one({}, ACME_API_KEY="first", ACME_KEY="second").credential.static_secret() == Secret("first")


def test_a_named_variable_that_is_not_set_is_told_by_name() -> None:
    """Also where the provider would do without a key: the user wants one sent."""
    found = one({"api_key_env": "MINE"}, evolve(ACME, key_required=False), **KEY)
    assert fault(found.credential.static_secret) == (
        "providers.acme: api_key_env names the environment variable MINE, which is not set."
    )


@pytest.mark.parametrize("key", [CANARY, "0123456789abcdef0123456789abcdef", "AbC123xyz"])
def test_s01_a_key_in_the_place_of_a_variable_s_name_is_not_shown(key: str) -> None:
    """A mistake that is easily made; what does not look like a variable's name stays hidden."""

    def call() -> None:
        found = one({"api_key_env": key})
        assert key not in repr(found)
        found.credential.static_secret()

    assert key not in fault(call)
    if key != CANARY:
        assert key not in repr(load({"providers": {"acme": {"api_key_env": "a" + key}}}))


def test_a_provider_that_needs_no_key_goes_without() -> None:
    """Silently, but the doctor can tell that a key was held back."""
    profile = evolve(ACME, key_required=False)
    assert one({}, profile).credential.static_secret() is None
    found = one({"base_url": "http://localhost:8000"}, profile, **KEY)
    assert found.credential.static_secret() is None
    assert found.credential.describe() == "none (ACME_API_KEY is not sent to this base URL)"


@pytest.mark.parametrize(
    "key",
    [f"{CANARY}\r\nx", f"{CANARY}\0", f"{CANARY}ä", CANARY * 60_000, f"Bearer {CANARY}"],
    ids=["break", "nul", "foreign", "long", "scheme"],
)
@pytest.mark.parametrize("keys", [{}, {"api_key_env": "ACME_API_KEY"}], ids=["profile", "named"])
def test_s01_a_variable_that_holds_no_key_is_told_unseen(keys: dict[str, str], key: str) -> None:
    """With the name of the variable, and only when the key is asked for."""
    found = one(keys, ACME_API_KEY=key)
    assert fault(found.credential.static_secret).startswith(
        "providers.acme: environment variable ACME_API_KEY "
    )
    assert CANARY not in repr(found)
