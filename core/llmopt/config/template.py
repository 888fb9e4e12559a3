"""Base URLs with a gap for something of the user's: an account, a region."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve

from llmopt.errors import ConfigError
from llmopt.values.profile import Profile

_GAP: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_FILLING: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""No slash, no @ and no colon: whatever is put in, the host stays below the provider's own domain."""


def gaps(url: str | None) -> tuple[str, ...]:
    """Names of the options that a base URL asks for."""
    return tuple(dict.fromkeys(_GAP.findall(url or "")))


def filled(profile: Profile, options: Mapping[str, Any], *, path: str, needed: bool = True) -> Profile:
    """A profile whose base URL has no gaps.

    Args:
        profile: the plugin's.
        options: the checked values of its options.
        path: of the entry, for messages.
        needed: whether it is an error if a value is missing; if not, there is no base URL then.

    Raises:
        ConfigError: a value is missing, or cannot stand in a URL.
    """
    url = profile.base_url
    for name in gaps(url):
        if name not in options:
            if needed:
                raise ConfigError(f"{path}: there is no base URL; {_choice(profile, name)}.")
            return evolve(profile, base_url=None)
        value = str(options[name])
        if not _FILLING.fullmatch(value):
            raise ConfigError(
                f"{path}: {name} becomes a part of the base URL and may hold letters, digits, '.', '_' "
                "and '-' only."
            )
        url = str(url).replace(f"{{{name}}}", value)
    return profile if url == profile.base_url else evolve(profile, base_url=url)


def _choice(profile: Profile, name: str) -> str:
    option = next((each for each in profile.options if each.name == name), None)
    variables = " or ".join(option.env) if option is not None else ""
    shown = f"set {name}" + (f" ({option.help})" if option is not None and option.help else "")
    return shown + (f", or the environment variable {variables}" if variables else "")
