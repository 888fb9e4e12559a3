"""The public exceptions of llmopt, as a tree by what the caller can do about them.

::

    LLMOptError
    |-- ConfigError            the configuration is wrong: the message names the key and what to write
    |-- InvalidInput           an input is unusable: ``index`` says which one
    |-- UnknownProvider        no installed plugin serves that name
    |-- PluginError            a plugin cannot be used
    |   |-- PluginConflict     two distributions claim one provider name
    |   |-- PluginLoadError    the plugin's module cannot be imported
    |   `-- PluginContractError  a hook is misspelled, or returned a wrong value
    |-- LocalRejection         llmopt itself refused the call; nothing was sent
    |   |-- CircuitOpen        the endpoint failed repeatedly: try again after ``retry_after`` seconds
    |   |-- DeadlineExceeded   the caller's deadline has passed
    |   |-- QueueFull          too many calls are already waiting
    |   |-- CostNeverFits      the request is larger than the rate limit ever allows
    |   |-- NotCached          the call allows only cached results, and there is none
    |   `-- ClientClosed       the client is closed
    |-- TransportError         the connection failed; no complete response was read
    |   |-- ConnectFailed      no connection was made; nothing was sent
    |   |-- ConnectionLost     the connection broke during a request
    |   |-- AttemptTimeout     no complete response within the timeout of one attempt
    |   |-- OutOfResources     this machine lacks file descriptors, memory, ports or threads
    |   `-- PoolTimeout        no pooled connection became free in time; nothing was sent
    |-- ProviderError          the provider answered with an error
    |   |-- ServerError, RequestTimeout, RateLimited, Overloaded      temporary: a retry may succeed
    |   |-- QuotaExhausted     no credit or quota is left: waiting does not help
    |   |-- RequestTooLarge, ItemTooLong, ItemRejected, ContentFiltered      change the texts
    |   |-- AuthError, PermissionDenied, NotFound, BadRequest      change the key, the model or the call
    |   `-- UnexpectedStatus   a status that llmopt's requests should not get, such as a redirect
    |-- InvalidResponse        a 2xx response with an unusable body
    |-- StreamError            a stream failed before its end
    |   |-- StreamInterrupted  it ended early, or contained an error
    |   `-- StreamIdle         no data arrived within the idle timeout
    `-- PartialFailure         some items failed: ``result`` has all others

No error contains a key, a header or an input text: what a server or a plugin quotes of them is removed, see
`llmopt.values.redaction`. All errors can be pickled and copied with their attributes.

Pure: no I/O, no clock, no shared state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, dataclass_transform

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmopt.values.calls import BatchLimit, Dimension
    from llmopt.values.chat import ChatReply
    from llmopt.values.embeddings import Embeddings

_E = TypeVar("_E", bound="LLMOptError")

Sent = Literal["no", "maybe", "yes"]
"""Whether bytes of the request left this process."""


@frozen(kw_only=True)
class Attempt:
    """One attempt in the history of an error.

    Attributes:
        endpoint: origin of the endpoint (scheme, host, port).
        outcome: name of the error, or what else happened.
        status: HTTP status, None without a response.
        seconds: duration of the attempt.
        message: of the error.
    """

    endpoint: str
    outcome: str
    status: int | None = None
    seconds: float = 0.0
    message: str = ""


def _message(*, kw_only: bool) -> Any:  # noqa: ARG001 - for type checkers
    """The first argument, which an exception keeps itself, in ``args``."""
    return property(lambda error: str(error.args[0]))


def _required() -> Any:
    """An argument without a default."""


@dataclass_transform(kw_only_default=True, field_specifiers=(_message, _required))
class _Attributes(Exception):
    """The constructor of all errors: the message, and by name the attributes that the classes annotate.

    Type checkers read its arguments from there, as with a dataclass. It is none, because an exception keeps its message
    itself, and because the classes are made at every start.
    """

    def __init__(self, message: str, **attributes: Any) -> None:
        super().__init__(message)
        for name, value in attributes.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)
        self._attributes_set()

    def _attributes_set(self) -> None:
        """For subclasses: what follows from the attributes."""


class LLMOptError(_Attributes):
    """The base of all exceptions of llmopt.

    Attributes:
        provider: name of the provider entry, or None.
        model: model as the provider names it, or None.
        endpoint: origin of the endpoint (scheme, host, port), or None.
        request_id: the provider's id of the request, or None.
        attempts: the attempts that were made, oldest first.
        retry_after: seconds until a retry makes sense, or None if unknown.
        sent: whether bytes of a request left this process: "no", "maybe" or "yes".
    """

    retryable = False
    """Whether the same request may succeed later without a change."""
    counts_for_breaker = False
    """Whether the circuit breaker counts it as a failure of the endpoint."""
    local = False
    """Whether this process caused it, and not the server: it was out of resources, or its event loop was late."""

    message: str = _message(kw_only=False)
    provider: str | None = None
    model: str | None = None
    endpoint: str | None = None
    request_id: str | None = None
    attempts: tuple[Attempt, ...] = ()
    retry_after: float | None = None
    sent: Sent = "no"

    def copy(self, *, cause: bool = True) -> Self:
        """A new exception with the same attributes, for another caller that waits for the same result.

        Raising one exception object in several tasks would mix their tracebacks.

        Args:
            cause: whether it has the same cause too, whose traceback keeps frames alive.
        """
        error = _rebuild(type(self), self.message, dict(self.__dict__))
        error.__cause__ = self.__cause__ if cause else None
        return error

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        state = {key: value for key, value in self.__dict__.items() if key != "__notes__"}
        return _rebuild, (type(self), self.message, state)


def _rebuild(kind: type[_E], message: str, state: dict[str, Any]) -> _E:
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class ConfigError(LLMOptError):
    """The configuration cannot be used; the message names the key and what to write instead."""


class InvalidInput(LLMOptError):
    """An input cannot be sent. ``index`` is its position, None if no single item is at fault."""

    index: int | None = None


class UnknownProvider(LLMOptError):
    """No configured entry and no installed plugin has this name."""


class PluginError(LLMOptError):
    """A plugin cannot be used."""


class PluginConflict(PluginError):
    """Two installed distributions claim one provider name; the message names both."""


class PluginLoadError(PluginError):
    """The plugin's module raised an exception when it was imported. Other plugins still work."""


class PluginContractError(PluginError):
    """A plugin breaks the contract of its hooks: a misspelled hook, a missing marker, a wrong return value."""


class LocalRejection(LLMOptError):
    """llmopt itself refused the call; nothing was sent."""


class CircuitOpen(LocalRejection):
    """The circuit breaker of the endpoint is open after repeated failures; ``retry_after`` says for how many seconds.

    Attributes:
        failure: the error that opened it, None if it is not known; with several endpoints that of the first.
        requests: HTTP requests that this call sent before.
    """

    retryable = True

    failure: LLMOptError | None = None
    requests: int = 0


class DeadlineExceeded(LocalRejection):
    """The caller's deadline has passed. ``phase`` says what the call did last."""

    phase: str = ""


class QueueFull(LocalRejection):
    """Too many calls wait for a provider and model already. Nothing of this one was sent."""

    retryable = True


class SharedStateUnavailable(LocalRejection):
    """The store of the shared limits does not answer, and ``[shared] required = true`` forbids to go on without it."""

    retryable = True


class CostNeverFits(LocalRejection):
    """One request needs more tokens than the configured rate limit ever allows at once."""


class NotCached(LocalRejection):
    """The call allows only cached results, and the cache has none."""


class ClientClosed(LocalRejection):
    """The client was closed before or during the call."""


class TransportError(LLMOptError):
    """The connection failed; no complete response was read."""

    retryable = True
    counts_for_breaker = True


class ConnectFailed(TransportError):
    """No connection was made; nothing was sent.

    Attributes:
        cause: "dns", "refused", "tls", "timeout", "proxy" or "other".
        permanent: whether a retry is pointless, as with an unknown host.
    """

    cause: str = "other"
    permanent: bool = False


class ConnectionLost(TransportError):
    """The connection broke during a request.

    ``stale`` is True for a pooled connection that the server had closed before it received the request.
    """

    stale: bool = False


class AttemptTimeout(TransportError):
    """No complete response arrived within the timeout of one attempt, ``timeout`` seconds."""

    timeout: float | None = None


class OutOfResources(TransportError):
    """This process or machine lacks what a request needs. It says nothing about the server.

    ``resource`` is "descriptors", "memory", "disk", "ports", "buffers" or "threads".
    """

    counts_for_breaker = False
    local = True

    resource: str = "memory"


class PoolTimeout(TransportError):
    """No pooled connection became free in time; nothing was sent."""

    counts_for_breaker = False


class ProviderError(LLMOptError):
    """The provider answered with an error.

    Attributes:
        status: HTTP status of the response.
        code: the provider's machine-readable code as a string, or None.
        param: the parameter that the provider names as wrong, or None.
        item: position in its request of the text that the provider names, or None.
    """

    status: int | None = None
    code: str | None = None
    param: str | None = None
    item: int | None = None


class ServerError(ProviderError):
    """The provider failed, probably for a short time."""

    retryable = True
    counts_for_breaker = True


class RequestTimeout(ProviderError):
    """The provider reports a timeout (status 408, 504 or similar)."""

    retryable = True
    counts_for_breaker = True


class RateLimited(ProviderError):
    """Too many requests or tokens; wait ``retry_after`` seconds.

    ``exceeded`` says which limit: "requests", "tokens" or "output_tokens" (a minute, or in another window); None if the
    provider does not say.
    """

    retryable = True
    exceeded: Dimension | None = None


class Overloaded(ProviderError):
    """The provider is overloaded."""

    retryable = True
    counts_for_breaker = True


class QuotaExhausted(ProviderError):
    """The credit, spending limit or quota is used up. A retry does not help.

    ``scope`` says for what: for everything that the credential pays for ("account"), for this model ("model"), or for
    a request of this size ("request"). Calls outside of it are still sent.
    """

    scope: Literal["account", "model", "request"] = "account"


class _TooLarge(ProviderError):
    limit: BatchLimit | None = None


class RequestTooLarge(_TooLarge):
    """The request has too many items, tokens or bytes. ``limit`` is the limit that the provider states, or None."""


class ItemTooLong(_TooLarge):
    """A text has more tokens than the model accepts. ``limit`` is the limit that the provider states, or None."""


class ItemRejected(ProviderError):
    """The provider refused a text."""


class ContentFiltered(ProviderError):
    """The provider's content filter refused a text."""


class AuthError(ProviderError):
    """The key or token is missing, wrong or expired."""


class PermissionDenied(ProviderError):
    """The key is valid, but is not allowed to do this."""


class NotFound(ProviderError):
    """The model, deployment or path does not exist."""


class BadRequest(ProviderError):
    """The provider refused the request as a whole."""


class UnexpectedStatus(ProviderError):
    """A status that llmopt's requests should not get, such as a redirect, which is never followed."""


class InvalidResponse(LLMOptError):
    """A 2xx response with an unusable body. ``reason`` is one word, such as "count" or "non_finite"."""

    retryable = True
    counts_for_breaker = True

    reason: str = "body"
    status: int | None = None

    def _attributes_set(self) -> None:
        if self.reason in _UNFIT_REASONS:
            self.retryable = self.counts_for_breaker = False


_UNFIT_REASONS: Final = frozenset({"dimensions_ignored"})
"""Reasons of a server that is well, but does not do what was asked for: it would answer every request so."""


class StreamError(LLMOptError):
    """A stream failed before its end. It is never retried, because the caller already has a part of the reply.

    Attributes:
        text: the text that had arrived.
        partial: everything that had arrived: text, reasoning, tool calls and, if reported, usage.
    """

    counts_for_breaker = True

    text: str = ""
    partial: ChatReply | None = None


class StreamInterrupted(StreamError):
    """The stream ended early, or contained an error."""


class StreamIdle(StreamError):
    """No data arrived within the idle timeout."""


class PartialFailure(LLMOptError):
    """Some items failed.

    Attributes:
        result: the ``Embeddings`` with the rows of all others, and the error of each that failed.
        failure: the first error that a server or a connection caused, else the first one.
        requests: HTTP requests that the call sent, failed ones included.
    """

    result: Embeddings = _required()
    failure: LLMOptError | None = None
    requests: int = 0
