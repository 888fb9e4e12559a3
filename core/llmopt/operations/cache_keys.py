"""Cache keys: hashes of everything that can change the response to a request; and the report of the cache's size.

A key is the SHA-256 of canonical JSON with: the version of this scheme; a keyed hash of the credential; the provider, its
plugin and the plugin's version; the URL; the headers of the call; and the whole request body, including fields that llmopt does not know. Only a
few body fields that cannot change the response are left out. (A list of fields to include is how other caches returned
wrong responses: litellm issues #894 and #25673.) No part of the request can be recovered from a key.

Keys are made without awaiting; they call the plugin's hook `build_request`, but no token provider. The first key of a
provider may read disk on the caller's loop: versions of distributions (`Registry.identity`), and the certificate files
of endpoints that are not yet in use. The secret is passed in; a token provider counts by a fingerprint that is random
per process. The report of the size awaits the cache stores, the user's among them, at most every 10 seconds by the
monotonic clock of the engine, and emits events to the user's listener; all calls of a client share one
`StoreSizeReporter` without a lock, so that loops in two threads may both report.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from attrs import evolve

from llmopt.cache.store import SafeStore
from llmopt.config.resolve import Endpoint
from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.engine import Engine
from llmopt.providers.registry import Provider
from llmopt.values.calls import Call, CatalogCall, EmbedCall
from llmopt.values.events import CacheEviction, CacheKind, CacheSized
from llmopt.values.secret import plain_text

if TYPE_CHECKING:
    from hashlib import _Hash

# Raised when the meaning of a key changes: old entries are then never found, and expire.
_VERSION: Final = 1
_IGNORED_FIELDS: Final = frozenset({"user", "metadata", "stream", "timeout"})
"""Fields of a request body that do not change the response."""
_TRACE_HEADERS: Final = frozenset(
    {"traceparent", "tracestate", "baggage", "b3", "x-request-id", "x-correlation-id", "x-client-request-id"}
)
"""W3C Trace Context, W3C Baggage, B3, and ids of requests: they name a call and do not change its response."""
_PLACEHOLDER_TEXTS: Final = ("x",)
"""In place of the real texts, because some plugins cannot build a request without texts."""


def headers_of_result(headers: Mapping[str, str]) -> dict[str, str]:
    """Of the headers of a call those that may change its response: calls that differ in them share no result."""
    return {name: str(headers[name]) for name in sorted(headers) if name not in _TRACE_HEADERS}


class CacheKeys:
    """Makes cache keys.

    Args:
        secret: of this installation, or of this process only; the keyed hashes of credentials use it.
        identity: gives the names and versions of the distributions that build a provider's requests.
        endpoints: gives the endpoints of a provider.
    """

    def __init__(
        self,
        secret: bytes,
        identity: Callable[[Provider], Sequence[str]],
        endpoints: Callable[[Provider], Sequence[LiveEndpoint]],
    ) -> None:
        self._secret: Final = secret
        self._identity: Final = identity
        self._endpoints: Final = endpoints

    def stable(self, provider: Provider) -> bool:
        """Whether another process with the same configuration makes the same keys.

        It does not if a function supplies the credential: then it is unknown whose credential it is.
        """
        return all(endpoint.config.credential.is_static for endpoint in self._endpoints(provider))

    def model_list(self, provider: Provider) -> bytes:
        """The key of a provider's list of models.

        Raises:
            LLMOptError: the plugin cannot build the request.
        """
        return self._hash(provider, CatalogCall()).digest()

    def learned_rates(self, provider: Provider, model: str) -> bytes:
        """The key of what was learned of the rate limits of a model, which are those of the credentials."""
        endpoints = self._endpoints(provider)
        origins = [endpoint.config.origin for endpoint in endpoints]
        content = ["learned rates", _VERSION, self._namespace(endpoints), provider.name, origins, model]
        return hashlib.sha256(_canonical_json(content)).digest()

    def texts(self, provider: Provider, call: EmbedCall) -> TextKeys:
        """The keys of texts that are embedded with the same options.

        Raises:
            LLMOptError: the plugin cannot build the request.
        """
        return TextKeys(self._hash(provider, evolve(call, texts=_PLACEHOLDER_TEXTS)))

    def _hash(self, provider: Provider, call: Call) -> _Hash:
        endpoints = self._endpoints(provider)
        content = {
            "version": [_VERSION, 1],
            "namespace": self._namespace(endpoints),
            "provider": provider.name,
            # A new version of a plugin may read the same response differently.
            "plugin": [provider.plugin, *self._identity(provider)],
            "operation": call.operation,
            # All endpoints, because any of them may have answered.
            "requests": [_request(endpoint, call) for endpoint in endpoints],
        }
        if headers := headers_of_result(call.headers):
            content["headers"] = self._keyed(headers)
        return hashlib.sha256(_canonical_json(content))

    def _namespace(self, endpoints: Sequence[LiveEndpoint]) -> str:
        # Headers and the plugin's options may contain secrets too, and short ones: an unkeyed hash could be guessed.
        content = [
            [self._credential(each), each.config.headers, each.config.options, *_more_identity(each.config)]
            for each in endpoints
        ]
        return self._keyed(content)

    def _keyed(self, content: Any) -> str:
        return hmac.digest(self._secret, _canonical_json(content), "sha256").hex()

    def _credential(self, endpoint: LiveEndpoint) -> str:
        source = endpoint.config.credential
        if not source.is_static:
            return f"function {source.fingerprint()}"
        secret = None if source.problem else source.static_secret()
        return (
            "none" if secret is None else hmac.digest(self._secret, secret.reveal().encode(), "sha256").hex()
        )


class TextKeys:
    """The keys of texts that are embedded with the same options.

    Args:
        common: the hash of everything but the text; it is computed once and copied for each text.
    """

    def __init__(self, common: _Hash) -> None:
        self._common: Final = common

    def answering_model(self) -> bytes:
        """The key of the record that says which model answers these requests."""
        digest = self._common.copy()
        digest.update(b"answering")
        return digest.digest()

    def for_texts(self, model: str, texts: Sequence[str]) -> list[bytes]:
        """The keys of texts.

        Args:
            model: the model that answers, which a provider may change behind a name.
            texts: one key is returned for each, in order.
        """
        common = self._common.copy()
        common.update(msgspec.json.encode(model))
        keys = []
        for text in texts:
            digest = common.copy()
            digest.update(text.encode())
            keys.append(digest.digest())
        return keys


def _more_identity(config: Endpoint) -> list[Any]:
    """What else tells the users of one address apart. Nothing where it is not configured, so that old keys remain valid."""
    return [config.query, config.client_cert] if config.query or config.client_cert else []


def _request(endpoint: LiveEndpoint, call: Call) -> list[Any]:
    # Without the credential: a token that is renewed every hour must not change the key.
    request = endpoint.hooks.build_request(call, endpoint.settings_without_credential)
    body = request.json
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in _IGNORED_FIELDS}
    # Nothing where the body is JSON, so that old keys remain valid.
    other = [request.content_type, request.content, *request.form] if request.content or request.form else []
    return [request.method, endpoint.config.base_url, request.path, body, *other]


def _canonical_json(value: Any) -> bytes:
    # A value that JSON cannot express counts by its repr. At worst that differs between processes, and the cache misses.
    return msgspec.json.encode(
        value, order="sorted", enc_hook=lambda each: plain_text(each) if isinstance(each, str) else repr(each)
    )


_REPORT_INTERVAL_S: Final = 10.0
"""Counting entries takes time, so the size is reported at most this often."""


class StoreSizeReporter:
    """Emits the size of the stores, and the number of evicted entries, after something was stored.

    Args:
        engine: its clock and telemetry.
        stores: gives the stores in use.
    """

    def __init__(self, engine: Engine, stores: Callable[[], Iterable[SafeStore]]) -> None:
        self._telemetry: Final = engine.telemetry
        self._now: Final = engine.clock.now
        self._stores: Final = stores
        self._reported_at = float("-inf")
        self._evicted = 0

    async def stored(self, kind: CacheKind) -> None:
        """Report the sizes, if there is a listener and the last report is not recent."""
        if not self._telemetry.wants(CacheSized) or self._now() < self._reported_at + _REPORT_INTERVAL_S:
            return
        self._reported_at = self._now()
        sizes = [await store.size() for store in self._stores()]
        for size in sizes:
            self._telemetry.emit(
                CacheSized,
                cache=kind,
                items=size.entries,
                size=size.bytes,
                max_size=size.max_bytes,
            )
        evicted = sum(size.evicted for size in sizes)
        if evicted > self._evicted:
            items, self._evicted = evicted - self._evicted, evicted
            self._telemetry.emit(CacheEviction, cache=kind, items=items)
