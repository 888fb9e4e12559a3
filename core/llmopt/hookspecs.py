"""Everything a plugin can be asked: the one page that a plugin's author reads.

A plugin is a module with some of these functions, each marked with ``@llmopt.hookimpl``, and an
entry point in the group ``llmopt`` whose key is the provider's name. Hooks are pure: they take
frozen values, return values, do no I/O and never sleep.

Returning None means "do what the core would do", which is right for any server that speaks the
common (OpenAI-compatible) dialect. "Nothing" is a value of its own: ``BatchLimit()``, ``RateLimits()``, ``()``.
A hook may leave out the parameters it does not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pluggy

from llmopt.config.schema import ProviderEntry, TokenProvider
from llmopt.values.calls import BatchLimit, Call, ChatCall, EmbedCall, RateLimits, Settings
from llmopt.values.catalog import CatalogPage
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.http import Failure, HttpRequest, HttpResponse, Verdict
from llmopt.values.profile import Profile

if TYPE_CHECKING:
    import httpx


# The two pluggy markers of llmopt. Plugins take ``hookimpl`` from ``llmopt`` and never import pluggy.

PROJECT: Final = "llmopt"
"""Name of the pluggy project and of the entry-point group."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def provider_profile(entry: ProviderEntry) -> Profile | None:
    """What the provider is like: base URL, key variables, time-outs, pool, retries, usual rate limits.

    Asked once for each endpoint of an entry. ``entry`` is that endpoint as configured, so that a
    profile may depend on where the server is; ``entry.options`` are not checked yet.
    """


@hookspec(firstresult=True)
def batch_limit(call: EmbedCall, settings: Settings) -> BatchLimit | None:
    """The most that one request for ``call.model`` may hold. ``call.texts`` is empty here."""


@hookspec(firstresult=True)
def build_request(call: Call, settings: Settings) -> HttpRequest | None:
    """The request for a call: method, path, headers and JSON value.

    Asked for every attempt, with the settings of the endpoint chosen. The path is relative to
    ``settings.base_url`` or a URL of that same origin. A secret stands in a header, nowhere else.
    """


@hookspec(firstresult=True)
def parse_embeddings(
    call: EmbedCall, response: HttpResponse, settings: Settings
) -> EmbeddedRows | Failure | None:
    """The vectors of a 2xx answer, or the `Failure` that it carries."""


@hookspec(firstresult=True)
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure | None:
    """The models of a 2xx answer and the cursor of the next page, or the `Failure` that it carries."""


@hookspec(firstresult=True)
def parse_chat(call: ChatCall, response: HttpResponse, settings: Settings) -> ChatReply | Failure | None:
    """The reply of a 2xx answer that is not a stream, or the `Failure` that it carries.

    ``ChatReply.request_id`` is filled in by the core.
    """


@hookspec(firstresult=True)
def parse_stream_event(
    call: ChatCall, event: ServerEvent, settings: Settings
) -> tuple[ChatEvent, ...] | Failure | None:
    """What one event of a stream adds to the answer, or the `Failure` that it carries.

    ``()`` for an event with nothing in it, such as a ping. Asked for every event, in order; nothing is
    remembered from one to the next. Lines of newline-delimited JSON come as events of type "line".
    ``Failure.from_event(event, model=call.model)`` is the failure for an event that is an error.
    """


@hookspec(firstresult=True)
def classify_error(failure: Failure, settings: Settings) -> Verdict | None:
    """What a non-2xx answer, or a 2xx that carries an error, means.

    Asked once for each. None leaves it to the core, which judges by status and by the
    machine-readable codes that the common dialect uses.
    """


@hookspec(firstresult=True)
def rate_limits(response: HttpResponse, settings: Settings) -> RateLimits | None:
    """What the headers of an answer, good or bad, tell of the rate limits; ``RateLimits()`` for nothing."""


@hookspec(firstresult=True)
def limits_request(call: EmbedCall, settings: Settings) -> HttpRequest | None:
    """The request that asks a server for its limits; None where there is nothing to ask.

    Sent once for each endpoint and model, before the first batch. When it fails, `batch_limit` holds
    alone; the call never fails for it. ``call.texts`` is empty here.
    """


@hookspec(firstresult=True)
def parse_limits(call: EmbedCall, response: HttpResponse, settings: Settings) -> BatchLimit | None:
    """What the 2xx answer to `limits_request` tells; ``BatchLimit()`` for nothing.

    Of this, of `batch_limit` and of the user's ``max_batch_size`` the least number counts.
    """


@hookspec(firstresult=True)
def credential_provider(settings: Settings) -> TokenProvider | None:
    """A function that gives the key or token of each attempt; None for the configured key.

    For a way to sign in that the plugin brings, such as a cloud's identity library, and that the
    configuration asks for by an option of the plugin's own. Asked once for each endpoint. The hook
    itself does no I/O: it returns a function, sync or async, which the core calls for every
    attempt and never on the event loop's thread if it is sync. A missing library is a `ConfigError` here.
    """


@hookspec(firstresult=True)
def open_transport(settings: Settings) -> httpx.AsyncBaseTransport | None:
    """Another way out than the network pool: an engine inside the process, a signer, a Unix socket.

    Called once for each endpoint, when it is first used; the core closes what it gets.
    """
