"""The options of a call as the application gives them: the arguments of the client's methods, and the check of ``extra``.

Pure: no I/O, no clock, no shared state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

from attrs import field, fields_dict, frozen

from llmopt.errors import InvalidInput
from llmopt.values.calls import ErrorMode, Priority, WhenOpen, check_json


class EmbedOptions(NamedTuple):
    """The keyword arguments of ``embed`` and ``embed_iter``, not checked yet.

    A named tuple, because one is made for every call, and a frozen attrs class takes three times as long to make.

    Attributes:
        dimensions: see `llmopt.AsyncClient.embed`, and so for the others.
    """

    dimensions: int | None = None
    input_type: str | None = None
    deadline: float | None = None
    errors: ErrorMode = "raise"
    when_open: WhenOpen = "fail"
    priority: Priority = "interactive"
    extra: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        # Without ``extra`` and ``headers``: they may contain the name of a user, and a traceback may show this.
        return f"EmbedOptions(dimensions={self.dimensions!r:.40}, errors={self.errors!r:.40})"


@frozen(kw_only=True)
class ChatOptions:
    """The keyword arguments of ``chat`` and ``stream``, not checked yet.

    Attributes:
        max_tokens: see `llmopt.AsyncClient.chat`, and so for the others.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | Sequence[str] | None = field(default=None, repr=False)
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: Iterable[Mapping[str, Any]] | None = field(default=None, repr=False)
    tool_choice: str | Mapping[str, Any] | None = field(default=None, repr=False)
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = field(default=None, repr=False)
    reasoning_effort: str | None = None
    deadline: float | None = None
    when_open: WhenOpen = "fail"
    priority: Priority = "interactive"
    extra: Mapping[str, Any] | None = field(default=None, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """The options among the arguments of a method, given as its ``locals()``.

        Four methods take these arguments. This spares each of them a call that repeats every name;
        tests/client/test_parity.py checks that their signatures and this class agree.
        """
        return cls(**{name: arguments[name] for name in _CHAT_OPTIONS})


_CHAT_OPTIONS: Final = tuple(fields_dict(ChatOptions))


def checked_extra(extra: object) -> Mapping[str, Any]:
    """The ``extra`` option of a call: additional keys for the request body.

    Raises:
        InvalidInput: it is not a mapping, or contains a value that JSON cannot express.
    """
    if extra is None:
        return {}
    if not isinstance(extra, Mapping) or not all(isinstance(key, str) for key in extra):
        raise InvalidInput("extra must be a mapping from names to JSON values.")
    # A copy, because the caller may change its mapping while the call still waits.
    copied = dict(extra)
    check_json(copied, "extra")
    # msgspec encodes these as null, which would silently change the request.
    if _contains_nonfinite(copied):
        raise InvalidInput("extra contains a number that is not finite, which JSON cannot express.")
    return copied


def _contains_nonfinite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_contains_nonfinite, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_contains_nonfinite, value))
