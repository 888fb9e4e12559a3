"""A hook's implementations as one function, worked out once instead of at every call.

pluggy's relay copies its list, builds a dictionary and looks for wrappers each time, 2 to 10 µs a call. Which
implementations there are is known when the provider is made, and nothing registers with its manager afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import pluggy

Ask = Callable[..., Any]


def direct(hook: Any) -> Ask:
    """The hook as a function of its parameters by position; does what the relay does."""
    implementations: list[pluggy.HookImpl] = hook.get_hookimpls()
    parameters: tuple[str, ...] = hook.spec.argnames
    if any(each.wrapper or each.hookwrapper or each.kwargnames for each in implementations):
        return lambda *values: hook(**dict(zip(parameters, values, strict=True)))
    # The one that is asked first stands last.
    asked = [_placed(each.function, each.argnames, parameters) for each in reversed(implementations)]

    def first(*values: object) -> Any:
        for ask in asked:
            found = ask(*values)
            if found is not None:
                return found
        return None

    return first


def _placed(function: Ask, names: Sequence[str], parameters: Sequence[str]) -> Ask:
    """A function of some of the parameters as one of all of them."""
    if tuple(names) == tuple(parameters):
        return function
    at = [parameters.index(name) for name in names]
    if not at:
        return lambda *_: function()
    if len(at) == 1:
        place = at[0]
        return lambda *values: function(values[place])
    chosen = itemgetter(*at)
    return lambda *values: function(*chosen(values))
