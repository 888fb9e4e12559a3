"""Text that came from an environment variable, and still knows it."""

from __future__ import annotations

from typing import Final, Self

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})
_LONGEST: Final = 64


class EnvText(str):
    """The value of an environment variable, named by ``variable``.

    Which type is wanted is only known where the key is read, so it stays text until then. A base
    URL of this type counts as given by the environment, see `llmopt.config.keyrule`.
    """

    __slots__ = ("variable",)

    variable: str

    def __new__(cls, text: str, variable: str) -> Self:
        """Text and the name of its variable."""
        made = super().__new__(cls, text)
        made.variable = variable
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override] # str has one argument
        return str(self), self.variable

    def __repr__(self) -> str:
        return f"EnvText('***', variable={self.variable!r})"


def as_number(value: object) -> object:
    """The number that an environment variable spells, as TOML writes numbers; else the value itself."""
    if not isinstance(value, EnvText) or len(value) > _LONGEST or "\n" in value:
        return value
    import tomllib

    try:
        number: object = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return value
    return number if type(number) in (int, float) else value


def as_bool(value: object) -> object:
    """The truth that an environment variable spells; else the value itself."""
    if not isinstance(value, EnvText):
        return value
    word = value.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else value
