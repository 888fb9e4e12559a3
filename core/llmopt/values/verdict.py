"""What an error means, by what to do next."""

from __future__ import annotations

from enum import Enum
from typing import Final

from attrs import frozen

from llmopt import errors
from llmopt.values.limits import BatchLimit


class VerdictKind(Enum):
    """A closed set: each kind is one way to go on, and one exception when it reaches the caller."""

    TRANSIENT = "transient"
    """Retry."""
    TIMEOUT = "timeout"
    """Retry; the server gave up waiting."""
    RATE_LIMITED = "rate_limited"
    """Wait, and tell the rate limiter."""
    OVERLOADED = "overloaded"
    """Retry with fewer requests at once."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    """Never retry: money, credit or quota is gone."""
    BATCH_TOO_LARGE = "batch_too_large"
    """Split the batch and remember the limit."""
    ITEM_TOO_LONG = "item_too_long"
    """One text has too many tokens: find it."""
    ITEM_REJECTED = "item_rejected"
    """One text is refused: find it."""
    CONTENT_FILTERED = "content_filtered"
    """The content filter refused: find the text."""
    AUTH = "auth"
    """The key is wrong."""
    PERMISSION = "permission"
    """The key may not do this."""
    NOT_FOUND = "not_found"
    """No such model, deployment or path."""
    BAD_REQUEST = "bad_request"
    """The request as a whole is wrong."""
    UNEXPECTED = "unexpected"
    """A status nothing of ours should get."""
    INVALID_RESPONSE = "invalid_response"
    """A 2xx that cannot be used: one retry, then find the item."""


_K = VerdictKind

EXCEPTION_OF: Final[dict[VerdictKind, type[errors.ProviderError | errors.InvalidResponse]]] = {
    _K.TRANSIENT: errors.ServerError,
    _K.TIMEOUT: errors.RequestTimeout,
    _K.RATE_LIMITED: errors.RateLimited,
    _K.OVERLOADED: errors.Overloaded,
    _K.QUOTA_EXHAUSTED: errors.QuotaExhausted,
    _K.BATCH_TOO_LARGE: errors.RequestTooLarge,
    _K.ITEM_TOO_LONG: errors.ItemTooLong,
    _K.ITEM_REJECTED: errors.ItemRejected,
    _K.CONTENT_FILTERED: errors.ContentFiltered,
    _K.AUTH: errors.AuthError,
    _K.PERMISSION: errors.PermissionDenied,
    _K.NOT_FOUND: errors.NotFound,
    _K.BAD_REQUEST: errors.BadRequest,
    _K.UNEXPECTED: errors.UnexpectedStatus,
    _K.INVALID_RESPONSE: errors.InvalidResponse,
}
"""Which exception a verdict becomes when it reaches the caller."""


@frozen(kw_only=True)
class Verdict:
    """The meaning of one `Failure`.

    Attributes:
        kind: what to do next.
        code: the provider's machine-readable code, or None.
        message: the provider's own sentence, or "" to take it from the body.
        retry_after: seconds that the body asks to wait, or None; headers are read by the core.
        limit: the limit that the text states ("maximum allowed batch size 32"), or None.
        item: index of the text at fault where the answer names it, or None.
        param: the parameter at fault, which makes it the whole request's; or None.
        hint: what the reader can do about it, in one sentence, or "".
    """

    kind: VerdictKind
    code: str | None = None
    message: str = ""
    retry_after: float | None = None
    limit: BatchLimit | None = None
    item: int | None = None
    param: str | None = None
    hint: str = ""
