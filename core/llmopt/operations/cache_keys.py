"""Under which keys answers are kept: everything that could make an answer another one is in them.

A key is SHA-256 over canonical JSON of: the version of this form; whose credential it is; the provider and the
plugin that serves it, with its version; where the request goes; and its whole body, unknown fields
included, but for a few that say nothing of the answer. An allow-list of fields is how caches came to
give the wrong answer (litellm #894, #25673). Nothing of it can be had back from the key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from attrs import evolve

from llmopt.cache.store import SafeStore
from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.engine import Engine
from llmopt.providers.registry import Provider
from llmopt.values.calls import Call, CatalogCall, EmbedCall
from llmopt.values.catalog import MODELS_FORMAT
from llmopt.values.events import CacheEviction, CacheKind, CacheSized

if TYPE_CHECKING:
    from hashlib import _Hash
_VERSION: Final = 1
_NOT_OF_THE_ANSWER: Final = frozenset({"user", "metadata", "stream", "timeout"})
_ANY_TEXT: Final = ("x",)


class CacheKeys:
    """Makes keys.

    Args:
        secret: of this installation, or of this process alone.
        identity: what made a provider's requests and read its answers: its plugin, with version.
        endpoints: of a provider, in use.
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
        """Whether another process would find the same keys.

        It would not where a function gives the credential: whose it is cannot be told from outside.
        """
        return all(endpoint.config.credential.is_static for endpoint in self._endpoints(provider))

    def model_list(self, provider: Provider) -> bytes:
        """The key of a provider's list of models.

        Raises:
            LLMOptError: the plugin cannot say what the request would be.
        """
        return self._hash(provider, CatalogCall()).digest()

    def texts(self, provider: Provider, call: EmbedCall) -> TextKeys:
        """The keys of texts that are embedded in one way.

        Raises:
            LLMOptError: as above.
        """
        return TextKeys(self._hash(provider, evolve(call, texts=_ANY_TEXT)))

    def _hash(self, provider: Provider, call: Call) -> _Hash:
        endpoints = self._endpoints(provider)
        told = {
            "version": [_VERSION, MODELS_FORMAT],
            "namespace": self._namespace(endpoints),
            "provider": provider.name,
            "plugin": [provider.plugin, *self._identity(provider)],
            "operation": call.operation,
            "requests": [_request(endpoint, call) for endpoint in endpoints],
        }
        return hashlib.sha256(_canonical(told))

    def _namespace(self, endpoints: Sequence[LiveEndpoint]) -> str:
        # Headers and the plugin's own options may be secret too, and weak ones.
        told = [[self._credential(each), each.config.headers, each.config.options] for each in endpoints]
        return hmac.digest(self._secret, _canonical(told), "sha256").hex()

    def _credential(self, endpoint: LiveEndpoint) -> str:
        source = endpoint.config.credential
        if not source.is_static:
            return f"function {source.fingerprint()}"
        secret = None if source.problem else source.static_secret()
        return (
            "none" if secret is None else hmac.digest(self._secret, secret.reveal().encode(), "sha256").hex()
        )


class TextKeys:
    """The keys of texts. The hash of what they have in common is made once and copied.

    Args:
        common: of everything but the text.
    """

    def __init__(self, common: _Hash) -> None:
        self._common: Final = common

    def answering_model(self) -> bytes:
        """Where it is kept which model answers."""
        found = self._common.copy()
        found.update(b"answering")
        return found.digest()

    def for_texts(self, model: str, texts: Sequence[str]) -> list[bytes]:
        """The keys of texts as the model that answers embeds them."""
        common = self._common.copy()
        common.update(msgspec.json.encode(model))
        keys = []
        for text in texts:
            each = common.copy()
            each.update(text.encode())
            keys.append(each.digest())
        return keys


def _request(endpoint: LiveEndpoint, call: Call) -> list[Any]:
    request = endpoint.hooks.build_request(call, endpoint.settings_without_credential)
    body = request.json
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in _NOT_OF_THE_ANSWER}
    return [request.method, endpoint.config.base_url, request.path, body]


def _canonical(value: Any) -> bytes:
    # What is no JSON is told apart by its own words, which at worst differ from process to process.
    return msgspec.json.encode(value, order="sorted", enc_hook=repr)


# How full the stores are, told now and then to whoever listens.

_EVERY_S: Final = 10.0
"""Counting takes its time; nobody needs it more often."""


class StoreSizeReporter:
    """Looks at stores after something was put into them.

    Args:
        engine: its clock and its telemetry.
        stores: those in use.
    """

    def __init__(self, engine: Engine, stores: Callable[[], Iterable[SafeStore]]) -> None:
        self._telemetry: Final = engine.telemetry
        self._now: Final = engine.clock.now
        self._stores: Final = stores
        self._looked = float("-inf")
        self._evicted = 0

    async def stored(self, kind: CacheKind) -> None:
        """Something was put into one of them."""
        if not self._telemetry.enabled or self._now() < self._looked + _EVERY_S:
            return
        self._looked = self._now()
        sizes = [await store.size() for store in self._stores()]
        for size in sizes:
            self._telemetry.emit(
                CacheSized,
                provider="",
                cache=kind,
                items=size.entries,
                size=size.bytes,
                max_size=size.max_bytes,
            )
        evicted = sum(size.evicted for size in sizes)
        if evicted > self._evicted:
            gone, self._evicted = evicted - self._evicted, evicted
            self._telemetry.emit(CacheEviction, provider="", cache=kind, items=gone)
