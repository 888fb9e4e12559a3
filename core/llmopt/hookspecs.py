"""The hooks of a provider plugin: the one page that a plugin author reads.

A plugin is an importable module with some of the functions below, each marked with ``@llmopt.hookimpl``. It is
installed as an entry point in the group ``llmopt``; the key of the entry point is the provider's name::

    [project.entry-points.llmopt]
    acme = "llmopt_plugin_acme"

For a server that speaks the OpenAI-compatible dialect the whole plugin may be::

    from llmopt import Profile, hookimpl

    @hookimpl
    def provider_profile() -> Profile:
        return Profile(base_url="https://api.acme.example/v1", key_env=("ACME_API_KEY",))

Rules for every hook:

* Every hook is optional. Without an implementation, or when it returns None, the default in `llmopt.compatible`
  answers. To say "nothing" return an empty value instead: ``BatchLimit()``, ``RateLimits()``, ``()``.
* A hook may leave out parameters that it does not use. Their names are fixed, their order is not.
* Hooks are pure, synchronous functions: they take frozen values and return new ones. They do no I/O, except that a
  table in the plugin's package is read once, at first use (`llmopt.ModelTable`). They do not sleep, read no clock,
  and keep nothing between calls; several threads may call one hook at the same time. llmopt calls them on the event
  loop, and to parse a large response in a worker thread.
* Two hooks return an object that may do I/O and keep state: the function of ``credential_provider``, which llmopt
  calls when an attempt needs a token, and the transport of ``open_transport``, which it awaits. All calls share these
  objects.
* Secrets belong in request headers and nowhere else, because URLs and bodies may be logged.
* Import what is slow to import (numpy, httpx) inside the function that uses it.

The hooks are in four groups: for every provider, for embeddings, for chat, and rare ones. The four hooks
``provider_profile``, ``batch_limit``, ``build_request`` and ``classify_error`` are enough for most
providers. A misspelled hook, a hook without the marker, or a return value of another type is a
`PluginContractError` that names the plugin and the hook.

The functions below are declarations and do nothing; `llmopt.providers.hooks` calls the implementations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pluggy

from llmopt.config.schema import ProviderEntry, TokenProvider
from llmopt.values.calls import BatchLimit, Call, ChatCall, EmbedCall, RateLimits, RequestCost, Settings
from llmopt.values.catalog import CatalogPage
from llmopt.values.chat import ChatEvent, ChatReply, EventDecoder, ServerEvent, StreamStep
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.http import Failure, HttpRequest, HttpResponse, Verdict
from llmopt.values.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

PROJECT: Final = "llmopt"
"""Name of the pluggy project, and of the entry-point group of plugins."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""The marker for a plugin's hooks. Plugins import it from ``llmopt``, so that they do not depend on pluggy."""


# Every provider.


@hookspec(firstresult=True)
def provider_profile(entry: ProviderEntry) -> Profile | None:
    """Describe the provider: base URL, key variables, timeouts, retries, pool size, usual rate limits.

    Called once for each endpoint of a configured entry. User configuration overrides what it returns.

    Args:
        entry: the configuration of that endpoint, so that a profile may depend on ``entry.base_url``. The
            plugin's own keys in ``entry.options`` are not checked yet.

    Returns:
        The profile. None: a provider without any defaults, for which the user must configure ``base_url``.
    """


@hookspec(firstresult=True)
def build_request(call: Call, settings: Settings) -> HttpRequest | None:
    """Build the HTTP request for a call: method, path, headers and body.

    Called for every attempt, with the settings of the endpoint that was chosen for it, so that each retry
    carries a fresh credential.

    Args:
        call: an `EmbedCall`, a `CatalogCall` (list of models) or a `ChatCall`.
        settings: the endpoint. Send ``settings.headers`` and ``settings.auth_headers()``.

    Returns:
        The request. ``path`` is appended to ``settings.base_url``, or is a whole URL of the same origin.
        None: the OpenAI-compatible request. `llmopt.compatible.build_request` gives it too, to be changed.

    Raises:
        InvalidInput: the provider cannot do what the call asks for.
    """


@hookspec(firstresult=True)
def classify_error(failure: Failure, settings: Settings) -> Verdict | None:
    """Decide what an error response means, and thereby what llmopt does next.

    Called once for each response with an error status, and for each `Failure` that a parsing hook returned.
    Tell "too many requests" (``RATE_LIMITED``: wait and retry) from "no credit left" (``QUOTA_EXHAUSTED``:
    never retry); providers send 429 for both.

    Returns:
        The verdict. None: judge by the codes and words that hold for every provider, then by the status.
        `llmopt.compatible.classify` gives that verdict too, and takes a table of the provider's own rules.
    """


@hookspec(firstresult=True)
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure | None:
    """Read the models from a 2xx response to a `CatalogCall`, or from such a response in the cache.

    Of a response in the cache, cookies are missing, and ``settings`` have no credential.

    Returns:
        One page: the models, and ``next_cursor`` if there are more. An entry that cannot be read is left out
        and counted in ``dropped``. A `Failure` if the body holds an error. None: the OpenAI-compatible format.

    Raises:
        InvalidResponse: the body holds no list of models.
    """


@hookspec(firstresult=True)
def rate_limits(response: HttpResponse, settings: Settings) -> RateLimits | None:
    """Read rate limits from the headers of a response, whatever its status.

    Returns:
        The limits that the headers state; ``RateLimits()`` if there are none. None: read the usual
        ``x-ratelimit-*`` headers.
    """


# Embeddings.


@hookspec(firstresult=True)
def batch_limit(call: EmbedCall, settings: Settings) -> BatchLimit | None:
    """State how much one embeddings request for ``call.model`` may hold.

    Called before texts are split into batches, not for every request; ``call.texts`` is empty.

    Returns:
        The limits as the provider documents them, for example
        ``BatchLimit(max_items=64, max_item_tokens=8_192)``. A number that only is likely to be accepted is named
        in ``guesses``: the user's ``max_batch_size`` may exceed it. None: 32 texts in a request, as a guess.
    """


@hookspec(firstresult=True)
def parse_embeddings(
    call: EmbedCall, response: HttpResponse, settings: Settings
) -> EmbeddedRows | Failure | None:
    """Read the vectors from a 2xx response.

    Returns:
        `EmbeddedRows` with float32 vectors of shape (n, d). Give ``indices`` where the response has them; the
        core sorts the rows. A `Failure` (``Failure.from_response(response, model=call.model)``) if the body
        holds an error in spite of its status. None: the body has the OpenAI-compatible format.

    Raises:
        InvalidResponse: the body cannot be read.
    """


@hookspec(firstresult=True)
def limits_request(call: EmbedCall, settings: Settings) -> HttpRequest | None:
    """Build a request that asks the server for its limits, such as ``GET /info``.

    Called once for each endpoint and model, before the first batch; ``call.texts`` is empty. If the request
    fails, the limits of `batch_limit` hold; the user's call does not fail for it.

    Returns:
        The request. None: the server has nothing to ask.
    """


@hookspec(firstresult=True)
def parse_limits(call: EmbedCall, response: HttpResponse, settings: Settings) -> BatchLimit | None:
    """Read the limits from a 2xx response to `limits_request`.

    Returns:
        The limits; ``BatchLimit()`` if the response states none. Of these, of `batch_limit` and of the user's
        ``max_batch_size`` the smallest number counts, but ``max_batch_size`` replaces a guess. None: no limits.
    """


# Chat.


@hookspec(firstresult=True)
def parse_chat(call: ChatCall, response: HttpResponse, settings: Settings) -> ChatReply | Failure | None:
    """Read the reply from a 2xx response to a chat that is not streamed.

    Returns:
        The reply; the core sets ``ChatReply.request_id``. A `Failure` if the body holds an error. None: the
        OpenAI-compatible format.

    Raises:
        InvalidResponse: the body cannot be read. Do not drop text or tool calls that have a wrong type.
    """


@hookspec(firstresult=True)
def parse_stream_event(
    call: ChatCall, event: ServerEvent, settings: Settings, state: Any
) -> StreamStep | tuple[ChatEvent, ...] | Failure | None:
    """Read one event of a streamed chat.

    Called for every event in the order of the stream. The core has decoded server-sent events and
    newline-delimited JSON (then ``event.event == "line"``) and joins the fragments of tool calls by
    ``ToolCallPart.index``.

    Args:
        call: what was asked for.
        event: of the server.
        settings: the endpoint.
        state: for a plugin that has to know what earlier events of the same stream said: the ``state`` of the last
            `StreamStep` that it returned, None at first. Declare the parameter without a default.

    Returns:
        What the event adds to the reply; ``()`` for a ping, ``ChatEvent(unknown=...)`` for an event of a type
        that the plugin does not know. ``ChatEvent(last=True)`` for the provider's own end of the stream.
        ``StreamStep(events, state)`` to change the state: a new value of any type, never the old one changed. A tuple
        alone leaves it as it is, and a wrapper gets what the plugin returned.
        ``Failure.from_event(event, model=call.model)`` for an event that is an error. None:
        the OpenAI-compatible format.

    Raises:
        InvalidResponse: the event cannot be read.
    """


@hookspec(firstresult=True)
def decode_stream(content_type: str, settings: Settings) -> EventDecoder | None:
    """Return a decoder for a stream that is neither server-sent events nor newline-delimited JSON.

    Called for each streamed 2xx response, before its body is read. `parse_stream_event` gets the decoder's events.

    Args:
        content_type: of the response, as the server wrote it: it may have parameters and capitals. "" if it states none.
        settings: the endpoint.

    Returns:
        A new `EventDecoder`, which belongs to this stream alone and keeps its unfinished event; it has to limit its size. None:
        the core decodes the body.
    """


# Rare.


@hookspec(firstresult=True)
def request_cost(call: Call, settings: Settings) -> RequestCost | None:
    """Say what a request counts under the provider's rate limits, where that is not one request and its tokens.

    Called before each attempt, so it must be quick. Batches of texts are cut by it: it must depend on the number of texts
    and their lengths alone, and count several texts as no less than one of them.

    Returns:
        The cost. None: one request, and llmopt's estimate of its tokens.
    """


@hookspec(firstresult=True)
def credential_provider(settings: Settings) -> TokenProvider | None:
    """Return a function that gives the key or token of each attempt.

    For another way to sign in, such as a cloud's identity library, that the user chooses by one of the plugin's
    own configuration keys. Called once for each endpoint.

    Returns:
        A function without parameters, sync or async, that returns the token as text. The core calls a sync one
        in a worker thread, never on the event loop. None: the configured key.

    Raises:
        ConfigError: the library that it needs is not installed.
    """


@hookspec(firstresult=True)
def sign_request(request: HttpRequest, now: float, settings: Settings) -> Mapping[str, str] | None:
    """Sign a request as it is sent, for providers whose signature covers the body, such as AWS Signature Version 4.

    Called for every attempt, after the body was encoded and compressed, for a large body in a worker thread.

    Args:
        request: what is sent: the whole URL in ``path``, the body in ``content``, and all headers but those that the transport
            adds: host, content-length and, where they are missing, accept-encoding and user-agent.
        now: the time, in seconds since 1970.
        settings: the endpoint, with the credential of this attempt.

    Returns:
        Headers to add, in place of those of the same name. None: the request is sent as it is.
    """


@hookspec(firstresult=True)
def open_transport(settings: Settings) -> httpx.AsyncBaseTransport | None:
    """Open another transport than llmopt's connection pool: an in-process engine, a Unix socket.

    Called once for each endpoint, when it is first used. The core closes the transport with the client.

    Returns:
        The transport. None: the connection pool.
    """
