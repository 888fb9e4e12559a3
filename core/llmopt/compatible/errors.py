"""Error responses in the OpenAI-compatible dialect: what each means, as a `Verdict`.

Decided by machine-readable code, then by HTTP status; never by the text of a message, which providers change freely. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmopt.hookspecs import hookimpl
from llmopt.values.http import Failure, Verdict, VerdictKind

_K = VerdictKind
_BY_CODE: Final[Mapping[str, VerdictKind]] = {
    # No credit left: sent with status 429, but waiting does not help.
    "insufficient_quota": _K.QUOTA_EXHAUSTED,
    "credit_balance_exhausted": _K.QUOTA_EXHAUSTED,
    "organization_spend_limit_exceeded": _K.QUOTA_EXHAUSTED,
    "project_spend_limit_exceeded": _K.QUOTA_EXHAUSTED,
    "organization_usage_limit_exceeded": _K.QUOTA_EXHAUSTED,
    "billing_hard_limit_reached": _K.QUOTA_EXHAUSTED,
    "enforced_spend_limit_reached": _K.QUOTA_EXHAUSTED,
    "contract_spend_limit_reached": _K.QUOTA_EXHAUSTED,
    "billing_error": _K.QUOTA_EXHAUSTED,
    "max_tokens_per_request": _K.BATCH_TOO_LARGE,
    "context_length_exceeded": _K.ITEM_TOO_LONG,
    "content_filter": _K.CONTENT_FILTERED,
    "content_policy_violation": _K.CONTENT_FILTERED,
    "slow_down": _K.OVERLOADED,
    "server_is_overloaded": _K.OVERLOADED,
    # By code as well as by status 404: an error event of a stream has no status.
    "model_not_found": _K.NOT_FOUND,
}
"""Verdicts by ``code`` or ``type`` of the error."""
_BY_STATUS: Final[Mapping[int, VerdictKind]] = {
    401: _K.AUTH,
    402: _K.QUOTA_EXHAUSTED,
    403: _K.PERMISSION,
    404: _K.NOT_FOUND,
    408: _K.TIMEOUT,
    413: _K.BATCH_TOO_LARGE,
    425: _K.TIMEOUT,
    429: _K.RATE_LIMITED,
    # nginx's status for a client that has gone: a gateway in between has given up.
    499: _K.TRANSIENT,
    # 501 and 505 are about the request (RFC 9110, 15.6): repeating it does not help.
    501: _K.BAD_REQUEST,
    503: _K.OVERLOADED,
    504: _K.TIMEOUT,
    505: _K.BAD_REQUEST,
    # Cloudflare: the server behind it did not answer in time.
    524: _K.TIMEOUT,
    # Anthropic's status for overload.
    529: _K.OVERLOADED,
}
"""Verdicts by HTTP status, for an error without a known code."""
_BY_TYPE: Final[Mapping[str, VerdictKind]] = {
    "server_error": _K.TRANSIENT,
    "internal_server_error": _K.TRANSIENT,
    "internalservererror": _K.TRANSIENT,
    "api_error": _K.TRANSIENT,
    "timeout_error": _K.TIMEOUT,
    "overloaded_error": _K.OVERLOADED,
    "service_unavailable_error": _K.OVERLOADED,
    "unavailable_error": _K.OVERLOADED,
    "rate_limit_error": _K.RATE_LIMITED,
    "rate_limit_exceeded": _K.RATE_LIMITED,
    "invalid_request_error": _K.BAD_REQUEST,
    "badrequesterror": _K.BAD_REQUEST,
    "authentication_error": _K.AUTH,
    "permission_error": _K.PERMISSION,
    "permission_denied_error": _K.PERMISSION,
    "not_found_error": _K.NOT_FOUND,
    "notfounderror": _K.NOT_FOUND,
    "exceed_context_size_error": _K.ITEM_TOO_LONG,
}
"""Verdicts by lower-case ``type`` or ``code``, for an error that came with a 2xx status and states no other."""


@hookimpl(trylast=True, specname="classify_error")
def classify(failure: Failure) -> Verdict:
    """Classify an error by its code, then by its status; one that came with a 2xx status by its type first."""
    error = failure.error
    kind = _kind_by_code(error.code, error.type, error.inner_code)
    # OpenRouter and streams send errors with status 200, which says nothing about them.
    if kind is None and 200 <= failure.stated_status < 300:
        kind = _kind_by_type(failure)
    if kind is None:
        kind = _kind_by_status(failure.stated_status)
    return Verdict(kind=kind, code=error.code or error.type, message=error.message, param=error.param)


def _kind_by_code(*codes: str | None) -> VerdictKind | None:
    kinds = [_BY_CODE[code] for code in codes if code is not None and code in _BY_CODE]
    # QUOTA_EXHAUSTED wins whichever field says it: llmopt must not retry when there is no credit left.
    if _K.QUOTA_EXHAUSTED in kinds:
        return _K.QUOTA_EXHAUSTED
    return kinds[0] if kinds else None


def _kind_by_type(failure: Failure) -> VerdictKind | None:
    types = ((each or "").lower() for each in (failure.error.code, failure.error.type))
    kind = next((_BY_TYPE[each] for each in types if each in _BY_TYPE), None)
    if kind is None and failure.operation == "chat":
        # An unexplained error in a stream or in place of a reply is usually temporary.
        return _K.TRANSIENT
    return kind


def _kind_by_status(status: int) -> VerdictKind:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 200 <= status < 300:
        return _K.INVALID_RESPONSE
    if 400 <= status < 500:
        return _K.BAD_REQUEST
    if 500 <= status < 600:
        return _K.TRANSIENT
    return _K.UNEXPECTED
