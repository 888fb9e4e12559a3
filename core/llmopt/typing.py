"""`Plugin`: the hooks as a Protocol, so that a type checker compares a plugin with them.

For plugins that are classes. Subclass it and mark the hooks as ever; those that are left out keep their defaults::

    from llmopt import BatchLimit, EmbedCall, Settings, hookimpl
    from llmopt.typing import Plugin

    class Acme(Plugin):
        @hookimpl
        def batch_limit(self, call: EmbedCall, settings: Settings) -> BatchLimit:
            return BatchLimit(max_items=64)

A type checker then refuses a hook with a parameter or a result of another type; with ``typing.override`` above it, also
one whose name is misspelt. It wants all parameters of a hook to be named, which llmopt itself does not.

At runtime the class has no members, because llmopt refuses a function that is called like a hook and is not marked.
Nothing is imported but the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import httpx

    from llmopt.config.schema import ProviderEntry, TokenProvider
    from llmopt.values.calls import BatchLimit, Call, ChatCall, EmbedCall, RateLimits, RequestCost, Settings
    from llmopt.values.catalog import CatalogPage
    from llmopt.values.chat import ChatEvent, ChatReply, EventDecoder, ServerEvent, StreamStep
    from llmopt.values.embeddings import EmbeddedRows
    from llmopt.values.http import Failure, HttpRequest, HttpResponse, Verdict
    from llmopt.values.profile import Profile


class Plugin(Protocol):
    """The hooks of a provider plugin; `llmopt.hookspecs` says what each is for."""

    # Bodies, because type checkers take a method without one for abstract.
    # ruff: noqa: D102, ARG002 - they are documented there, and do nothing.
    if TYPE_CHECKING:

        def provider_profile(self, entry: ProviderEntry) -> Profile | None:
            return None

        def batch_limit(self, call: EmbedCall, settings: Settings) -> BatchLimit | None:
            return None

        def build_request(self, call: Call, settings: Settings) -> HttpRequest | None:
            return None

        def parse_embeddings(
            self, call: EmbedCall, response: HttpResponse, settings: Settings
        ) -> EmbeddedRows | Failure | None:
            return None

        def parse_catalog(self, response: HttpResponse, settings: Settings) -> CatalogPage | Failure | None:
            return None

        def parse_chat(
            self, call: ChatCall, response: HttpResponse, settings: Settings
        ) -> ChatReply | Failure | None:
            return None

        def parse_stream_event(
            self, call: ChatCall, event: ServerEvent, settings: Settings, state: Any
        ) -> StreamStep | tuple[ChatEvent, ...] | Failure | None:
            return None

        def decode_stream(self, content_type: str, settings: Settings) -> EventDecoder | None:
            return None

        def classify_error(self, failure: Failure, settings: Settings) -> Verdict | None:
            return None

        def rate_limits(self, response: HttpResponse, settings: Settings) -> RateLimits | None:
            return None

        def request_cost(self, call: Call, settings: Settings) -> RequestCost | None:
            return None

        def sign_request(
            self, request: HttpRequest, now: float, settings: Settings
        ) -> Mapping[str, str] | None:
            return None

        def limits_request(self, call: EmbedCall, settings: Settings) -> HttpRequest | None:
            return None

        def parse_limits(
            self, call: EmbedCall, response: HttpResponse, settings: Settings
        ) -> BatchLimit | None:
            return None

        def credential_provider(self, settings: Settings) -> TokenProvider | None:
            return None

        def open_transport(self, settings: Settings) -> httpx.AsyncBaseTransport | None:
            return None
