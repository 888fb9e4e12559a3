"""Base URLs with a gap for something of the user's."""

from __future__ import annotations

import pytest

from llmopt import ConfigError, Option, Profile, ProviderEntry
from llmopt.config.resolve import Endpoint, resolve_endpoints
from llmopt.config.schema import Flags

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
    (found,) = resolve_endpoints(made, PROFILE, client_flags=Flags(), environ=environ or {})
    return found


def fault(environ: dict[str, str] | None = None, **entry: object) -> str:
    with pytest.raises(ConfigError) as caught:
        endpoint(environ, **entry)
    return caught.value.message


def test_options_fill_it() -> None:
    """From the configuration or the environment, and the key goes there."""
    found = endpoint({"ACME_ACCOUNT": "ours", "ACME_API_KEY": "k-1"}, options={"region": "north"})
    assert found.base_url == "https://ours.acme.example/regions/north/v1"
    assert found.credential.problem == ""
    secret = found.credential.static_secret()
    assert secret is not None
    assert secret.reveal() == "k-1"


def test_what_is_missing_is_asked_for_by_name() -> None:
    """With its help, and the variable if there is one."""
    assert fault() == (
        "providers.acme: there is no base URL; set account (the account's name), or the environment "
        "variable ACME_ACCOUNT."
    )
    assert (
        fault(options={"account": "a"}) == "providers.acme: there is no base URL; set region (such as north)."
    )


@pytest.mark.parametrize(
    "value", ["a/b", "a@b", "a:1", "", ".a", "a b", "é", "a#", "{region}", "x" * 200, "-a", "a?b"]
)
def test_nothing_but_a_name_fills_it(value: str) -> None:
    """No value leads to another host, nor ends the path."""
    told = fault(options={"account": value, "region": "north"})
    assert told.startswith("providers.acme")
    assert "account" in told
    assert "acme.example" not in told


def test_a_dotted_name_stays_below_the_domain() -> None:
    """As some accounts are named."""
    found = endpoint(options={"account": "evil.example", "region": "r"})
    assert found.origin == "https://evil.example.acme.example"


def test_steps_of_a_path_are_refused() -> None:
    """What begins with a letter and is no step at all is taken."""
    assert fault(options={"account": "a", "region": ".."}).startswith("providers.acme: region becomes a part")


def test_another_base_url_needs_no_options_and_gets_no_key() -> None:
    """The key of the environment belongs to the provider's own address, which is not known here."""
    found = endpoint({"ACME_API_KEY": "k-1"}, base_url="https://proxy.example/v1")
    assert found.base_url == "https://proxy.example/v1"
    assert "set api_key or api_key_env" in found.credential.problem
    assert "k-1" not in found.credential.problem
