"""The typed face of one provider's hooks: what goes out is what the plugin said, checked."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pluggy

from llmopt import hookspecs
from llmopt.compatible import defaults
from llmopt.errors import LLMOptError, PluginContractError
from llmopt.hookspecs import PROJECT
from llmopt.values.calls import BatchLimit, Call, ChatCall, EmbedCall, RateLimits, Settings
from llmopt.values.catalog import CatalogPage
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.http import Failure, HttpRequest, HttpResponse, Verdict
from llmopt.values.profile import Profile

if TYPE_CHECKING:
    import httpx

    from llmopt.config.schema import ProviderEntry, TokenProvider


# A hook's implementations as one function, worked out once instead of at every call.
#
# pluggy's relay copies its list, builds a dictionary and looks for wrappers each time, 2 to 10 µs a call. Which
# implementations there are is known when the provider is made, and nothing registers with its manager afterwards.

Ask = Callable[..., Any]


def direct(hook: Any) -> Ask:
    """The hook as a function of its parameters by position; does what the relay does."""
    implementations: list[pluggy.HookImpl] = hook.get_hookimpls()
    parameters: tuple[str, ...] = hook.spec.argnames
    if any(each.wrapper or each.hookwrapper or each.kwargnames for each in implementations):
        return lambda *values: hook(**dict(zip(parameters, values, strict=True)))
    # The one that is asked first stands last.
    asked = [_placed(each.function, each.argnames, parameters) for each in reversed(implementations)]

    def first(*values: object) -> Any:
        for ask in asked:
            found = ask(*values)
            if found is not None:
                return found
        return None

    return first


def _placed(function: Ask, names: Sequence[str], parameters: Sequence[str]) -> Ask:
    """A function of some of the parameters as one of all of them."""
    if tuple(names) == tuple(parameters):
        return function
    at = [parameters.index(name) for name in names]
    if not at:
        return lambda *_: function()
    if len(at) == 1:
        place = at[0]
        return lambda *values: function(values[place])
    chosen = itemgetter(*at)
    return lambda *values: function(*chosen(values))


# `parse_stream_event`, worked out once for a stream instead of for each of its many events.

Parse = Callable[[ServerEvent], Any]
_EVENT: Final = "event"


def bound(implementations: Sequence[pluggy.HookImpl], call: ChatCall, settings: Settings) -> Parse | None:
    """The implementations of the hook as one function of the event alone, which does what the relay does.

    Args:
        implementations: as the relay has them; the one asked first stands last.
        call: of the stream.
        settings: of the stream.

    Returns:
        The function, or None where a wrapper stands around them, which the relay must call.
    """
    if any(each.wrapper or each.hookwrapper for each in implementations):
        return None
    given = {"call": call, "settings": settings}
    asked = [_bound(each, given) for each in reversed(implementations)]
    if len(asked) == 1:
        return asked[0]

    def first(event: ServerEvent) -> Any:
        for ask in asked:
            found = ask(event)
            if found is not None:
                return found
        return None

    return first


def _bound(implementation: pluggy.HookImpl, given: dict[str, Any]) -> Parse:
    function: Any = implementation.function
    names = implementation.argnames
    if _EVENT not in names:
        fixed = partial(function, *(given[name] for name in names))
        return lambda _: fixed()
    at = names.index(_EVENT)
    before = partial(function, *(given[name] for name in names[:at]))
    after = [given[name] for name in names[at + 1 :]]
    return before if not after else lambda event: before(event, *after)


_T = TypeVar("_T")
HOOK_NAMES: Final = frozenset(
    name for name, value in vars(hookspecs).items() if hasattr(value, f"{PROJECT}_spec")
)
"""The hooks there are."""


class ProviderHooks:
    """One provider's hooks: its plugin, the user's wrappers, and the core's defaults behind them.

    Args:
        provider: the plugin's name, for messages.
        plugin: the plugin's module or object.
        wrappers: plugins of the user's, called around (or instead of) the provider's.

    Raises:
        PluginContractError: a hook is misspelled, lacks its marker, or has a wrong signature.
    """

    def __init__(self, provider: str, plugin: object, wrappers: Sequence[object] = ()) -> None:
        self._provider = provider
        self._relay: Final[Any] = _manager(provider, plugin, wrappers).hook
        self._direct: Final[Mapping[str, Ask]] = {
            name: direct(getattr(self._relay, name)) for name in HOOK_NAMES
        }

    def for_provider(self, provider: str) -> ProviderHooks:
        """The same for another provider that the plugin serves."""
        found = copy(self)
        found._provider = provider  # noqa: SLF001 - it is this class
        return found

    def provider_profile(self, entry: ProviderEntry) -> Profile:
        """See `llmopt.hookspecs.provider_profile`."""
        return self._ask(Profile, "provider_profile", entry)

    def batch_limit(self, call: EmbedCall, settings: Settings) -> BatchLimit:
        """See `llmopt.hookspecs.batch_limit`."""
        return self._ask(BatchLimit, "batch_limit", call, settings)

    def build_request(self, call: Call, settings: Settings) -> HttpRequest:
        """See `llmopt.hookspecs.build_request`."""
        return self._ask(HttpRequest, "build_request", call, settings)

    def parse_embeddings(
        self, call: EmbedCall, response: HttpResponse, settings: Settings
    ) -> EmbeddedRows | Failure:
        """See `llmopt.hookspecs.parse_embeddings`."""
        found = self._call("parse_embeddings", call, response, settings)
        if isinstance(found, (EmbeddedRows, Failure)):
            return found
        raise self._wrong("parse_embeddings", found, "EmbeddedRows or Failure")

    def parse_catalog(self, response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
        """See `llmopt.hookspecs.parse_catalog`."""
        found = self._call("parse_catalog", response, settings)
        if isinstance(found, (CatalogPage, Failure)):
            return found
        raise self._wrong("parse_catalog", found, "CatalogPage or Failure")

    def parse_chat(self, call: ChatCall, response: HttpResponse, settings: Settings) -> ChatReply | Failure:
        """See `llmopt.hookspecs.parse_chat`."""
        found = self._call("parse_chat", call, response, settings)
        if isinstance(found, (ChatReply, Failure)):
            return found
        raise self._wrong("parse_chat", found, "ChatReply or Failure")

    def parse_stream_event(
        self, call: ChatCall, event: ServerEvent, settings: Settings
    ) -> tuple[ChatEvent, ...] | Failure:
        """See `llmopt.hookspecs.parse_stream_event`."""
        return self.stream_parser(call, settings)(event)

    def stream_parser(
        self, call: ChatCall, settings: Settings
    ) -> Callable[[ServerEvent], tuple[ChatEvent, ...] | Failure]:
        """`parse_stream_event` for the events of one stream."""
        hook = self._relay.parse_stream_event
        asked = bound(hook.get_hookimpls(), call, settings) or partial(
            _relayed, hook, call=call, settings=settings
        )

        def parse(event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
            try:
                found = asked(event)
            except LLMOptError:
                raise
            except Exception as error:
                raise self._raised("parse_stream_event", error) from error
            if isinstance(found, tuple):
                for each in found:
                    if not isinstance(each, ChatEvent):
                        break
                else:
                    return found
            elif isinstance(found, Failure):
                return found
            raise self._wrong("parse_stream_event", found, "a tuple of ChatEvent, or Failure")

        return parse

    def classify_error(self, failure: Failure, settings: Settings) -> Verdict:
        """See `llmopt.hookspecs.classify_error`."""
        return self._ask(Verdict, "classify_error", failure, settings)

    def rate_limits(self, response: HttpResponse, settings: Settings) -> RateLimits:
        """See `llmopt.hookspecs.rate_limits`."""
        return self._ask(RateLimits, "rate_limits", response, settings)

    def limits_request(self, call: EmbedCall, settings: Settings) -> HttpRequest | None:
        """See `llmopt.hookspecs.limits_request`."""
        found = self._call("limits_request", call, settings)
        if found is None or isinstance(found, HttpRequest):
            return found
        raise self._wrong("limits_request", found, "HttpRequest or None")

    def parse_limits(self, call: EmbedCall, response: HttpResponse, settings: Settings) -> BatchLimit:
        """See `llmopt.hookspecs.parse_limits`."""
        return self._ask(BatchLimit, "parse_limits", call, response, settings)

    def credential_provider(self, settings: Settings) -> TokenProvider | None:
        """See `llmopt.hookspecs.credential_provider`."""
        found = self._call("credential_provider", settings)
        if found is not None and not callable(found):
            raise self._wrong("credential_provider", found, "a function or None")
        return found  # type: ignore[no-any-return] # a function's own types cannot be checked

    def open_transport(self, settings: Settings) -> httpx.AsyncBaseTransport | None:
        """See `llmopt.hookspecs.open_transport`."""
        found = self._call("open_transport", settings)
        if found is not None and not callable(getattr(found, "handle_async_request", None)):
            raise self._wrong("open_transport", found, "an httpx.AsyncBaseTransport")
        return found  # type: ignore[no-any-return] # checked by its one method

    def _ask(self, kind: type[_T], hook: str, *values: object) -> _T:
        found = self._call(hook, *values)
        if isinstance(found, kind):
            return found
        raise self._wrong(hook, found, kind.__name__)

    def _call(self, hook: str, *values: object) -> Any:
        try:
            return self._direct[hook](*values)
        except LLMOptError:
            raise
        except Exception as error:
            raise self._raised(hook, error) from error

    def _raised(self, hook: str, error: Exception) -> PluginContractError:
        return PluginContractError(
            f"plugin {self._provider!r}: hook {hook} raised {type(error).__name__}; "
            "a hook returns a value or raises an llmopt error.",
            provider=self._provider,
        )

    def _wrong(self, hook: str, found: object, expected: str) -> PluginContractError:
        return PluginContractError(
            f"plugin {self._provider!r}: hook {hook} returned {type(found).__name__}; expected {expected}.",
            provider=self._provider,
        )


def _relayed(hook: Callable[..., Any], event: ServerEvent, *, call: ChatCall, settings: Settings) -> Any:
    return hook(call=call, event=event, settings=settings)


def _manager(provider: str, plugin: object, wrappers: Sequence[object]) -> pluggy.PluginManager:
    # One manager for each provider: a plugin registered with one is unknown to all others.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    owner = f"plugin {provider!r}"
    try:
        for each in (plugin, *wrappers):
            owner = f"plugin {provider!r}" if each is plugin else f"wrapper {_kind(each)}"
            _refuse_unmarked(owner, each, provider)
            manager.register(each)
            manager.check_pending()
        # Among those marked `trylast` the one registered last is asked last.
        manager.register(defaults)
    except pluggy.PluginValidationError as error:
        raise PluginContractError(
            f"{owner}: {_without_address(error)}; the hooks are {', '.join(sorted(HOOK_NAMES))}.",
            provider=provider,
        ) from error
    return manager


def _kind(plugin: object) -> str:
    return getattr(plugin, "__name__", type(plugin).__name__)


def _without_address(error: Exception) -> str:
    return re.sub(r" in plugin .*|<[^<>]* at 0x[0-9a-f]+>", "", " ".join(str(error).split()))


def _refuse_unmarked(owner: str, plugin: object, provider: str) -> None:
    for name in HOOK_NAMES & set(dir(plugin)):
        found = getattr(plugin, name)
        if inspect.isroutine(found) and not hasattr(found, f"{PROJECT}_impl"):
            raise PluginContractError(
                f"{owner}: function {name} is named like a hook and lacks @llmopt.hookimpl.",
                provider=provider,
            )
