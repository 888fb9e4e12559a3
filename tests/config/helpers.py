"""Short ways to a configuration and its endpoints."""

import os
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llmopt.config.load import load_config
from llmopt.config.resolve import Endpoint, resolve_endpoints
from llmopt.config.schema import Config, Flags
from llmopt.errors import ConfigError
from llmopt.values.profile import Profile

CANARY = "sk-canary-7f3a91c2"
NO_FILE = {"LLMOPT_CONFIG": os.devnull}
ACME = Profile(
    base_url="https://api.acme.example/v1",
    base_url_env=("ACME_BASE_URL",),
    key_env=("ACME_API_KEY", "ACME_KEY"),
    own_hosts=("*.acme.cloud",),
)


def load(source: Mapping[str, Any] | str | None = None, /, **environ: str) -> Config:
    """What a mapping and variables give, without any file."""
    return load_config(source, environ={**NO_FILE, **environ})


def endpoints(
    keys: Mapping[str, Any], profile: Profile | Callable[..., Profile] = ACME, /, **environ: str
) -> tuple[Endpoint, ...]:
    """The endpoints of an entry ``acme`` with these keys."""
    config = load({"providers": {"acme": keys}}, **environ)
    flags = Flags().overridden(config.flags)
    return resolve_endpoints(config.entry("acme"), profile, client_flags=flags, environ=environ)


def one(
    keys: Mapping[str, Any], profile: Profile | Callable[..., Profile] = ACME, /, **environ: str
) -> Endpoint:
    """The only endpoint of such an entry."""
    (found,) = endpoints(keys, profile, **environ)
    return found


def fault(call: Callable[[], object]) -> str:
    """The message of the ConfigError that a call raises; the canary is nowhere in it."""
    with pytest.raises(ConfigError) as caught:
        call()
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert CANARY not in shown
    return str(caught.value)


def entry_fault(**keys: object) -> str:
    """The message about an entry ``acme`` with these keys, loaded and resolved."""
    return fault(lambda: endpoints(keys))
