"""How many a minute: for all models, or for each."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

_DEFAULT = "default"


@frozen(kw_only=True)
class Rates:
    """Configured allowances a minute.

    Attributes:
        default: for every name that is not listed, None for no limit.
        by_name: for single models or deployments.
    """

    default: float | None = None
    by_name: Mapping[str, float] = field(factory=dict)

    def of(self, *names: str) -> float | None:
        """The allowance of the first of these names that is listed, else the default."""
        for name in names:
            if name in self.by_name:
                return self.by_name[name]
        return self.default


def rates(configured: float | Mapping[str, float] | None, usual: float | None) -> Rates:
    """Configured rates over the usual one of a profile."""
    if configured is None:
        return Rates(default=usual)
    if not isinstance(configured, Mapping):
        return Rates(default=configured)
    named = {name: rate for name, rate in configured.items() if name != _DEFAULT}
    return Rates(default=configured.get(_DEFAULT, usual), by_name=named)
