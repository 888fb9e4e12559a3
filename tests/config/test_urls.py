"""Base URLs: which are accepted, how they are normalised, and which are refused."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt import ConfigError, Option, Profile, ProviderEntry
from llmopt.config.resolve import Endpoint, resolve_endpoints
from llmopt.config.schema import Flags
from llmopt.config.urls import Url, add_query, host_matches, is_loopback, parse_base_url
from tests.config.helpers import CANARY, entry_fault, fault, one
from tests.support.scale import scaled


def parse(text: str, *, allow_http: bool = False) -> Url:
    return parse_base_url(text, path="providers.acme.base_url", entry="providers.acme", allow_http=allow_http)


@pytest.mark.parametrize(
    ("text", "url", "origin"),
    [
        ("https://api.acme.example", "https://api.acme.example", "https://api.acme.example"),
        ("https://api.acme.example/v1/", "https://api.acme.example/v1", "https://api.acme.example"),
        ("HTTPS://API.Acme.Example/V1", "https://api.acme.example/V1", "https://api.acme.example"),
        ("https://api.acme.example:443/v1", "https://api.acme.example/v1", "https://api.acme.example"),
        (
            "https://api.acme.example:8443/v1",
            "https://api.acme.example:8443/v1",
            "https://api.acme.example:8443",
        ),
        ("https://api.acme.example./v1", "https://api.acme.example/v1", "https://api.acme.example"),
        ("https://a/b%20c/d~e", "https://a/b%20c/d~e", "https://a"),
        ("https://a/embeddings/v1", "https://a/embeddings/v1", "https://a"),
        ("https://a/models", "https://a/models", "https://a"),
        ("https://embeddings", "https://embeddings", "https://embeddings"),
        ("https://a/my-embeddings", "https://a/my-embeddings", "https://a"),
        ("http://localhost:11434", "http://localhost:11434", "http://localhost:11434"),
        ("http://models.localhost", "http://models.localhost", "http://models.localhost"),
        ("http://127.0.0.1:80/v1", "http://127.0.0.1/v1", "http://127.0.0.1"),
        ("http://127.8.9.1:8000", "http://127.8.9.1:8000", "http://127.8.9.1:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1", "http://[::1]:8000"),
        ("https://[2001:DB8:0:0::1]/v1", "https://[2001:db8::1]/v1", "https://[2001:db8::1]"),
        ("https://10.1.2.3/v1", "https://10.1.2.3/v1", "https://10.1.2.3"),
        ("https://my_service.internal", "https://my_service.internal", "https://my_service.internal"),
        ("https://bücher.example/v1", "https://xn--bcher-kva.example/v1", "https://xn--bcher-kva.example"),
        ("https://api。acme。example", "https://api.acme.example", "https://api.acme.example"),
        ("https://ａｐｉ.acme.example", "https://api.acme.example", "https://api.acme.example"),  # noqa: RUF001
    ],
)
def test_a_url_is_normalised(text: str, url: str, origin: str) -> None:
    """So that origins can be compared."""
    result = parse(text)
    assert (result.url, result.origin) == (url, origin)
    assert parse(result.url) == result


HOMOGRAPH = "https://api.аcme.example/v1"  # noqa: RUF001 - a Cyrillic a, which is the point


@pytest.mark.row("S03")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://api.acme.example", "plain http to api.acme.example is refused"),
        ("http://10.0.0.5:8000", "plain http to 10.0.0.5 is refused"),
        ("http://127.0.0.1.evil.example", "plain http to 127.0.0.1.evil.example is refused"),
        ("http://127.evil", "plain http to 127.evil is refused"),
        ("http://notlocalhost", "plain http to notlocalhost is refused"),
        (f"https://user:{CANARY}@api.acme.example", "it contains an @"),
        (f"https://{CANARY}@api.acme.example", "it contains an @"),
        ("https://api.acme.example/@x", "it contains an @"),
        (f"https://api.acme.example/v1?key={CANARY}", "a query"),
        (f"https://api.acme.example/v1#{CANARY}", "a fragment"),
        ("https://api.acme.example/v1?a=b", 'as in query = { name = "value" }'),
        ("https://api.acme.example/v1/embeddings", "ends in /embeddings, which llmopt adds"),
        ("http://127.0.0.1:8000/chat/completions/", "ends in /chat/completions, which llmopt adds"),
        ("https://api.acme.example/v1/Completions", "ends in /completions, which llmopt adds"),
        ("https://api.acme.example/openai/v1/responses", "ends in /responses, which llmopt adds"),
        ("https://api.acme.example?", "a query"),
        ("//evil", "expected https://<host>"),
        ("https:////evil", "the host is empty"),
        ("https://api.acme.example//evil", "expected https://<host>"),
        ("https:\\\\api.acme.example", "a backslash"),
        ("https://api.acme.example\\@evil", "a backslash"),
        ("https://169.254.169.254/latest", "link-local"),
        ("https://169.254.1.1", "link-local"),
        ("https://[fe80::1]", "link-local"),
        ("https://[fe80::1%25eth0]", "expected a host, or a host and a port"),
        ("https://2852039166", "four decimal numbers"),
        ("https://0xa9fea9fe", "four decimal numbers"),
        ("https://0xA9.0xFE.0xA9.0xFE", "four decimal numbers"),
        ("https://0251.0376.0251.0376", "four decimal numbers"),
        ("https://169.16689662", "four decimal numbers"),
        ("https://169.254.43518", "four decimal numbers"),
        ("https://169.254.169.254.", "link-local"),
        ("https://169.254.169.0xfe", "four decimal numbers"),
        ("http://2130706433", "four decimal numbers"),
        ("http://127.1", "four decimal numbers"),
        ("https://999.1.1.1", "four decimal numbers"),
        ("https://１６９.２５４.１６９.２５４", "link-local"),  # noqa: RUF001 - full-width digits
        ("https://169。254。169。254", "link-local"),
        ("https://[::ffff:169.254.169.254]", "inside an IPv6 address"),
        ("https://[::ffff:a9fe:a9fe]", "inside an IPv6 address"),
        ("http://[::ffff:127.0.0.1]", "inside an IPv6 address"),
        ("https://[::169.254.169.254]", "inside an IPv6 address"),
        ("https://[64:ff9b::a9fe:a9fe]", "inside an IPv6 address"),
        ("https://[2002:a9fe:a9fe::]", "inside an IPv6 address"),
        ("https://[fd00:ec2::254]", "metadata service"),
        ("https://100.100.100.200", "metadata service"),
        ("https://metadata.google.internal", "metadata service"),
        ("https://Metadata.Google.Internal.", "metadata service"),
        ("http://0.0.0.0:8000", "write 127.0.0.1"),
        ("http://[::]:8000", "write 127.0.0.1"),
        ("https://224.0.0.1", "a group"),
        ("https://255.255.255.255", "a group"),
        (" https://api.acme.example", "a space"),
        ("https://api.acme.example ", "a space"),
        ("https://api.acme.example\n", "a line break"),
        ("https://api.\tacme.example", "a control character"),
        ("https://api.acme.example/\x00", "a control character"),
        ("https://api.acme.example\u202e/x", "a control character"),
        ("https://api.acme.example/\u00a0", "a control character"),
        ("https://api.acme.example/ä", "a character outside ASCII"),
        ("https://api.acme.example/v1/../admin", "a . or .. step"),
        ("https://api.acme.example/./v1", "a . or .. step"),
        ("https://a%2eb", "a character that no host has"),
        ("https://a,b", "a character that no host has"),
        ("https://-a.example", "a character that no host has"),
        ("https://a..b", "a character that no host has"),
        ("https://" + "a" * 64 + ".example", "a character that no host has"),
        ("https://℀.example", "not a valid international name"),
        ("https://ä" + "a" * 100, "not a valid international name"),
        ("https://[abc]", "not an IPv6 address"),
        ("https://[fe80::1%1]", "without an interface"),
        ("https://[12345::]", "not an IPv6 address"),
        ("https://::1", "a host and a port"),
        ("https://a" + "/x" * 2000, "longer than 2048"),
    ],
)
def test_an_unsafe_or_malformed_url_is_an_error_with_its_reason(text: str, reason: str) -> None:
    """The error never shows a URL that may hold a key."""
    message = fault(lambda: parse(text))
    assert message.startswith("providers.acme.base_url: ")
    assert reason in message


@pytest.mark.row("S03")
def test_a_homograph_is_shown_in_ascii_and_gets_no_key_from_the_environment() -> None:
    """It is another host, which the provider does not own."""
    result = one({"base_url": HOMOGRAPH}, ACME_API_KEY=CANARY)
    assert result.origin == "https://api.xn--cme-5cd.example"
    assert "a key from the environment goes only to https://api.acme.example" in fault(
        result.credential.static_secret
    )


@pytest.mark.row("N23")
@pytest.mark.parametrize(
    "text",
    [
        "https://api.acme.example:99999",
        "https://api.acme.example:0",
        "https://api.acme.example:",
        "https://api.acme.example:x",
        "https://api.acme.example:-1",
        "https://api.acme.example:80:80",
        "https://api.acme.example:" + "9" * 1000,
        "https://api.acme.example:８０",  # noqa: RUF001 - full-width digits
        "ftp://api.acme.example",
        "file:///etc/passwd",
        "api.acme.example",
        "http://[::1",
        "http://::1]",
        "https://",
        "https:///v1",
        "https://:443",
        "https:/api.acme.example",
        "https:api.acme.example",
        "x",
        ".",
    ],
)
def test_an_invalid_url_is_an_error_before_any_request(text: str) -> None:
    """In an entry and in an endpoint, with the path of the key."""
    assert entry_fault(base_url=text).startswith("providers.acme.base_url: ")
    assert entry_fault(endpoints=[{"base_url": text}]).startswith("providers.acme.endpoints[0].base_url: ")


def test_plain_http_needs_allow_http_in_its_entry() -> None:
    url = "http://gpu-box:8000/v1"
    error = entry_fault(base_url=url)
    assert error.endswith("use https, or set allow_http = true in providers.acme.")
    assert one({"base_url": url, "allow_http": True}).base_url == url
    assert one({"allow_http": True, "endpoints": [{"base_url": url}]}).base_url == url
    assert "refused" in entry_fault(allow_http=True, endpoints=[{"base_url": url, "allow_http": False}])
    assert (
        one({}, LLMOPT_PROVIDERS__ACME__BASE_URL=url, LLMOPT_PROVIDERS__ACME__ALLOW_HTTP="true").base_url
        == url
    )


def test_allow_http_does_not_allow_a_link_local_address() -> None:
    """The metadata service of a cloud machine gives out its credentials."""
    assert "link-local" in fault(lambda: parse("http://169.254.169.254", allow_http=True))


@pytest.mark.parametrize(
    ("host", "pattern", "expected"),
    [
        ("api.acme.example", "api.acme.example", True),
        ("api.acme.example", "API.Acme.Example", True),
        ("api.acme.example", "acme.example", False),
        ("a.acme.cloud", "*.acme.cloud", True),
        ("a.b.acme.cloud", "*.acme.cloud", True),
        ("acme.cloud", "*.acme.cloud", False),
        (".acme.cloud", "*.acme.cloud", False),
        ("evilacme.cloud", "*.acme.cloud", False),
        ("a.acme.cloud.evil", "*.acme.cloud", False),
    ],
)
def test_own_hosts_match_whole_labels(host: str, pattern: str, expected: bool) -> None:
    """A host that merely ends with the same letters is another domain."""
    assert host_matches(host, pattern) is expected


def test_is_loopback_knows_the_names_and_addresses_of_this_machine() -> None:
    """And no name that merely begins like one."""
    assert all(map(is_loopback, ("localhost", "a.localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(
        map(is_loopback, ("127.0.0.1.evil", "localhost.evil", "10.0.0.1", "1270.0.0.1", "::2", "127"))
    )


# Base URLs with placeholders for options of the user.

PROFILE = Profile(
    base_url="https://{account}.acme.example/regions/{region}/v1",
    key_env=("ACME_API_KEY",),
    options=(
        Option(name="account", env=("ACME_ACCOUNT",), help="the account's name"),
        Option(name="region", help="such as north"),
    ),
)


def endpoint(environ: dict[str, str] | None = None, **entry: object) -> Endpoint:
    made = ProviderEntry(name="acme", **entry)  # type: ignore[arg-type] # keys of an entry
    (result,) = resolve_endpoints(made, PROFILE, client_flags=Flags(), environ=environ or {})
    return result


def template_fault(environ: dict[str, str] | None = None, **entry: object) -> str:
    with pytest.raises(ConfigError) as caught:
        endpoint(environ, **entry)
    return caught.value.message


def test_options_replace_the_placeholders_of_a_base_url() -> None:
    """From the configuration or the environment, and the key is sent there."""
    result = endpoint({"ACME_ACCOUNT": "ours", "ACME_API_KEY": "k-1"}, options={"region": "north"})
    assert result.base_url == "https://ours.acme.example/regions/north/v1"
    assert result.credential.problem == ""
    secret = result.credential.static_secret()
    assert secret is not None
    assert secret.reveal() == "k-1"


def test_the_error_of_a_missing_option_names_it() -> None:
    """With its help text, and its variable if there is one."""
    assert template_fault() == (
        "providers.acme: there is no base URL; set account (the account's name), or the environment "
        "variable ACME_ACCOUNT."
    )
    assert (
        template_fault(options={"account": "a"})
        == "providers.acme: there is no base URL; set region (such as north)."
    )


@pytest.mark.parametrize(
    "value", ["a/b", "a@b", "a:1", "", ".a", "a b", "é", "a#", "{region}", "x" * 200, "-a", "a?b"]
)
def test_a_value_that_is_no_name_is_an_error(value: str) -> None:
    """No value can change the host or end the path."""
    error = template_fault(options={"account": value, "region": "north"})
    assert error.startswith("providers.acme")
    assert "account" in error
    assert "acme.example" not in error


def test_a_name_with_dots_stays_below_the_domain() -> None:
    """Some accounts have such names."""
    result = endpoint(options={"account": "evil.example", "region": "r"})
    assert result.origin == "https://evil.example.acme.example"


def test_a_dot_segment_in_an_option_is_an_error() -> None:
    assert template_fault(options={"account": "a", "region": ".."}).startswith(
        "providers.acme: region becomes a part"
    )


def test_another_base_url_needs_no_options_and_gets_no_key() -> None:
    """The key of the environment belongs to the provider's own URL, which is not known here."""
    result = endpoint({"ACME_API_KEY": "k-1"}, base_url="https://proxy.example/v1")
    assert result.base_url == "https://proxy.example/v1"
    assert "set api_key or api_key_env" in result.credential.problem
    assert "k-1" not in result.credential.problem


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
QUERY = st.dictionaries(TEXT.filter(bool), TEXT, max_size=4)


@settings(max_examples=scaled(100, nightly=5000))
@given(present=QUERY, query=QUERY)
def test_a_query_is_added_to_any_url(present: dict[str, str], query: dict[str, str]) -> None:
    """Encoded; a configured parameter replaces the one of that name, and all others stay in their order."""
    url = "https://api.acme.example/v1/models"
    whole = add_query(f"{url}?{urlencode(present)}" if present else url, query)
    added = whole.removeprefix(url)
    assert re.fullmatch(r"[!-~]*", added)
    kept = [(name, value) for name, value in present.items() if name not in query]
    assert parse_qsl(added.removeprefix("?"), keep_blank_values=True) == [*kept, *query.items()]
