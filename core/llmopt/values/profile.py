"""The built-in defaults of a provider, which its plugin declares and configuration may override.

Pure: no I/O, no clock, no state. It names environment variables but reads none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import field, frozen
from attrs.converters import optional

if TYPE_CHECKING:
    from llmopt.values.catalog import Model

StreamEnd = Literal["done", "finish", "any"]
"""What completes a stream, see `Profile`."""
# Far above an image or a minute of sound as base64 in one event; it bounds what a broken server can make the client allocate.
MAX_EVENT_BYTES: Final = 64 << 20
"""Default maximum size of one event of a stream in bytes."""


@frozen(kw_only=True)
class Timeouts:
    """Timeouts in seconds.

    Attributes:
        connect: DNS lookup, TCP and TLS handshake together.
        read: an attempt with one text, from sending to the last byte of the response.
        read_large: an attempt with a full batch.
        catalog: an attempt to list models.
        chat: an attempt at a chat that is not streamed.
        first_event: a streamed request, from sending to the first event.
        idle: the time between two chunks of a stream, whatever they contain.
        idle_content: the time between two events of a stream that add to the reply; comments and pings do not count.
        pool: waiting for a connection of the pool. llmopt limits its concurrency, so this rarely passes.
        total: a whole call with all its attempts; None for unlimited.
        first: the first request to an engine that may have to load its model; None for the same as the others.
        configured: names of the timeouts that the user has set. A plugin leaves it empty: nothing extends these.
    """

    connect: float = 10.0
    read: float = 60.0
    read_large: float = 120.0
    catalog: float = 15.0
    chat: float = 600.0
    first_event: float = 60.0
    idle: float = 60.0
    idle_content: float = 120.0
    pool: float = 5.0
    total: float | None = None
    first: float | None = None
    configured: frozenset[str] = frozenset()


@frozen(kw_only=True)
class Option:
    """A configuration key that a plugin adds to its provider entries.

    Attributes:
        name: the key.
        type: the type of the value.
        env: environment variables that set it; the first one that is set wins.
        help: one line for ``llmopt doctor``, and for the error about a wrong value.
        choices: the allowed values, empty for any.
    """

    name: str
    type: type = str
    env: tuple[str, ...] = ()
    help: str = ""
    choices: tuple[Any, ...] = ()


def _operations(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise TypeError(f"operations is a set of names, not one str; write {{{names!r}}}.")
    return frozenset(names)


@frozen(kw_only=True)
class Profile:
    """The built-in defaults of a provider. Configuration may override every value.

    Attributes:
        base_url: URL of the provider, None if only the user knows it. A placeholder such as ``{account}`` stands for
            the value of one of ``options``.
        base_url_env: environment variables with another base URL.
        key_env: environment variables with the key; the first one that is set wins.
        key_required: whether the provider refuses requests without a key.
        auth: "bearer" for ``Authorization: Bearer``, "none", or the name of a header.
        own_hosts: host names (``*.`` for all subdomains) to which a key from the environment may be sent, in addition
            to the host of ``base_url``.
        headers: sent with every request.
        timeouts: see `Timeouts`.
        max_retries: number of retries after the first attempt.
        retry_delay: delay before the first retry in seconds.
        pool_size: maximum number of connections to one endpoint.
        max_concurrency: maximum number of concurrent requests to one endpoint.
        keepalive: seconds until an idle connection is closed.
        rpm: usual rate limit in requests per minute, None for unlimited.
        tpm: usual rate limit in tokens per minute, None for unlimited.
        compress_requests: whether gzip request bodies are known to be accepted.
        stream_usage: whether to request the token usage of a stream (``ChatCall.include_usage``); False if the
            provider sends it anyway, or refuses the request for it.
        max_event_bytes: maximum size of one event of a stream, or of one of its lines.
        stream_end: what completes a stream. "done": a finish reason, and then the provider's own end
            (``ChatEvent.last``). "finish": a finish reason, and then that end or the end of the body. "any": also the
            provider's own end without a finish reason, if there was content. It holds for ``base_url`` and
            ``own_hosts``; a server at any other address gets "any", because nothing is known about it.
        options: configuration keys of the plugin.
        discovered: whether ``batch_list_models()`` without names includes the provider once its key is in the
            environment; False if that variable is used for other purposes too.
        reads_base_url: whether the plugin itself reads the path of ``base_url``, which may then end in the path of an
            operation; False: such a URL is refused, because llmopt adds that path.
        in_process: whether ``open_transport`` answers without a network, so that no key and no URL is needed.
        operations: which of "embeddings", "chat" and "catalog" (the list of models) the provider has; None: not told. Calls of
            the others are refused before a request, with a sentence that names these. Other names are for later versions.
        models: what the plugin knows of the provider's models, where ``operations`` leaves out "catalog"; it is then
            the list. `llmopt.ModelTable.models` makes them.
    """

    base_url: str | None = None
    base_url_env: tuple[str, ...] = ()
    key_env: tuple[str, ...] = ()
    key_required: bool = True
    auth: str = "bearer"
    own_hosts: tuple[str, ...] = ()
    headers: dict[str, str] = field(factory=dict)
    timeouts: Timeouts = Timeouts()
    max_retries: int = 2
    retry_delay: float = 1.0
    pool_size: int = 64
    max_concurrency: int = 16
    keepalive: float = 60.0
    rpm: float | None = None
    tpm: float | None = None
    compress_requests: bool = False
    stream_usage: bool = True
    max_event_bytes: int = MAX_EVENT_BYTES
    stream_end: StreamEnd = "finish"
    options: tuple[Option, ...] = ()
    discovered: bool = True
    reads_base_url: bool = False
    in_process: bool = False
    operations: frozenset[str] | None = field(default=None, converter=optional(_operations))
    models: tuple[Model, ...] = ()
