"""What the plugin says of its provider."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
from attrs import evolve

from llmopt.config.hosts import is_loopback
from llmopt.config.structure import known_keys
from llmopt.config.template import gaps
from llmopt.config.tree import ProviderEntry
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.headers import OF_KEYS, OF_THE_WIRE, header_faults
from llmopt.testing.kit.subject import SOMEWHERE, Subject
from llmopt.testing.kit.types import type_faults
from llmopt.values.profile import Option

check: Final = Family("profile")

_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*\Z")
_OPTION: Final = re.compile(r"[a-z][a-z0-9_]*\Z")
_HOST: Final = re.compile(r"(\*\.)?([a-z0-9-]+\.)+[a-z0-9-]+\Z")
_HOUR: Final = 3600.0


@check("types")
def _types(subject: Subject) -> None:
    """provider_profile returns a Profile, each field of its own type."""
    faults = type_faults(subject.profile)
    expect(not faults, "\n".join(faults))


@check("base-url")
def _base_url(subject: Subject) -> None:
    """The base URL is https://host/path without a slash at the end; http only for this machine."""
    url = subject.profile.base_url
    if url is None:
        raise NotApplicable("only the user knows where this provider is")
    parts = urlsplit(url)
    local = parts.scheme == "http" and is_loopback(parts.hostname or "")
    expect(parts.scheme == "https" or local, f"base_url begins with {parts.scheme!r}.")
    expect(parts.hostname, "base_url has no host.")
    expect(not url.endswith("/"), "base_url ends with a slash.")


@check("gaps")
def _gaps(subject: Subject) -> None:
    """A gap in the base URL is one of the plugin's text options, and stands before a domain of the provider's own."""
    url = subject.profile.base_url
    names = gaps(url)
    if url is None or not names:
        raise NotApplicable("the base URL has no gaps")
    texts = {option.name for option in subject.profile.options if option.type is str}
    wrong = [name for name in names if name not in texts]
    expect(not wrong, f"base_url asks for {', '.join(wrong)}, which no option of type str is called.")
    fixed = url.partition("://")[2].partition("/")[0].rpartition("}")[2]
    whole = "}" not in url.partition("://")[2].partition("/")[0]
    expect(whole or fixed.count(".") >= 2, "whatever is filled in decides whose the host is.")


@check("no-key-in-url")
def _no_key_in_url(subject: Subject) -> None:
    """The base URL has no user name, password, query or fragment: what stands there ends up in logs."""
    parts = urlsplit(subject.profile.base_url or "")
    for word, found in (("a user name or password", parts.username or parts.password), ("a query", parts.query),
                        ("a fragment", parts.fragment)):  # fmt: skip
        expect(not found, f"base_url holds {word}.")


@check("resolves")
def _resolves(subject: Subject) -> None:
    """With a key, a base URL and the samples' options, the configuration comes to an endpoint."""
    _ = subject.endpoint_of(subject.entry)


@check("environment-names")
def _environment_names(subject: Subject) -> None:
    """Environment variables have capital letters, digits and _ only."""
    profile = subject.profile
    names = [
        *profile.base_url_env,
        *profile.key_env,
        *(name for each in profile.options for name in each.env),
    ]
    wrong = [name for name in names if not _VARIABLE.match(name)]
    expect(not wrong, f"there are variables called {', '.join(map(repr, wrong))}.")


@check("key-names")
def _key_names(subject: Subject) -> None:
    """A provider that needs a key names the environment variable for it."""
    profile = subject.profile
    if not profile.key_required or profile.auth == "none":
        raise NotApplicable("this provider needs no key")
    expect(profile.key_env, "key_required is True and key_env is empty.")


@check("auth")
def _auth(subject: Subject) -> None:
    """The auth scheme is "bearer", "none" or the name of a header, and needs a key unless it is "none"."""
    profile = subject.profile
    if profile.auth not in ("bearer", "none"):
        faults = header_faults({profile.auth: ""})
        expect(
            not faults and profile.auth.lower() not in {*OF_THE_WIRE, "basic"}, f"auth is {profile.auth!r}."
        )
    expect(profile.auth != "none" or not profile.key_required, 'auth is "none" and key_required is True.')


@check("own-hosts")
def _own_hosts(subject: Subject) -> None:
    """Own hosts are host names of the provider's; a "*." stands before a name of at least two parts."""
    for host in subject.profile.own_hosts:
        expect(_HOST.match(host), f"own_hosts holds {host!r}.")
        expect(host.removeprefix("*.").count(".") >= 1, f"{host!r} lets keys go to a whole top-level domain.")


@check("headers")
def _headers(subject: Subject) -> None:
    """Headers are valid, and hold neither a key nor what belongs to the wire."""
    headers = subject.profile.headers
    faults = header_faults(headers)
    expect(not faults, "\n".join(faults))
    for name in headers:
        expect(
            name.lower() not in OF_KEYS, f"headers holds {name}: a key is the user's, never the profile's."
        )
        expect(name.lower() not in OF_THE_WIRE, f"headers holds {name}, which the wire sets.")


@check("timeouts")
def _timeouts(subject: Subject) -> None:
    """Time-outs are seconds: above 0, at most an hour; connecting takes no longer than a whole attempt."""
    times = subject.profile.timeouts
    _within(attrs.asdict(times).items(), "timeouts", least=0.001, most=_HOUR)
    expect(
        times.connect <= max(times.read, times.first or 0, 30),
        "timeouts.connect is longer than timeouts.read.",
    )


@check("retries")
def _retries(subject: Subject) -> None:
    """Retries are 0 to 10, and the first back-off is 0 to 60 seconds."""
    profile = subject.profile
    _within([("max_retries", profile.max_retries)], "Profile", least=0, most=10)
    _within([("retry_delay", profile.retry_delay)], "Profile", least=0, most=60)


@check("pool")
def _pool(subject: Subject) -> None:
    """There is at least one connection, as many as requests in flight, kept for an hour at most."""
    profile = subject.profile
    _within([("pool_size", profile.pool_size)], "Profile", least=1, most=10_000)
    _within([("max_concurrency", profile.max_concurrency)], "Profile", least=1, most=profile.pool_size)
    _within([("keepalive", profile.keepalive)], "Profile", least=0, most=_HOUR)


@check("rates")
def _rates(subject: Subject) -> None:
    """Usual rates are above 0, or None for no limit."""
    profile = subject.profile
    _within([("rpm", profile.rpm), ("tpm", profile.tpm)], "Profile", least=0.01, most=1e12)


def _within(fields: Iterable[tuple[str, float | None]], owner: str, *, least: float, most: float) -> None:
    for name, value in fields:
        fine = value is None or (math.isfinite(value) and least <= value <= most)
        expect(fine, f"{owner}.{name} is {value}.", f"{least:g} to {most:g}.")


@check("options")
def _options(subject: Subject) -> None:
    """The plugin's own configuration keys have names of their own, each once, with a line of help."""
    names = [option.name for option in subject.profile.options]
    expect(len(names) == len(set(names)), f"an option is declared twice: {', '.join(sorted(names))}.")
    for option in subject.profile.options:
        _check_option(option)


def _check_option(option: Option) -> None:
    name = option.name
    expect(_OPTION.match(name), f"an option is called {name!r}.", "small letters, digits and _.")
    expect(name not in known_keys(ProviderEntry), f"the option {name!r} is a key of the core's already.")
    expect(option.help, f"the option {name!r} has no help, which its user reads when a value is wrong.")
    wrong = [choice for choice in option.choices if not isinstance(choice, option.type)]
    expect(not wrong, f"choices of the option {name!r} are not of its type {option.type.__name__}.")


@check("any-entry")
def _any_entry(subject: Subject) -> None:
    """provider_profile returns a Profile for any entry: a bare one, one with a base URL, one with odd options."""
    declared = subject.hooks.provider_profile(subject.bare_entry).options
    changes: dict[str, Any]
    for changes in (
        {"options": {}},
        {"base_url": SOMEWHERE, "options": {}},
        {"base_url": "http://127.0.0.1:9/v1"},
        {"options": {option.name: ["not", "checked"] for option in declared}},
        {"options": {"kit_unknown": object()}},
    ):
        _ = subject.hooks.provider_profile(evolve(subject.bare_entry, **changes))
