"""Turns a response into its value or into one exception, whose message repeats no key and no input text.

No I/O, no clock and no state. `parse_or_raise` calls the function that parses, which calls the plugin's hooks, and the
hook `classify_error`; it runs on the event loop, or in a worker thread for a large response that is no stream's.
`hide_keys` changes the error that it is given, its traceback and that of its cause included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from llmopt import errors
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import Call, CatalogCall, Settings
from llmopt.values.http import EXCEPTION_OF, Failure, HttpResponse, Verdict, VerdictKind
from llmopt.values.redaction import foreign_frames, input_texts, redact, repeats_key, secrets_of

T = TypeVar("T")
Parse = Callable[[HttpResponse, Settings], T | Failure]
"""Parses a 2xx response: its value, or the failure that it carries."""
_REQUEST_ID: Final = ("x-request-id", "request-id", "apim-request-id", "x-ms-request-id", "cf-ray")
_ID_PATTERN: Final = re.compile(r"[!-~]{1,128}\Z")
_MAX_CODE: Final = 128
_MAX_MESSAGE: Final = 500
_MAX_ERROR_IN_SUCCESS: Final = 65_536
"""Bytes of a 2xx response that may be an error; a larger one is a result, or a part of one."""
_UNEXPLAINED: Final = (VerdictKind.INVALID_RESPONSE, VerdictKind.TRANSIENT)


def request_id(headers: Mapping[str, str], settings: Settings) -> str | None:
    """The provider's id of a request, None if it sends none, something that is no id, or the key."""
    value = next((headers[name] for name in _REQUEST_ID if name in headers), "")
    # The id goes into messages and logs: a header of any other form is not shown.
    is_id = _ID_PATTERN.match(value) and not repeats_key(value, secrets_of(settings))
    return value if is_id else None


def hide_keys(error: errors.LLMOptError, settings: Settings) -> None:
    """Remove keys and control characters from an error of an attempt, whatever part of llmopt has written it.

    A header such as the content type is quoted by the layer that reads it, which does not know the keys. The frames of
    that layer are dropped from tracebacks: their local variables hold the response, which may repeat a key.
    """
    secrets = secrets_of(settings)
    for each in (error, error.__cause__):
        if each is not None:
            each.__traceback__ = foreign_frames(each.__traceback__)
    error.args = (redact(error.message, secrets=secrets),)
    if error.request_id is not None and redact(error.request_id, secrets=secrets) != error.request_id:
        error.request_id = None


def parse_or_raise(
    hooks: ProviderHooks, call: Call, response: HttpResponse, settings: Settings, parse: Parse[T]
) -> T:
    """The value of a response.

    Raises:
        ProviderError: the response is an error; which one, the plugin decides in ``classify_error``.
        InvalidResponse: the response is a success that cannot be used.
    """
    # The 304 that a conditional request asked for.
    not_modified = response.status == 304 and isinstance(call, CatalogCall) and call.etag is not None
    if 200 <= response.status < 300 or not_modified:
        try:
            result = parse(response, settings)
        except errors.InvalidResponse as unusable:
            raise _error_in_success(unusable, hooks, call, response, settings) from None
        if not isinstance(result, Failure):
            return result
        failure = result
    else:
        failure = Failure.from_response(response, operation=call.operation, model=call.model)
        # Before the plugin is asked: a redirect must not look like an error of the model.
        if (error := _redirect(failure, call, settings)) is not None:
            raise error
    raise error_from_verdict(hooks.classify_error(failure, settings), failure, call, settings)


def _error_in_success(
    error: errors.InvalidResponse,
    hooks: ProviderHooks,
    call: Call,
    response: HttpResponse,
    settings: Settings,
) -> errors.LLMOptError:
    """The error for a 2xx response without a result: what the server says in it, if that is an error.

    Gateways answer 200 to everything: with an error in a shape of their own, with text, with a page. A body that is no
    error keeps the error of the parser, and the words of a body that is not JSON are added to it.
    """
    if not 0 < len(response.body) <= _MAX_ERROR_IN_SUCCESS:
        return error
    failure = Failure.from_response(response, operation=call.operation, model=call.model)
    form = failure.error.form
    if form not in ("error", "text"):
        return error
    verdict = hooks.classify_error(failure, settings)
    if form == "text" and verdict.kind in _UNEXPLAINED:
        words = _redacted(failure.error.message, call, settings)
        return errors.InvalidResponse(
            f"{error.message} It says: {words}", reason=error.reason, status=response.status, sent="yes"
        )
    return error_from_verdict(verdict, failure, call, settings)


def _redirect(failure: Failure, call: Call, settings: Settings) -> errors.LLMOptError | None:
    if not 300 <= failure.status < 400:
        return None
    # Without the query, which may contain a key.
    target = _redacted(failure.headers.get("location", "elsewhere").split("?")[0], call, settings)
    return errors.UnexpectedStatus(
        f"the server redirects to {target[:120]} (HTTP {failure.status}); redirects are never followed: "
        "set base_url to the final address.",
        status=failure.status,
        sent="yes",
    )


def error_from_verdict(
    verdict: Verdict, failure: Failure, call: Call, settings: Settings
) -> errors.LLMOptError:
    """The exception for a verdict of the plugin, with a redacted message."""
    text = _redacted(verdict.message or failure.error.message, call, settings)
    code, param = _redacted_code(verdict.code, call, settings), _redacted_code(verdict.param, call, settings)
    message = _message(text, code, verdict, failure, settings)
    kind = EXCEPTION_OF[verdict.kind]
    if issubclass(kind, errors.InvalidResponse):
        return errors.InvalidResponse(message, reason="error", status=failure.status, sent="yes")
    error: errors.ProviderError = kind(message, status=failure.status, code=code, sent="yes")
    if isinstance(error, (errors.RequestTooLarge, errors.ItemTooLong)):
        error.limit = verdict.limit
    if isinstance(error, errors.QuotaExhausted):
        error.scope = verdict.scope
    if isinstance(error, errors.RateLimited):
        error.exceeded = verdict.exceeded
    error.param = param
    error.item = verdict.item
    error.retry_after = verdict.retry_after
    return error


def _redacted(message: str, call: Call, settings: Settings) -> str:
    """Text of a provider without what it quotes from the request."""
    # Cut first: the search takes time in proportion to the length of the message.
    return redact(message[:_MAX_MESSAGE], secrets=secrets_of(settings), texts=input_texts(call))


def _redacted_code(code: str | None, call: Call, settings: Settings) -> str | None:
    return None if code is None else _redacted(code, call, settings)[:_MAX_CODE]


def _message(text: str, code: str | None, verdict: Verdict, failure: Failure, settings: Settings) -> str:
    if not settings.base_url:
        # An engine inside this process has no HTTP status.
        return text or "the engine refused the request"
    shown_code = f", {code}" if code and code != str(failure.status) else ""
    hint = verdict.hint
    if not hint and EXCEPTION_OF[verdict.kind] is errors.AuthError and settings.credential is None:
        hint = f"no key was sent: give providers.{settings.provider} its api_key or api_key_env"
    return f"{text.strip() or 'no message'} (HTTP {failure.status}{shown_code}){f'; {hint}' if hint else ''}"


SLOW: Final = (errors.AttemptTimeout, errors.RequestTimeout)
"""Errors of a request that took too long, here or at a gateway: a single slow text of a batch may be the cause."""
_INPUT: Final = re.compile(r"[$./]*(?:body[./])?(?:inputs?|texts?|contents?|prompt|messages)\b")
"""Names of the parameter that holds the texts: a refusal that names it may be about one of them."""
_ITEM_REASONS: Final = frozenset({"count", "index", "non_finite", "type", "dimensions", "base64"})
"""Reasons of `InvalidResponse` that a single text of a batch can cause."""


def may_be_item_error(error: errors.LLMOptError) -> bool:
    """Whether a single text of a batch may have caused the error, so that it helps to find that text.

    A 400 or 422 that names a parameter, other than that of the texts, concerns the whole request. Of the server errors only 500 counts: some
    servers answer it for a text that they cannot process.
    """
    if isinstance(error, errors.InvalidResponse):
        return error.reason in _ITEM_REASONS
    if isinstance(error, (errors.ItemTooLong, errors.ItemRejected, errors.ContentFiltered)):
        return True
    if isinstance(error, errors.BadRequest):
        of_texts = error.param is None or _INPUT.match(error.param) is not None
        return error.status in (400, 422) and of_texts
    return isinstance(error, errors.ServerError) and error.status == 500
