"""How much fits into one request, and into one minute."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import gt, optional

_positive = optional(gt(0))


@frozen(kw_only=True)
class BatchLimit:
    """The most that one request may hold. None means that no limit is known.

    Attributes:
        max_items: texts in a request.
        max_item_tokens: tokens in one text.
        max_tokens: tokens in all the texts of a request together.
        max_bytes: bytes of the encoded request body.
        truncates: whether a text over ``max_item_tokens`` is cut by the server instead of refused.
    """

    max_items: int | None = field(default=None, validator=_positive)
    max_item_tokens: int | None = field(default=None, validator=_positive)
    max_tokens: int | None = field(default=None, validator=_positive)
    max_bytes: int | None = field(default=None, validator=_positive)
    truncates: bool = False


@frozen(kw_only=True)
class RateLimit:
    """One rate limit as the headers of an answer tell it.

    Attributes:
        limit: allowance per ``window_s`` seconds, None if not told.
        remaining: what is left of it, None if not told.
        reset_s: seconds until it is whole again, None if not told.
        window_s: length of the window in seconds.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None
    window_s: float = 60.0


@frozen(kw_only=True)
class RateLimits:
    """What an answer tells of the rate limits; None where it is silent."""

    requests: RateLimit | None = None
    tokens: RateLimit | None = None
