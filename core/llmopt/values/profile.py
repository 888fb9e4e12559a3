"""What a provider is like: the defaults that its plugin gives."""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen


@frozen(kw_only=True)
class Timeouts:
    """Time-outs in seconds; ``total`` None means no bound of its own.

    Attributes:
        connect: name look-up, TCP and TLS together.
        read: an attempt with one text, from sending to the last byte.
        read_large: an attempt with a full batch.
        catalog: an attempt at a list of models.
        chat: an attempt at a chat that is not streamed.
        first_event: from sending a request for a stream to its first event.
        idle: between two pieces of a stream, whatever is in them.
        idle_content: between two events of a stream that add to the answer; comments and pings do not.
        pool: waiting for a pooled connection; llmopt's own pacing keeps it from ever running out.
        total: a whole call with all its attempts.
        first: the first request to an engine that may still load its model.
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


@frozen(kw_only=True)
class Option:
    """A configuration key of a plugin's own.

    Attributes:
        name: the key in a provider entry.
        type: the type its value must have.
        env: environment variables that set it, the first one found wins.
        help: one line for ``llmopt doctor`` and for the error that a wrong value gets.
        choices: the values allowed, empty for any.
    """

    name: str
    type: type = str
    env: tuple[str, ...] = ()
    help: str = ""
    choices: tuple[Any, ...] = ()


@frozen(kw_only=True)
class Profile:
    """The built-in defaults of a provider; every value can be overridden by configuration.

    Attributes:
        base_url: where the provider is, None where only the user knows. A part such as ``{account}``
            stands for the value of one of ``options``.
        base_url_env: environment variables for another base URL.
        key_env: environment variables for the key, the first one set wins.
        key_required: whether a request without a key is pointless.
        auth: "bearer" for ``Authorization: Bearer``, "none", or the name of a header.
        own_hosts: host names (``*.`` for all below) that a key from the environment may go to,
            besides the host of ``base_url``.
        headers: sent with every request.
        timeouts: see `Timeouts`.
        max_retries: retries after a first attempt.
        retry_delay: first back-off in seconds.
        pool_size: most connections to one endpoint.
        max_concurrency: most requests in flight to one endpoint.
        keepalive: seconds an idle connection is kept.
        rpm: usual requests per minute, None for no limit.
        tpm: usual tokens per minute, None for no limit.
        compress_requests: whether gzip request bodies are known to be accepted.
        stream_usage: whether a stream is to be asked for its usage (``ChatCall.include_usage``); False
            where it comes unasked or the question is refused.
        stream_end: what makes a stream complete. "done": the provider's own end alone
            (``ChatEvent.last``). "finish": also a finish reason and then the end of the body, for
            servers that send no end of their own.
        options: the plugin's own configuration keys.
        discovered: whether ``batch_list_models()`` asks it, unnamed, once a key of the environment is
            there; False where that variable is meant for more than this provider.
        in_process: whether ``open_transport`` answers without a network, without any key or URL.
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
    stream_end: Literal["done", "finish"] = "finish"
    options: tuple[Option, ...] = ()
    discovered: bool = True
    in_process: bool = False
