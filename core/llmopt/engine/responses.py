"""Turns a response into its value or into one exception, whose message repeats no key and no input text.

No I/O, no clock and no state. `parse_or_raise` calls the plugin's hooks, and runs in a worker thread for large
responses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from llmopt.errors import (
    AttemptTimeout,
    AuthError,
    BadRequest,
    ContentFiltered,
    InvalidResponse,
    ItemRejected,
    ItemTooLong,
    LLMOptError,
    ProviderError,
    QuotaExhausted,
    RequestTimeout,
    RequestTooLarge,
    ServerError,
    UnexpectedStatus,
)
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import Call, CatalogCall, ChatCall, EmbedCall, Settings
from llmopt.values.http import EXCEPTION_OF, Failure, HttpResponse, Verdict, VerdictKind

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
_TEXT_WINDOW: Final = 12
_KEY_WINDOW: Final = 8
_MIN_TEXT: Final = 5
"""Shorter texts occur in any sentence by chance."""
_SECRET_HEADER: Final = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's id of a request, None if it sends none or something that is no id."""
    for name in _REQUEST_ID:
        if name in headers:
            # The id goes into messages and logs: a header of any other form is not shown.
            return headers[name] if _ID_PATTERN.match(headers[name]) else None
    return None


def parse_or_raise(
    hooks: ProviderHooks, call: Call, response: HttpResponse, settings: Settings, parse: Parse[T]
) -> T:
    """The value of a response.

    Raises:
        ProviderError: the response is an error; which one, the plugin decides in ``classify_error``.
        InvalidResponse: the response is a success that cannot be used.
    """
    if 200 <= response.status < 300 or _is_not_modified(call, response):
        try:
            result = parse(response, settings)
        except InvalidResponse as unusable:
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
    error: InvalidResponse, hooks: ProviderHooks, call: Call, response: HttpResponse, settings: Settings
) -> LLMOptError:
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
        return InvalidResponse(
            f"{error.message} It says: {words}", reason=error.reason, status=response.status, sent="yes"
        )
    return error_from_verdict(verdict, failure, call, settings)


def _is_not_modified(call: Call, response: HttpResponse) -> bool:
    """Whether the response is the 304 that a conditional request asked for."""
    return response.status == 304 and isinstance(call, CatalogCall) and call.etag is not None


def _redirect(failure: Failure, call: Call, settings: Settings) -> LLMOptError | None:
    if not 300 <= failure.status < 400:
        return None
    # Without the query, which may contain a key.
    target = _redacted(failure.headers.get("location", "elsewhere").split("?")[0], call, settings)
    return UnexpectedStatus(
        f"the server redirects to {target[:120]} (HTTP {failure.status}); redirects are never followed: "
        "set base_url to the final address.",
        status=failure.status,
        sent="yes",
    )


def error_from_verdict(verdict: Verdict, failure: Failure, call: Call, settings: Settings) -> LLMOptError:
    """The exception for a verdict of the plugin, with a redacted message."""
    text = _redacted(verdict.message or failure.error.message, call, settings)
    code, param = _redacted_code(verdict.code, call, settings), _redacted_code(verdict.param, call, settings)
    message = _message(text, code, verdict, failure, settings)
    kind = EXCEPTION_OF[verdict.kind]
    if issubclass(kind, InvalidResponse):
        return InvalidResponse(message, reason="error", status=failure.status, sent="yes")
    error: ProviderError = kind(message)
    if isinstance(error, (RequestTooLarge, ItemTooLong)):
        error.limit = verdict.limit
    if isinstance(error, QuotaExhausted):
        error.scope = verdict.scope
    error.status = failure.status
    error.code = code
    error.param = param
    error.item = verdict.item
    error.retry_after = verdict.retry_after
    error.sent = "yes"
    return error


def input_texts(call: Call) -> Sequence[str]:
    """The texts of a call, which no message may repeat."""
    if isinstance(call, EmbedCall):
        return call.texts
    if isinstance(call, ChatCall):
        return [text for message in call.messages for text in _strings(message)]
    return ()


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def _redacted(message: str, call: Call, settings: Settings) -> str:
    """Text of a provider without what it quotes from the request."""
    secrets = [value for name, value in settings.headers.items() if _SECRET_HEADER.search(name)]
    if settings.credential is not None:
        secrets.append(settings.credential.reveal())
    # Cut first: the search takes time in proportion to the length of the message.
    return redact(message[:_MAX_MESSAGE], secrets=secrets, texts=input_texts(call))


def _redacted_code(code: str | None, call: Call, settings: Settings) -> str | None:
    return None if code is None else _redacted(code, call, settings)[:_MAX_CODE]


def _message(text: str, code: str | None, verdict: Verdict, failure: Failure, settings: Settings) -> str:
    if not settings.base_url:
        # An engine inside this process has no HTTP status.
        return text or "the engine refused the request"
    shown_code = f", {code}" if code and code != str(failure.status) else ""
    hint = verdict.hint or _hint(verdict.kind, settings)
    return f"{text or 'no message'} (HTTP {failure.status}{shown_code}){f'; {hint}' if hint else ''}"


def _hint(kind: VerdictKind, settings: Settings) -> str:
    if EXCEPTION_OF[kind] is AuthError and settings.credential is None:
        return f"no key was sent: give providers.{settings.provider} its api_key or api_key_env"
    return ""


SLOW: Final = (AttemptTimeout, RequestTimeout)
"""Errors of a request that took too long, here or at a gateway: a single slow text of a batch may be the cause."""
_INPUT: Final = re.compile(r"[$./]*(?:body[./])?(?:inputs?|texts?|contents?|prompt|messages)\b")
"""Names of the parameter that holds the texts: a refusal that names it may be about one of them."""
_ITEM_REASONS: Final = frozenset({"count", "index", "non_finite", "type", "dimensions", "base64"})
"""Reasons of `InvalidResponse` that a single text of a batch can cause."""


def may_be_item_error(error: LLMOptError) -> bool:
    """Whether a single text of a batch may have caused the error, so that it helps to find that text.

    A 400 or 422 that names a parameter, other than that of the texts, concerns the whole request. Of the server errors only 500 counts: some
    servers answer it for a text that they cannot process.
    """
    if isinstance(error, InvalidResponse):
        return error.reason in _ITEM_REASONS
    if isinstance(error, (ItemTooLong, ItemRejected, ContentFiltered)):
        return True
    if isinstance(error, BadRequest):
        of_texts = error.param is None or _INPUT.match(error.param) is not None
        return error.status in (400, 422) and of_texts
    return isinstance(error, ServerError) and error.status == 500


def redact(message: str, *, secrets: Sequence[str] = (), texts: Sequence[str] = ()) -> str:
    """Remove keys, input texts and control characters from a provider's message.

    The message may quote a part of a key or text only, so every run of 12 characters or more that also occurs in a
    text is replaced, and every run of 8 or more of a key. Shorter keys and texts are replaced where they occur whole.

    Args:
        message: of the provider.
        secrets: keys and tokens.
        texts: the inputs of the request.
    """
    message = _printable(message)
    # Whole keys first: one that is shorter than the window is found only so.
    for secret in secrets:
        message = message.replace(secret, "[key]")
    message = _without_echo(message, "\n".join(secrets), _KEY_WINDOW, "[key]")
    for text in texts:
        if _MIN_TEXT <= len(text) < _TEXT_WINDOW:
            message = message.replace(_printable(text), "[text]")
    source = "\n".join(" ".join(_printable(text).split()) for text in texts if len(text) >= _TEXT_WINDOW)
    return _without_echo(message, source, _TEXT_WINDOW, "[text]")


def _printable(text: str) -> str:
    """Without control characters: they could manipulate a terminal or forge lines of a log."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


def _without_echo(message: str, source: str, window: int, mark: str) -> str:
    if not source:
        return message
    parts: list[str] = []
    position = 0
    while position < len(message):
        end = _echo_end(message, position, source, window)
        if end > position:
            parts.append(mark)
            position = end
        else:
            parts.append(message[position])
            position += 1
    return "".join(parts)


def _echo_end(message: str, start: int, source: str, window: int) -> int:
    """The end of the quotation that begins at ``start``; ``start`` if none begins there."""
    end = start + window
    if end > len(message) or message[start:end] not in source:
        return start
    while end < len(message) and message[start : end + 1] in source:
        end += 1
    return end
