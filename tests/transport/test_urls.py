"""URLs, origins and proxies, before any I/O."""

from __future__ import annotations

import httpx
import pytest

from llmopt.errors import ConfigError
from llmopt.transport.httpx_transport import HttpxSender
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.urls import Targets, proxy_for, request_origin
from tests.transport.helpers import embed_request_to, expect_error

BAD = [
    "http://127.0.0.1:99999/v1",
    "http://127.0.0.1:many/v1",
    "ftp://127.0.0.1/v1",
    "file:///etc/passwd",
    "127.0.0.1:8000/v1",
    "//127.0.0.1/v1",
    "/v1",
    "",
    "http://[::1",
    "http://",
    "http:///v1",
    "https://user:sk-canary-key-0123456789@127.0.0.1/v1",
    "https://sk-canary-key-0123456789@127.0.0.1/v1",
    "http://127.0.0.1 /v1",
    "http://127.0.0.1\n/v1",
    "http://127.0.0.1\\@evil.example/v1",
    "http://" + "a" * 64 + "ü.example/v1",
]


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:8000/v1/embeddings?a=b", "http://127.0.0.1:8000"),
        ("https://API.example.com/v1", "https://api.example.com"),
        ("https://api.example.com:443/v1", "https://api.example.com"),
        ("http://api.example.com:80", "http://api.example.com"),
        ("http://api.example.com:443", "http://api.example.com:443"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("https://bücher.example/v1", "https://xn--bcher-kva.example"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: str) -> None:
    """Never the path; host names in their ASCII form."""
    assert request_origin(url) == origin


@pytest.mark.row("N23")
@pytest.mark.parametrize("url", BAD)
def test_an_invalid_url_is_refused_with_a_message(url: str) -> None:
    """The message holds no secret part of the URL."""
    with pytest.raises(ConfigError) as caught:
        request_origin(url)
    assert "canary" not in str(caught.value)


@pytest.mark.row("N23")
@pytest.mark.parametrize("url", BAD)
async def test_an_invalid_url_is_refused_before_any_io(url: str, pool: ConnectionPool) -> None:
    """By every sender."""
    error = await expect_error(pool, embed_request_to(url), ConfigError)
    assert error.sent == "no"
    assert pool.stats().created == 0


@pytest.mark.row("S03")
@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "0177.0.0.1", "127.0.0.256"])
async def test_addresses_in_unusual_forms_are_refused(host: str, pool: ConnectionPool) -> None:
    """One program reads them as names, another as 127.0.0.1."""
    error = await expect_error(pool, embed_request_to(f"http://{host}:9"), ConfigError)
    assert error.sent == "no"


def test_a_url_is_parsed_once() -> None:
    """The cache of many different URLs stays small."""
    targets = Targets()
    first = targets.get("http://127.0.0.1:8000/v1")
    assert targets.get("http://127.0.0.1:8000/v1") is first
    for number in range(3000):
        targets.get(f"http://127.0.0.1:8000/v1?cursor={number}")
    assert targets.get.cache_info().currsize < 2000


class TestProxies:
    """Which proxy the environment names."""

    @pytest.mark.row("S05")
    @pytest.mark.parametrize(
        ("origin", "environment", "url"),
        [
            ("http://a.example", {}, None),
            ("http://a.example", {"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
            ("http://a.example", {"HTTPS_PROXY": "http://proxy:3128"}, None),
            ("https://a.example", {"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
            ("https://a.example", {"https_proxy": "http://low", "HTTPS_PROXY": "http://up"}, "http://low:80"),
            ("https://a.example", {"HTTPS_PROXY": "proxy:3128"}, "http://proxy:3128"),
            ("https://a.example", {"HTTPS_PROXY": "https://proxy"}, "https://proxy:443"),
            ("https://a.example", {"HTTPS_PROXY": "http://[::1]:3128"}, "http://[::1]:3128"),
            ("https://a.example", {"ALL_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
            ("http://a.example", {"all_proxy": "proxy:3128"}, "http://proxy:3128"),
            ("http://a.example", {"all_proxy": "low", "ALL_PROXY": "up"}, "http://low:80"),
            ("http://a.example", {"HTTP_PROXY": "http", "all_proxy": "all"}, "http://http:80"),
            ("https://a.example", {"HTTP_PROXY": "http", "ALL_PROXY": "all"}, "http://all:80"),
            (
                "https://a.example",
                {"https_proxy": "", "HTTPS_PROXY": "", "ALL_PROXY": "all"},
                "http://all:80",
            ),
            ("https://a.example", {"ALL_PROXY": "all", "NO_PROXY": "example"}, None),
            ("http://a.example", {"HTTP_PROXY": "http://proxy", "REQUEST_METHOD": "GET"}, None),
            ("http://a.example", {"http_proxy": "http://proxy", "REQUEST_METHOD": "GET"}, "http://proxy:80"),
            ("https://a.example", {"HTTPS_PROXY": ""}, None),
        ],
    )
    def test_the_proxy_depends_on_the_scheme(
        self, origin: str, environment: dict[str, str], url: str | None
    ) -> None:
        """HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, and no other variable."""
        proxy = proxy_for(origin, environment)
        assert (proxy and proxy.url) == url

    @pytest.mark.row("S05")
    @pytest.mark.parametrize(
        ("origin", "excepted", "straight"),
        [
            ("http://a.example", "*", True),
            ("http://a.example", "b.example, A.example", True),
            ("http://sub.a.example", "a.example", True),
            ("http://sub.a.example", ".a.example", True),
            ("http://sub.a.example", "*.a.example", True),
            ("http://nota.example", "a.example", False),
            ("http://a.example:8000", "a.example:8000", True),
            ("http://a.example:8001", "a.example:8000", False),
            ("http://a.example", "a.example:8000", False),
            ("http://127.0.0.1:8000", "127.0.0.1", True),
            ("http://10.1.2.3", "10.0.0.0/8", True),
            ("http://11.1.2.3", "10.0.0.0/8", False),
            ("http://a.example", "10.0.0.0/8", False),
            ("http://10.1.2.3", "nonsense/8", False),
            ("http://[::1]:8000", "::1", True),
            ("http://[::1]:8000", "[::1]:8000", True),
            ("http://a.example", "", False),
            ("http://a.example", ",", False),
        ],
    )
    def test_no_proxy_exceptions(self, origin: str, excepted: str, straight: bool) -> None:
        """Hosts with their subdomains, ports, addresses and networks."""
        proxy = proxy_for(origin, {"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": excepted})
        assert (proxy is None) == straight

    def test_credentials_become_a_header_and_are_not_shown(self) -> None:
        """Neither in the URL nor in the representation."""
        proxy = proxy_for("https://a.example", {"HTTPS_PROXY": "http://us%20er:s%3Acret@proxy:3128"})
        assert proxy is not None
        assert proxy.authorization == "Basic dXMgZXI6czpjcmV0"
        assert proxy.url == "http://proxy:3128"
        assert "cret" not in repr(proxy)
        assert "Basic" not in repr(proxy)

    @pytest.mark.parametrize(
        "value", ["socks5://u:canary@proxy", "http://u:canary@", "http://u:canary@h:port"]
    )
    def test_an_unusable_proxy_is_reported_without_its_password(self, value: str) -> None:
        """The error names the variable, not its value."""
        with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
            proxy_for("https://a.example", {"HTTPS_PROXY": value})
        assert "canary" not in str(caught.value)


@pytest.mark.row("N23")
@pytest.mark.parametrize("url", BAD)
async def test_errors_of_a_custom_transport_have_the_same_messages(url: str) -> None:
    """No error is one of httpx's exception groups."""
    sender = HttpxSender(httpx.AsyncHTTPTransport())
    await expect_error(sender, embed_request_to(url), ConfigError)
    await sender.aclose()
