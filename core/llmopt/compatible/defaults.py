"""The built-in plugin: the implementations of hooks that a provider's plugin leaves out.

The OpenAI-compatible dialect's own functions are the implementations wherever their parameters are the hook's. All
are marked ``trylast``, so that any implementation of a plugin goes first. The hooks that are answered with None where a
plugin has none are not here.

No I/O and no clock; `rate_limits` takes the time of arrival from the response. The hooks keep nothing. The only state
is that of `OptionalKeys`: the engine makes one for each endpoint, and all calls to the endpoint share it as long as
the client lives. Event loops in several threads may change it at the same time, without a lock: the change of one may
overwrite that of another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import quote

from attrs import evolve

from llmopt.compatible import models
from llmopt.compatible.chat import SAME_NAMES, chat_body, parse_chat, parse_stream_event
from llmopt.compatible.embeddings import embed_body, parse_embeddings
from llmopt.compatible.errors import classify
from llmopt.compatible.rate_limits import parse_rate_limits
from llmopt.errors import BadRequest, ProviderError, ServerError
from llmopt.hookspecs import hookimpl
from llmopt.values.calls import BatchLimit, Call, CatalogCall, EmbedCall, RateLimits, Settings
from llmopt.values.catalog import CatalogPage
from llmopt.values.http import Failure, HttpRequest, HttpResponse
from llmopt.values.profile import Profile

__all__ = [
    "batch_limit",
    "build_request",
    "classify",
    "parse_catalog",
    "parse_chat",
    "parse_embeddings",
    "parse_limits",
    "parse_stream_event",
    "provider_profile",
    "rate_limits",
]

DEFAULT_MAX_ITEMS: Final = 32
"""Texts per request when nothing is known about the server; every tested server accepts this number."""


@hookimpl(trylast=True)
def build_request(
    call: Call,
    settings: Settings,
    *,
    encoding_format: str | None = None,
    chat_names: Mapping[str, str | None] = SAME_NAMES,
) -> HttpRequest:
    """Build the request for any call.

    Args:
        call: what is asked for.
        settings: the endpoint's.
        encoding_format: "base64" or "float" for embeddings. None leaves the key out, which is safe for servers
            that might refuse or ignore it.
        chat_names: the provider's names of chat parameters, see `chat_body`.

    Raises:
        InvalidInput: a chat has a parameter that the provider lacks.
    """
    headers = {**settings.headers, **settings.auth_headers()}
    if isinstance(call, EmbedCall):
        body = embed_body(call, encoding_format=encoding_format)
        return HttpRequest(method="POST", path="/embeddings", headers=headers, json=body)
    if isinstance(call, CatalogCall):
        # Quoted, because a cursor is the server's text and could add parameters.
        path = "/models" if call.cursor is None else f"/models?after={quote(call.cursor, safe='')}"
        return HttpRequest(method="GET", path=path, headers=headers)
    return HttpRequest(
        method="POST", path="/chat/completions", headers=headers, json=chat_body(call, chat_names)
    )


@hookimpl(trylast=True)
def provider_profile() -> Profile:
    """A provider without defaults: the user configures its base URL."""
    return Profile()


@hookimpl(trylast=True)
def batch_limit() -> BatchLimit:
    """A batch that every server accepts."""
    return BatchLimit(max_items=DEFAULT_MAX_ITEMS, guesses=("max_items",))


@hookimpl(trylast=True)
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """The list of models, each named after the provider entry."""
    return models.parse_catalog(response, settings.provider)


@hookimpl(trylast=True)
def rate_limits(response: HttpResponse) -> RateLimits:
    """The usual ``x-ratelimit-*`` headers."""
    return parse_rate_limits(response.headers, response.received)


@hookimpl(trylast=True)
def parse_limits() -> BatchLimit:
    """No limits."""
    return BatchLimit()


# Keys that a server may refuse although a call does not depend on them. llmopt sends ``stream_options`` for the usage of
# a stream, ``encoding_format`` for short responses, and some plugins send the newer name of ``max_tokens``; older
# servers, and those that allow no unknown key, answer 400 or 422.

_SUBSTITUTES: Final[Mapping[str, str | None]] = {
    "stream_options": None,
    "encoding_format": None,
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_completion_tokens",
}
"""Each key with the one that replaces it, None where it is left out."""
_VALUE_NAMES: Final[Mapping[str, str]] = {"encoding_format": "base64"}
"""The value that a refusal may name in place of a key: vLLM once said "base64 encoding is not currently supported"."""
_REFUSED: Final = re.compile(
    r"unrecogni[sz]ed|unknown|unsupported|unexpected|extra (?:inputs|fields)|additional propert|no such"
    r"|not (?:\w+ ){0,2}(?:supported|permitted|allowed|recogni[sz]ed|accepted|valid|exist)|does(?: not|n't) support"
    r"|use '?`?max_(?:completion_)?tokens|instead",
    re.IGNORECASE,
)
"""Words for a key that a server does not know, in contrast to a value that is too high."""
_VALUE: Final = re.compile(
    r"\b(?:less|greater|larger|smaller|higher|lower) than\b|\bat (?:most|least)\b|\btoo (?:large|small|high|low|many)\b"
    r"|\b(?:maximum|minimum|range|exceeds?)\b",
    re.IGNORECASE,
)


_A_KEY: Final = re.compile(
    r"\b(?:param(?:eter)?s?|arguments?|fields?|propert(?:y|ies)|keys?)\b", re.IGNORECASE
)
"""Words of a refusal that is about some key."""
_KEY: Final = re.compile(rb'"([a-z_]{4,40})":')


def refused_keys(message: str, param: str | None, body: bytes, extra: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a request that its refusal is about, and that the request can do without.

    Args:
        message: what the server says.
        param: the parameter that it names, or None.
        body: the JSON that was sent.
        extra: keys of the caller's own, which are never left out.
    """
    return tuple(
        key
        for key, substitute in _SUBSTITUTES.items()
        # In a text the quotes would be escaped.
        if b'"%b":' % key.encode() in body
        and key not in extra
        and _is_refused(key, substitute, message, param)
    )


def _is_refused(key: str, substitute: str | None, message: str, param: str | None) -> bool:
    refused = bool(_REFUSED.search(message)) and not _VALUE.search(message)
    if any(_names(key, text) for text in (param or "", message)):
        # A request does without a key that has no substitute, whatever was wrong with its value.
        return refused or substitute is None
    return refused and key in _VALUE_NAMES and _names(_VALUE_NAMES[key], message)


def _names(word: str, text: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9_]){word}(?![A-Za-z0-9_])", text) is not None


def without_keys(body: Mapping[str, Any], keys: Collection[str]) -> Mapping[str, Any]:
    """The body without refused keys, or with the other name for them unless that is refused as well."""
    changed = dict(body)
    for key in keys:
        substitute = _SUBSTITUTES[key]
        if key in changed and substitute not in keys:
            value = changed.pop(key)
            if substitute is not None:
                changed.setdefault(substitute, value)
    return changed


class OptionalKeys:
    """Which optional keys of request bodies one endpoint has refused; see `refused_keys`.

    Attributes:
        any_refused: whether there are any. It is looked at for every request.
        trial: an error without any name, after which ``stream_options`` is left out for a try; None after a success.
    """

    def __init__(self) -> None:
        self.any_refused = False
        self.trial: str | None = None
        self._may_try = True
        self._of_endpoint: frozenset[str] = frozenset()
        self._of_model: Final[dict[str, frozenset[str]]] = {}

    def learn(self, error: ProviderError, body: bytes, call: Call) -> tuple[str, ...]:
        """The keys that an error refuses, and that were not known to be refused: without them a retry may succeed."""
        if not isinstance(error, (BadRequest, ServerError)) or isinstance(call, CatalogCall):
            return ()
        if error.message == self.trial:
            # The same words without the key: it was not the cause.
            self.trial = None
            self._of_endpoint -= {"stream_options"}
            return ()
        keys = refused_keys(error.message, error.param, body, call.extra) or self._tried_key(error, body)
        new = tuple(key for key in keys if key not in self._known(call.model))
        if new:
            self.any_refused = True
            # Models that reason refuse the old name of this key, where others know no other.
            of_model = {"max_tokens"}.intersection(new)
            self._of_endpoint = self._of_endpoint.union(new) - of_model
            self._of_model[call.model] = self._of_model.get(call.model, frozenset()) | of_model
        return new

    def _tried_key(self, error: ProviderError, body: bytes) -> tuple[str, ...]:
        """The key of a stream that a server may refuse without its name, as with "Param Incorrect"; once an endpoint."""
        names = (key.decode() for key in _KEY.findall(body))
        unnamed = isinstance(error, BadRequest) and error.param is None and _A_KEY.search(error.message)
        if (
            not self._may_try
            or not unnamed
            or b'"stream_options":{"include_usage":true}' not in body
            or any(_names(name, error.message) for name in names)
        ):
            return ()
        self._may_try, self.trial = False, error.message
        return ("stream_options",)

    def remove_from(self, request: HttpRequest, call: Call) -> HttpRequest:
        """The request without the keys that the endpoint refused."""
        if isinstance(call, CatalogCall) or not isinstance(request.json, Mapping):
            return request
        # What the caller gave in ``extra`` is sent as it is.
        return evolve(request, json=without_keys(request.json, self._known(call.model) - call.extra.keys()))

    def _known(self, model: str) -> frozenset[str]:
        return self._of_endpoint | self._of_model.get(model, frozenset())
