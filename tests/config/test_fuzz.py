"""Fuzz tests of the configuration: the result is valid or a ConfigError without any key in it."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt.config.load import _parse, allowed_keys, load_config, structure
from llmopt.config.resolve import resolve_endpoints
from llmopt.config.schema import Config, EndpointEntry, Flags, ProviderEntry, TimeoutsEntry
from llmopt.config.urls import parse_base_url
from llmopt.errors import ConfigError
from llmopt.values.profile import Option, Profile
from tests.config.helpers import CANARY, NO_FILE
from tests.support.scale import scaled

KEYS = sorted(
    {
        *allowed_keys(ProviderEntry),
        *allowed_keys(EndpointEntry),
        *allowed_keys(TimeoutsEntry),
        "size",
        "default",
    }
)
PROFILE = Profile(
    base_url="https://api.acme.example",
    base_url_env=("ACME_BASE_URL",),
    key_env=("ACME_API_KEY",),
    options=(Option(name="size", type=int, env=("SIZE",)),),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        [CANARY, f"{CANARY}\n", f"https://{CANARY}@host", f"https://host?{CANARY}", "https://a.example"]
    )
    | st.binary(max_size=4)
    | st.builds(object)
    | st.sampled_from([10**400, -(10**3000), "9" * 5000, (), frozenset({1}), str, len])
)
names = st.sampled_from(KEYS) | st.text(max_size=6) | st.integers(0, 3)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
entries = st.dictionaries(st.sampled_from(KEYS), values, max_size=5) | values
# A user may put a key into the wrong option.
secrets = st.sampled_from([CANARY, f"{CANARY}\n", f"{CANARY} x", [CANARY], {"x-key": CANARY}])
urls = st.sampled_from(
    [f"https://{CANARY}@host", f"https://host?{CANARY}", f"{CANARY}@", "https://a.example", "x"]
)
own = {
    "api_key": secrets,
    "api_key_env": secrets,
    "headers": secrets,
    "size": secrets,
    "base_url": urls,
    "timeouts": secrets,
    "max_retries": st.integers(-1, 3) | secrets,
}
keyed = st.fixed_dictionaries(
    {}, optional={**own, "endpoints": st.lists(st.fixed_dictionaries({}, optional=own), max_size=2)}
)
configs = st.fixed_dictionaries(
    {},
    optional={
        "providers": st.dictionaries(st.sampled_from(["acme", "b-c", "B"]), entries) | values,
        "flags": values,
    },
) | st.dictionaries(names, values, max_size=4)
variables = st.dictionaries(
    st.builds(
        "LLMOPT_{}".format,
        st.lists(
            st.sampled_from(["PROVIDERS", "ACME", "B_C", "FLAGS", "RETRY", "TIMEOUTS", "READ", "", "_", "ä"])
            | st.sampled_from(KEYS).map(str.upper),
            max_size=5,
        ).map("__".join),
    ),
    st.text(max_size=10) | st.sampled_from([CANARY, f"{CANARY} x", "5", "true", "[[", '"', "9" * 5000]),
    max_size=4,
)


def assert_no_canary(error: ConfigError) -> None:
    assert CANARY not in f"{error}{error!r}{error.__cause__!r}{error.__context__!r}"


def resolve_all(config: Config, environ: Mapping[str, str]) -> str:
    shown = repr(config)
    for name in config.providers:
        try:
            found = resolve_endpoints(config.entry(name), PROFILE, client_flags=Flags(), environ=environ)
        except ConfigError as error:
            assert_no_canary(error)
            continue
        for endpoint in found:
            shown += repr(endpoint)
            assert endpoint.max_concurrency <= endpoint.pool_size
            assert endpoint.origin.startswith(("https://", "http://"))
            assert endpoint.base_url.startswith(endpoint.origin)
            try:
                endpoint.credential.static_secret()
            except ConfigError as error:
                assert_no_canary(error)
    return shown


@settings(max_examples=scaled(100, nightly=400), deadline=None)
@given(source=configs, environ=variables)
def test_any_mapping_and_variables_give_a_configuration_or_an_error(
    source: dict[str, Any], environ: dict[str, str]
) -> None:
    """Keys of every kind in every place, with values of every kind."""
    environ = {"ACME_API_KEY": CANARY, **environ, **NO_FILE}
    try:
        config = load_config(source, environ=environ)
    except ConfigError as error:
        assert_no_canary(error)
        return
    resolve_all(config, environ)


@settings(max_examples=scaled(75, nightly=300), deadline=None)
@given(keys=keyed)
def test_a_key_in_any_place_is_in_no_error_and_no_repr(keys: dict[str, Any]) -> None:
    try:
        config = structure({"providers": {"acme": keys}})
    except ConfigError as error:
        assert_no_canary(error)
        return
    assert CANARY not in resolve_all(config, {"ACME_API_KEY": CANARY})


@settings(max_examples=scaled(75, nightly=300), deadline=None)
@given(
    content=st.binary(max_size=60) | st.text(alphabet="[]{}=\"'\n\r.#,ab1 \\u", max_size=40).map(str.encode)
)
def test_any_file_gives_a_table_or_an_error(content: bytes) -> None:
    found = _parse(content)
    assert isinstance(found, dict) or found.startswith("not ")


@settings(max_examples=scaled(75, nightly=300), deadline=None)
@given(
    text=st.text(max_size=30)
    | st.builds(
        "{}://{}{}".format,
        st.sampled_from(["http", "https", "HTTPS", "ftp", ""]),
        st.text(alphabet="aA1.:[]%@-_ä。１x0", max_size=16),  # noqa: RUF001 - odd on purpose
        st.text(alphabet="/.?#%@a\\", max_size=6),
    )
)
def test_any_base_url_is_refused_or_normalised(text: str) -> None:
    """Normalising it again changes nothing."""
    try:
        found = parse_base_url(text, path="p", entry="e", allow_http=True)
    except ConfigError:
        return
    assert found.url.isascii()
    assert not set("@?#\\ ") & set(found.url)
    assert parse_base_url(found.url, path="p", entry="e", allow_http=True) == found


@pytest.mark.row("S03")
@settings(max_examples=scaled(50, nightly=200), deadline=None)
@given(
    address=st.integers(0xA9FE0000, 0xA9FEFFFF),
    dots=st.integers(0, 3),
    base=st.sampled_from(["{}", "{:#x}", "0{:o}"]),
)
def test_a_link_local_address_is_refused_in_any_spelling(address: int, dots: int, base: str) -> None:
    """In every form that inet_aton reads."""
    parts = [(address >> 8 * (3 - index)) & 0xFF for index in range(dots)]
    parts.append(address & ((1 << 8 * (4 - dots)) - 1))
    host = ".".join(base.format(part) for part in parts)
    for text in (
        f"https://{host}",
        f"https://{host}./v1",
        f"http://{host}:80",
        f"https://[::ffff:{address >> 16:x}:{address & 0xFFFF:x}]",
    ):
        try:
            parse_base_url(text, path="p", entry="e", allow_http=True)
        except ConfigError:
            continue
        raise AssertionError(text)
