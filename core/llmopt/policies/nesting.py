"""One retrier per request, also when a call of llmopt is made inside another one's attempt."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Final, Self

_inside: Final[ContextVar[bool]] = ContextVar("llmopt_inside_attempt", default=False)


class SingleRetrier:
    """While it is entered, llmopt calls made inside do not retry: attempts would multiply.

    The engine enters it where somebody else's code runs: around an attempt that a transport of the user's carries, around
    asking for another key, and around every attempt after the first. What calls llmopt from
    there gets one attempt, and the outer call decides (litellm #7262: (1 + N) x (1 + M) requests).
    """

    __slots__ = ("_token",)
    _token: Token[bool]

    def __enter__(self) -> Self:
        self._token = _inside.set(True)
        return self

    def __exit__(self, *_: object) -> None:
        _inside.reset(self._token)


def inside_attempt() -> bool:
    """Whether this code runs inside an attempt of llmopt's."""
    return _inside.get()
