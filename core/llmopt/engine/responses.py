"""What an answer comes to: a value, or the one exception that its verdict is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from llmopt.errors import (
    AuthError,
    BadRequest,
    ContentFiltered,
    InvalidResponse,
    ItemRejected,
    ItemTooLong,
    LLMOptError,
    ProviderError,
    RequestTooLarge,
    ServerError,
    UnexpectedStatus,
)
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import Call, CatalogCall, ChatCall, EmbedCall, Settings
from llmopt.values.http import EXCEPTION_OF, Failure, HttpResponse, Verdict, VerdictKind

# A provider's sentence, made fit for an error: no key, no input text, no control characters.

_TEXT_WINDOW: Final = 12
_KEY_WINDOW: Final = 8
_MIN_TEXT: Final = 5


def redact(message: str, *, secrets: Sequence[str] = (), texts: Sequence[str] = ()) -> str:
    """Take out what a message must not repeat.

    A stretch of 12 or more characters that also stands in one of the texts is replaced, and one of 8 or
    more of a key, since a message may have been cut in the middle of either; what is shorter is replaced
    where it stands whole.

    Args:
        message: the provider's sentence.
        secrets: keys and tokens.
        texts: the inputs of the request.
    """
    message = _printable(message)
    for secret in secrets:
        message = message.replace(secret, "[key]")
    message = _without_echo(message, "\n".join(secrets), _KEY_WINDOW, "[key]")
    for text in texts:
        if _MIN_TEXT <= len(text) < _TEXT_WINDOW:
            message = message.replace(_printable(text), "[text]")
    source = "\n".join(" ".join(_printable(text).split()) for text in texts if len(text) >= _TEXT_WINDOW)
    return _without_echo(message, source, _TEXT_WINDOW, "[text]")


def _printable(text: str) -> str:
    """Without control characters, with which one could steer a terminal or a log file."""
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
    """Where the echo that begins at ``start`` ends; ``start`` itself when none begins there."""
    end = start + window
    if end > len(message) or message[start:end] not in source:
        return start
    while end < len(message) and message[start : end + 1] in source:
        end += 1
    return end


T = TypeVar("T")
Parse = Callable[[HttpResponse, Settings], T | Failure]
"""Reads a 2xx answer: the value, or the failure that it carries."""
_REQUEST_ID: Final = ("x-request-id", "request-id", "apim-request-id", "x-ms-request-id", "cf-ray")
_ID_PATTERN: Final = re.compile(r"[!-~]{1,128}\Z")
_MAX_CODE: Final = 128
_MAX_MESSAGE: Final = 500
_SECRET_HEADER: Final = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's own id of a request, None when it sends none, or a sentence in its place."""
    for name in _REQUEST_ID:
        if name in headers:
            return headers[name] if _ID_PATTERN.match(headers[name]) else None
    return None


def parse_or_raise(
    hooks: ProviderHooks, call: Call, response: HttpResponse, settings: Settings, parse: Parse[T]
) -> T:
    """The value of an answer.

    Raises:
        ProviderError: the answer is an error, by the plugin's verdict.
        InvalidResponse: the answer is a success that cannot be used.
    """
    if 200 <= response.status < 300 or _is_not_modified(call, response):
        result = parse(response, settings)
        if not isinstance(result, Failure):
            return result
        failure = result
    else:
        failure = Failure.from_response(response, operation=call.operation, model=call.model)
        if (error := _redirect(failure, call, settings)) is not None:
            raise error
    raise error_from_verdict(hooks.classify_error(failure, settings), failure, call, settings)


def _is_not_modified(call: Call, response: HttpResponse) -> bool:
    """Whether the answer says that what the caller has is what there is; the operation asked for that."""
    return response.status == 304 and isinstance(call, CatalogCall) and call.etag is not None


def _redirect(failure: Failure, call: Call, settings: Settings) -> LLMOptError | None:
    if not 300 <= failure.status < 400:
        return None
    # Without what may repeat the query.
    target = _redacted(failure.headers.get("location", "elsewhere").split("?")[0], call, settings)
    return UnexpectedStatus(
        f"the server redirects to {target[:120]} (HTTP {failure.status}); redirects are never followed: "
        "set base_url to the address that answers.",
        status=failure.status,
        sent="yes",
    )


def error_from_verdict(verdict: Verdict, failure: Failure, call: Call, settings: Settings) -> LLMOptError:
    """The exception that a verdict is, with a message fit to be shown."""
    message = _redacted(verdict.message or failure.error.message, call, settings)
    code, param = _redacted_code(verdict.code, call, settings), _redacted_code(verdict.param, call, settings)
    message = _sentence(message, code, verdict, failure, settings)
    kind = EXCEPTION_OF[verdict.kind]
    if issubclass(kind, InvalidResponse):
        return InvalidResponse(message, reason="error", status=failure.status, sent="yes")
    error: ProviderError = kind(message)
    if isinstance(error, (RequestTooLarge, ItemTooLong)):
        error.limit = verdict.limit
    error.status = failure.status
    error.code = code
    error.param = param
    error.item = verdict.item
    error.retry_after = verdict.retry_after
    error.sent = "yes"
    return error


def input_texts(call: Call) -> Sequence[str]:
    """What the user wrote in a call, which no message may repeat."""
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
    """A provider's words, fit to be shown: what they repeat of the request is taken out."""
    secrets = [value for name, value in settings.headers.items() if _SECRET_HEADER.search(name)]
    if settings.credential is not None:
        secrets.append(settings.credential.reveal())
    return redact(message[:_MAX_MESSAGE], secrets=secrets, texts=input_texts(call))


def _redacted_code(code: str | None, call: Call, settings: Settings) -> str | None:
    return None if code is None else _redacted(code, call, settings)[:_MAX_CODE]


def _sentence(message: str, named: str | None, verdict: Verdict, failure: Failure, settings: Settings) -> str:
    if not settings.base_url:
        # Inside the process there is no HTTP to speak of.
        return message or "the engine refused"
    code = f", {named}" if named and named != str(failure.status) else ""
    hint = verdict.hint or _hint(verdict.kind, settings)
    return f"{message or 'no message'} (HTTP {failure.status}{code}){f'; {hint}' if hint else ''}"


def _hint(kind: VerdictKind, settings: Settings) -> str:
    if EXCEPTION_OF[kind] is AuthError and settings.credential is None:
        return f"no key was sent: give providers.{settings.provider} its api_key or api_key_env"
    return ""


_ITEM_REASONS: Final = frozenset({"count", "index", "non_finite", "type", "dimensions", "base64"})
"""Reasons of `InvalidResponse` that one text in the batch can bring about."""


def may_be_item_error(error: LLMOptError) -> bool:
    """Whether an error may be the fault of one text alone, so that finding that text helps.

    A 400 or 422 that names a parameter is the whole request's. A 500, of all server errors, is what
    some servers answer to a text that they cannot compute.
    """
    if isinstance(error, InvalidResponse):
        return error.reason in _ITEM_REASONS
    if isinstance(error, (ItemTooLong, ItemRejected, ContentFiltered)):
        return True
    if isinstance(error, BadRequest):
        return error.status in (400, 422) and error.param is None
    return isinstance(error, ServerError) and error.status == 500
