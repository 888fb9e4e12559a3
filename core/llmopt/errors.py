"""Every error that llmopt raises, by what its reader can do about it.

::

    LLMOptError
    |-- ConfigError            the configuration is wrong: mend the key that the message names
    |-- InvalidInput           one of the inputs is unusable: ``index`` says which
    |-- UnknownProvider        no installed plugin serves that name
    |-- PluginError            a plugin cannot be used
    |   |-- PluginConflict     two distributions claim one name
    |   |-- PluginLoadError    the plugin's module did not import
    |   `-- PluginContractError  a hook is misnamed, or returned what it must not
    |-- LocalRejection         decided on this side, nothing was sent
    |   |-- CircuitOpen        the endpoint is resting after failures: ``retry_after`` says for how long
    |   |-- DeadlineExceeded   the caller's time is up
    |   |-- QueueFull          too many calls are waiting already
    |   |-- CostNeverFits      the request is larger than the rate limit ever allows
    |   |-- NotCached          only the cache was to be asked, and it has nothing
    |   `-- ClientClosed       the client was closed
    |-- TransportError         the connection failed, no answer was read
    |   |-- ConnectFailed      nothing was sent
    |   |-- ConnectionLost     the connection broke while a request was under way
    |   |-- AttemptTimeout     no complete answer within the attempt's time-out
    |   `-- PoolTimeout        no connection became free (a fault of llmopt's own pacing)
    |-- ProviderError          the provider answered, and refused or failed
    |   |-- ServerError, RequestTimeout, RateLimited, Overloaded      may pass by themselves
    |   |-- QuotaExhausted     no money or quota left: waiting does not help
    |   |-- RequestTooLarge, ItemTooLong, ItemRejected, ContentFiltered
    |   |-- AuthError, PermissionDenied, NotFound, BadRequest
    |   `-- UnexpectedStatus   a status no request of ours should get, redirects among them
    |-- InvalidResponse        a 2xx answer that cannot be used
    |-- StreamError            a stream ended before its end
    |   |-- StreamInterrupted
    |   `-- StreamIdle
    `-- PartialFailure         some items failed: ``result`` holds all the others

No error holds a key, a header or an input text. Errors pickle and copy with all their fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypedDict, TypeVar, Unpack

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmopt.values.calls import BatchLimit
    from llmopt.values.chat import ChatReply
    from llmopt.values.embeddings import Embeddings

_E = TypeVar("_E", bound="LLMOptError")

Sent = Literal["no", "maybe", "yes"]
"""How far a request came: certainly not sent, possibly, certainly."""


@frozen(kw_only=True)
class Attempt:
    """A line of an error's history: which endpoint, what happened, how long it took in seconds."""

    endpoint: str
    outcome: str
    status: int | None = None
    seconds: float = 0.0


class Context(TypedDict, total=False):
    """What every error may say of its surroundings; see `LLMOptError`."""

    provider: str | None
    model: str | None
    endpoint: str | None
    request_id: str | None
    attempts: Sequence[Attempt]
    retry_after: float | None
    sent: Sent


class LLMOptError(Exception):
    """The base of all errors of llmopt.

    Attributes:
        provider: name of the provider entry, or None where no provider is concerned.
        model: model as the provider names it, or None.
        endpoint: origin of the endpoint (scheme, host, port), or None.
        request_id: the provider's own id of the request, or None.
        attempts: what was tried, oldest first.
        retry_after: seconds after which trying again makes sense, or None when nobody said.
        sent: whether a request reached the wire: "no", "maybe" or "yes".
    """

    retryable: ClassVar[bool] = False
    """Whether the same request may succeed later without a change."""
    counts_for_breaker: ClassVar[bool] = False
    """Whether it speaks against the health of the endpoint."""

    def __init__(
        self,
        message: str,
        **context: Unpack[Context],
    ) -> None:
        super().__init__(message)
        self.provider = context.get("provider")
        self.model = context.get("model")
        self.endpoint = context.get("endpoint")
        self.request_id = context.get("request_id")
        self.attempts: tuple[Attempt, ...] = tuple(context.get("attempts", ()))
        self.retry_after = context.get("retry_after")
        self.sent: Sent = context.get("sent", "no")

    @property
    def message(self) -> str:
        """The sentence alone, as ``str(error)`` gives it."""
        return str(self.args[0])

    def copy(self) -> Self:
        """A new exception with the same data and cause and no traceback, for a further waiter."""
        made = _rebuild(type(self), self.message, dict(self.__dict__))
        made.__cause__ = self.__cause__
        return made

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
    """An input cannot be sent. ``index`` is the position of the bad one, None if it is no item's fault."""

    def __init__(self, message: str, *, index: int | None = None, **context: Unpack[Context]) -> None:
        super().__init__(message, **context)
        self.index = index


class UnknownProvider(LLMOptError):
    """No configured entry and no installed plugin has this name."""


class PluginError(LLMOptError):
    """A plugin cannot be used."""


class PluginConflict(PluginError):
    """Two installed distributions claim the same provider name; the message names both."""


class PluginLoadError(PluginError):
    """A plugin's module raised while it was imported. Other plugins are not affected."""


class PluginContractError(PluginError):
    """A plugin breaks the contract: a misspelled hook, a missing marker, a wrong return value."""


class LocalRejection(LLMOptError):
    """Decided by llmopt itself; nothing was sent."""


class CircuitOpen(LocalRejection):
    """The endpoint failed repeatedly and is given a rest of ``retry_after`` seconds."""

    retryable = True


class DeadlineExceeded(LocalRejection):
    """The time the caller gave is up. ``phase`` says what it was spent on last."""

    def __init__(self, message: str, *, phase: str = "", **context: Unpack[Context]) -> None:
        super().__init__(message, **context)
        self.phase = phase


class QueueFull(LocalRejection):
    """More calls are waiting for the rate limit than the queue may hold."""

    retryable = True


class CostNeverFits(LocalRejection):
    """One request costs more than the configured rate limit ever allows at once."""


class NotCached(LocalRejection):
    """The call allowed no request, and nothing is kept that could answer it."""


class ClientClosed(LocalRejection):
    """The client was closed before or during the call."""


class TransportError(LLMOptError):
    """No complete answer was read."""

    retryable = True
    counts_for_breaker = True


class ConnectFailed(TransportError):
    """No connection came about. ``cause`` is "dns", "refused", "tls", "timeout", "proxy" or "other"."""

    def __init__(
        self, message: str, *, cause: str = "other", permanent: bool = False, **context: Unpack[Context]
    ) -> None:
        super().__init__(message, **context)
        self.cause = cause
        self.permanent = permanent


class ConnectionLost(TransportError):
    """The connection broke with a request under way.

    ``stale`` is True for a kept connection that the server had closed before it saw the request.
    """

    def __init__(self, message: str, *, stale: bool = False, **context: Unpack[Context]) -> None:
        super().__init__(message, **context)
        self.stale = stale


class AttemptTimeout(TransportError):
    """No complete answer came within the attempt's time-out of ``timeout`` seconds."""

    def __init__(self, message: str, *, timeout: float | None = None, **context: Unpack[Context]) -> None:
        super().__init__(message, **context)
        self.timeout = timeout


class PoolTimeout(TransportError):
    """No pooled connection became free in time; nothing was sent."""

    counts_for_breaker = False


class ProviderError(LLMOptError):
    """The provider answered with an error.

    Attributes:
        status: HTTP status of the answer.
        code: the provider's machine-readable code as a string, or None.
        param: the parameter that the provider names as wrong, or None.
        item: position in its request of the text that the provider names, or None.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, **context: Unpack[Context]
    ) -> None:
        super().__init__(message, **context)
        self.status = status
        self.code = code
        self.param: str | None = None
        self.item: int | None = None


class ServerError(ProviderError):
    """The provider failed in a way that may pass."""

    retryable = True
    counts_for_breaker = True


class RequestTimeout(ProviderError):
    """The provider gave up waiting (408, 504 and their like)."""

    retryable = True
    counts_for_breaker = True


class RateLimited(ProviderError):
    """Too many requests or tokens in the time; wait ``retry_after`` seconds."""

    retryable = True


class Overloaded(ProviderError):
    """The provider has too much to do."""

    retryable = True
    counts_for_breaker = True


class QuotaExhausted(ProviderError):
    """Credit, spend limit or quota is used up. Asking again does not help."""


class RequestTooLarge(ProviderError):
    """The request holds too many items, tokens or bytes. ``limit`` is what the provider stated, if it did."""

    def __init__(self, message: str, *, limit: BatchLimit | None = None, **context: Unpack[Context]) -> None:
        super().__init__(message, **context)
        self.limit = limit


class ItemTooLong(ProviderError):
    """One text has more tokens than the model takes. ``limit`` is what the provider stated, if it did."""

    def __init__(self, message: str, *, limit: BatchLimit | None = None, **context: Unpack[Context]) -> None:
        super().__init__(message, **context)
        self.limit = limit


class ItemRejected(ProviderError):
    """One text was refused."""


class ContentFiltered(ProviderError):
    """The provider's content filter refused."""


class AuthError(ProviderError):
    """The key or token is missing, wrong or expired."""


class PermissionDenied(ProviderError):
    """The key is valid and may not do this."""


class NotFound(ProviderError):
    """The model, deployment or path does not exist."""


class BadRequest(ProviderError):
    """The request as a whole is wrong."""


class UnexpectedStatus(ProviderError):
    """A status that no request of llmopt's should get, such as a redirect (never followed)."""


class InvalidResponse(LLMOptError):
    """A successful status with an unusable body. ``reason`` is one word, such as "count" or "non_finite"."""

    retryable = True
    counts_for_breaker = True

    def __init__(
        self, message: str, *, reason: str = "body", status: int | None = None, **context: Unpack[Context]
    ) -> None:
        super().__init__(message, **context)
        self.reason = reason
        self.status = status


class StreamError(LLMOptError):
    """A stream broke off. It is never repeated by itself: part of the answer was handed out already.

    Attributes:
        text: what had arrived of the answer.
        partial: all that had arrived, with reasoning, tool calls and, if it was told, the usage.
    """

    counts_for_breaker = True

    def __init__(
        self, message: str, *, text: str = "", partial: ChatReply | None = None, **context: Unpack[Context]
    ) -> None:
        super().__init__(message, **context)
        self.text = text
        self.partial = partial


class StreamInterrupted(StreamError):
    """The stream ended without its end, or with an error in it."""


class StreamIdle(StreamError):
    """Nothing came for longer than the idle time-out."""


class PartialFailure(LLMOptError):
    """Some items failed. ``result`` is the ``Embeddings`` with every row that could be had."""

    def __init__(self, message: str, *, result: Embeddings, **context: Unpack[Context]) -> None:
        super().__init__(message, **context)
        self.result = result
