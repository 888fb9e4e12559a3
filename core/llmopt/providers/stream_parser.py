"""`parse_stream_event`, worked out once for a stream instead of for each of its many events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import pluggy

from llmopt.values.calls import ChatCall
from llmopt.values.settings import Settings
from llmopt.values.stream import ServerEvent

Parse = Callable[[ServerEvent], Any]
_EVENT: Final = "event"


def bound(implementations: Sequence[pluggy.HookImpl], call: ChatCall, settings: Settings) -> Parse | None:
    """The implementations of the hook as one function of the event alone, which does what the relay does.

    Args:
        implementations: as the relay has them; the one asked first stands last.
        call: of the stream.
        settings: of the stream.

    Returns:
        The function, or None where a wrapper stands around them, which the relay must call.
    """
    if any(each.wrapper or each.hookwrapper for each in implementations):
        return None
    given = {"call": call, "settings": settings}
    asked = [_bound(each, given) for each in reversed(implementations)]
    if len(asked) == 1:
        return asked[0]

    def first(event: ServerEvent) -> Any:
        for ask in asked:
            found = ask(event)
            if found is not None:
                return found
        return None

    return first


def _bound(implementation: pluggy.HookImpl, given: dict[str, Any]) -> Parse:
    function: Any = implementation.function
    names = implementation.argnames
    if _EVENT not in names:
        fixed = partial(function, *(given[name] for name in names))
        return lambda _: fixed()
    at = names.index(_EVENT)
    before = partial(function, *(given[name] for name in names[:at]))
    after = [given[name] for name in names[at + 1 :]]
    return before if not after else lambda event: before(event, *after)
