"""One provider's hooks as typed methods: call the plugin, check what it returns.

pluggy's hook relay is untyped and costs 2 to 10 µs per call: it copies its list of implementations, builds a
dictionary and looks for wrappers each time. The implementations do not change once the provider is made, so `bind`
resolves them once.

This file does no I/O, and hooks do none either, except that a table in the plugin's package is read once, at first
use (`llmopt.known_models`). All calls share the hooks of a provider, also from several threads and from worker
threads; nothing changes after they are bound, so there is no lock.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from operator import itemgetter
from pathlib import Path
from types import ModuleType, NoneType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pluggy

from llmopt import hookspecs
from llmopt.compatible import defaults
from llmopt.errors import ConfigError, LLMOptError, PluginContractError
from llmopt.hookspecs import PROJECT
from llmopt.values.calls import BatchLimit, Call, ChatCall, EmbedCall, RateLimits, RequestCost, Settings
from llmopt.values.catalog import CatalogPage, Model
from llmopt.values.chat import ChatEvent, ChatReply, EventDecoder, ServerEvent, StreamStep
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.http import Failure, HttpRequest, HttpResponse, Verdict
from llmopt.values.profile import Profile
from llmopt.values.redaction import input_texts, place_of, redact, secrets_of
from llmopt.values.resources import out_of_resources

if TYPE_CHECKING:
    import httpx

    from llmopt.config.schema import ProviderEntry, TokenProvider

_T = TypeVar("_T")
_U = TypeVar("_U")
_MAX_TEXT: Final = 300
"""Characters of an exception's text in an error."""
_MAX_SHOWN: Final = 4_096
_NOT_OF_PLUGINS: Final = (__file__, str(Path(pluggy.__file__).parent))
_ONE_REQUEST: Final = RequestCost()
Hook = Callable[..., Any]
HOOK_NAMES: Final = frozenset(
    name for name, value in vars(hookspecs).items() if hasattr(value, f"{PROJECT}_spec")
)
"""The names of all hooks."""


class ProviderHooks:
    """The hooks of one provider: the user's wrappers, then the plugin, then the defaults of the dialect.

    Every method raises `PluginContractError` for a return value of a wrong type and for an exception that is not
    an `LLMOptError`.

    Args:
        provider: the plugin's name, for messages.
        plugin: the plugin's module, or an object with the hooks as attributes.
        wrappers: plugins of the user, called before or around the provider's.

    Attributes:
        counts_cost: whether the plugin or a wrapper has the hook `request_cost`. No default answers it, so that requests
            to other providers do not pay for it.
        signs_requests: the same of the hook `sign_request`.

    Raises:
        PluginContractError: a hook is misspelled, lacks its marker, or has a wrong signature.
    """

    def __init__(self, provider: str, plugin: object, wrappers: Sequence[object] = ()) -> None:
        self._provider = provider
        relay: Any = _manager(provider, plugin, wrappers).hook
        stream_hooks = relay.parse_stream_event.get_hookimpls()
        self._keeps_state: Final = any("state" in each.argnames for each in stream_hooks)
        unused = "" if self._keeps_state else "state"
        self._hooks: Final[Mapping[str, Hook]] = {
            name: bind(getattr(relay, name), unused) for name in HOOK_NAMES
        }
        self.counts_cost: Final = bool(relay.request_cost.get_hookimpls())
        self.signs_requests: Final = bool(relay.sign_request.get_hookimpls())

    def for_provider(self, provider: str) -> ProviderHooks:
        """The same hooks under the name of another provider that the plugin serves."""
        # A shallow copy: the bound hooks are shared, and only the name in messages differs.
        hooks = copy(self)
        hooks._provider = provider  # noqa: SLF001 - it is this class
        return hooks

    def provider_profile(self, entry: ProviderEntry) -> Profile:
        """See `llmopt.hookspecs.provider_profile`."""
        profile = self._call_for(Profile, "provider_profile", entry)
        for each in profile.models:
            if not isinstance(each, Model):
                raise self._wrong("provider_profile", each, "a Profile, with nothing but Model in its models")
        return profile

    def batch_limit(self, call: EmbedCall, settings: Settings) -> BatchLimit:
        """See `llmopt.hookspecs.batch_limit`."""
        return self._call_for(BatchLimit, "batch_limit", call, settings)

    def build_request(self, call: Call, settings: Settings) -> HttpRequest:
        """See `llmopt.hookspecs.build_request`."""
        return self._call_for(HttpRequest, "build_request", call, settings)

    def parse_embeddings(
        self, call: EmbedCall, response: HttpResponse, settings: Settings
    ) -> EmbeddedRows | Failure:
        """See `llmopt.hookspecs.parse_embeddings`."""
        return self._call_or(Failure, EmbeddedRows, "parse_embeddings", call, response, settings)

    def parse_catalog(self, response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
        """See `llmopt.hookspecs.parse_catalog`."""
        return self._call_or(Failure, CatalogPage, "parse_catalog", response, settings)

    def parse_chat(self, call: ChatCall, response: HttpResponse, settings: Settings) -> ChatReply | Failure:
        """See `llmopt.hookspecs.parse_chat`."""
        return self._call_or(Failure, ChatReply, "parse_chat", call, response, settings)

    def parse_stream_event(
        self, call: ChatCall, event: ServerEvent, settings: Settings, state: object = None
    ) -> StreamStep | Failure:
        """See `llmopt.hookspecs.parse_stream_event`."""
        hook = self._stream_hook(state)
        result = self._checked_parser(hook, call, settings)(event)
        if isinstance(result, Failure):
            return result
        return StreamStep(result, hook.state if isinstance(hook, _StreamSteps) else None)

    def stream_parser(
        self, call: ChatCall, settings: Settings
    ) -> Callable[[ServerEvent], tuple[ChatEvent, ...] | Failure]:
        """`parse_stream_event` as a function of the event alone, for all events of one stream, in their order."""
        return self._checked_parser(self._stream_hook(), call, settings)

    def _stream_hook(self, state: object = None) -> Hook:
        hook = self._hooks["parse_stream_event"]
        return _StreamSteps(hook, state) if self._keeps_state else hook

    def _checked_parser(
        self, hook: Hook, call: ChatCall, settings: Settings
    ) -> Callable[[ServerEvent], tuple[ChatEvent, ...] | Failure]:
        def parse(event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
            try:
                result = hook(call, event, settings)
            except LLMOptError:
                raise
            except Exception as error:  # noqa: BLE001 - raised below, as in `_call`
                failure = self._raised("parse_stream_event", error, (call, settings))
            else:
                if isinstance(result, tuple):
                    # A loop, because all() with a generator takes three times as long for one event.
                    for each in result:
                        if not isinstance(each, ChatEvent):
                            break
                    else:
                        return result
                elif isinstance(result, Failure):
                    return result
                raise self._wrong("parse_stream_event", result, _STREAM_RESULT)
            raise failure

        return parse

    def decode_stream(self, content_type: str, settings: Settings) -> EventDecoder | None:
        """See `llmopt.hookspecs.decode_stream`."""
        decoder = self._call("decode_stream", content_type, settings)
        # A class has the methods of its instances.
        if decoder is None or (isinstance(decoder, EventDecoder) and not isinstance(decoder, type)):
            return decoder
        raise self._wrong("decode_stream", decoder, "an instance of an EventDecoder, or None")

    def classify_error(self, failure: Failure, settings: Settings) -> Verdict:
        """See `llmopt.hookspecs.classify_error`."""
        return self._call_for(Verdict, "classify_error", failure, settings)

    def rate_limits(self, response: HttpResponse, settings: Settings) -> RateLimits:
        """See `llmopt.hookspecs.rate_limits`."""
        return self._call_for(RateLimits, "rate_limits", response, settings)

    def request_cost(self, call: Call, settings: Settings) -> RequestCost:
        """See `llmopt.hookspecs.request_cost`."""
        return self._call_or(NoneType, RequestCost, "request_cost", call, settings) or _ONE_REQUEST

    def sign_request(self, request: HttpRequest, now: float, settings: Settings) -> Mapping[str, str]:
        """See `llmopt.hookspecs.sign_request`."""
        result = self._call("sign_request", request, now, settings)
        if result is None or isinstance(result, Mapping):
            return result or {}
        raise self._wrong("sign_request", result, "a mapping of headers")

    def limits_request(self, call: EmbedCall, settings: Settings) -> HttpRequest | None:
        """See `llmopt.hookspecs.limits_request`."""
        return self._call_or(NoneType, HttpRequest, "limits_request", call, settings)

    def parse_limits(self, call: EmbedCall, response: HttpResponse, settings: Settings) -> BatchLimit:
        """See `llmopt.hookspecs.parse_limits`."""
        return self._call_for(BatchLimit, "parse_limits", call, response, settings)

    def credential_provider(self, settings: Settings) -> TokenProvider | None:
        """See `llmopt.hookspecs.credential_provider`."""
        result = self._call("credential_provider", settings)
        if result is not None and not callable(result):
            raise self._wrong("credential_provider", result, "a function or None")
        return result  # type: ignore[no-any-return] # a function's own types cannot be checked

    def open_transport(self, settings: Settings) -> httpx.AsyncBaseTransport | None:
        """See `llmopt.hookspecs.open_transport`."""
        result = self._call("open_transport", settings)
        if result is not None and not callable(getattr(result, "handle_async_request", None)):
            raise self._wrong("open_transport", result, "an httpx.AsyncBaseTransport")
        return result  # type: ignore[no-any-return] # checked by its one method

    def _call_for(self, kind: type[_T], hook: str, *values: object) -> _T:
        result = self._call(hook, *values)
        if isinstance(result, kind):
            return result
        raise self._wrong(hook, result, kind.__name__)

    def _call_or(self, other: type[_U], kind: type[_T], hook: str, *values: object) -> _T | _U:
        result = self._call(hook, *values)
        if isinstance(result, (kind, other)):
            return result
        raise self._wrong(hook, result, f"{kind.__name__} or {other.__name__.removesuffix('Type')}")

    def _call(self, hook: str, *values: object) -> Any:
        try:
            return self._hooks[hook](*values)
        except LLMOptError:
            raise
        except Exception as error:  # noqa: BLE001 - raised below: the exception must not become its context
            failure = self._raised(hook, error, values)
        raise failure

    def _raised(self, hook: str, error: Exception, values: Sequence[object]) -> LLMOptError:
        """The error for an exception in a hook, with its text, its place, and itself as the cause."""
        if (local := out_of_resources(error)) is not None:
            # The plugin is not at fault: it needed memory, or a module that could not be read now.
            return local
        secrets = [secret for each in values if isinstance(each, Settings) for secret in secrets_of(each)]
        texts = [text for each in values if isinstance(each, Call) for text in input_texts(each)]
        text = redact(str(error)[:_MAX_TEXT], secrets=secrets, texts=texts)
        named = f"{type(error).__name__}: {text}" if text else type(error).__name__
        failure = PluginContractError(
            f"plugin {self._provider!r}: hook {hook} raised {named}{place_of(error, _NOT_OF_PLUGINS)}; "
            "a hook must return a value or raise an llmopt error.",
            provider=self._provider,
        )
        shown = " ".join(f"{each!s:.{_MAX_SHOWN}} {each!r:.{_MAX_SHOWN}}" for each in _chain(error))
        harmless = redact(shown, secrets=secrets, texts=texts) == redact(shown)
        # A traceback shows the text of a cause: in place of one that repeats a key or a text, its harmless form.
        failure.__cause__ = error if harmless else RuntimeError(named).with_traceback(error.__traceback__)
        return failure

    def _wrong(self, hook: str, result: object, expected: str) -> PluginContractError:
        return PluginContractError(
            f"plugin {self._provider!r}: hook {hook} returned {type(result).__name__}; expected {expected}.",
            provider=self._provider,
        )


_STREAM_RESULT: Final = "a tuple of ChatEvent, or Failure, or StreamStep from a hook with the parameter state"


class _StreamSteps:
    """The hook `parse_stream_event` with its state between the events of one stream.

    Args:
        hook: the hook with all its parameters.
        state: of the stream so far.

    Attributes:
        state: what the last event left.
    """

    def __init__(self, hook: Hook, state: object) -> None:
        self._hook: Final = hook
        self.state = state

    def __call__(self, call: ChatCall, event: ServerEvent, settings: Settings) -> Any:
        result = self._hook(call, event, settings, self.state)
        if not isinstance(result, StreamStep):
            return result
        self.state = result.state
        return result.events


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that a traceback shows with it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def bind(hook: Any, unused: str = "") -> Hook:
    """Return a hook as a plain function that calls its implementations directly.

    Args:
        hook: the hook caller of a pluggy manager.
        unused: a parameter that no implementation takes, and the function neither.

    Returns:
        A function of the hook's parameters, by position. Like pluggy with ``firstresult`` it returns the first
        value that is not None. Hooks with wrappers go through pluggy itself.
    """
    implementations: list[pluggy.HookImpl] = hook.get_hookimpls()
    parameters = [name for name in hook.spec.argnames if name != unused]
    if any(each.wrapper or each.hookwrapper or each.kwargnames for each in implementations):
        rest = dict.fromkeys(set(hook.spec.argnames).difference(parameters))
        return lambda *values: hook(**rest, **dict(zip(parameters, values, strict=True)))
    # pluggy keeps the implementation that is called first at the end of its list.
    functions = [_adapt(each, parameters) for each in reversed(implementations)]
    if len(functions) == 1:
        return functions[0]

    def first_result(*values: object) -> Any:
        for function in functions:
            result = function(*values)
            if result is not None:
                return result
        return None

    return first_result


def _adapt(implementation: pluggy.HookImpl, parameters: Sequence[str]) -> Hook:
    """An implementation, which may leave out and reorder parameters, as a function of all ``parameters``."""
    # By position, as pluggy calls it: a plugin may declare positional-only parameters.
    function: Hook = implementation.function
    names = list(implementation.argnames)
    if names == parameters:
        return function
    positions = [parameters.index(name) for name in names]
    if len(positions) > 1:
        chosen = itemgetter(*positions)
        return lambda *values: function(*chosen(values))
    # itemgetter with one position returns the value itself, not a tuple.
    return lambda *values: function(*[values[position] for position in positions])


class _Manager(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        # Most names of a module are no functions; pluggy looks at each of them for 30 µs, 2 ms for a client.
        if isinstance(plugin, ModuleType) and not inspect.isroutine(vars(plugin).get(name)):
            return None
        return super().parse_hookimpl_opts(plugin, name)


def _manager(provider: str, plugin: object, wrappers: Sequence[object]) -> pluggy.PluginManager:
    # One manager per provider, so that no plugin can answer for another provider.
    manager = _Manager(PROJECT)
    manager.add_hookspecs(hookspecs)
    owner = f"plugin {provider!r}"
    try:
        for each in (plugin, *wrappers):
            owner = f"plugin {provider!r}" if each is plugin else f"wrapper {_name(each)}"
            _refuse_unmarked(owner, each, provider)
            if manager.is_registered(each):
                raise ConfigError(f"{owner} is given twice, by wrappers or plugins; leave one out.")
            manager.register(each)
            # A misspelled hook is an error here instead of a hook that is never called.
            manager.check_pending()
        # Last, because of implementations marked `trylast` pluggy calls the one registered last at the end.
        manager.register(defaults)
    except pluggy.PluginValidationError as error:
        raise PluginContractError(f"{owner}: {_misspelt(error)}", provider=provider) from error
    return manager


def _name(plugin: object) -> str:
    return getattr(plugin, "__name__", type(plugin).__name__)


def _misspelt(error: Exception) -> str:
    """What pluggy found wrong, with the name that is probably meant, or else all names."""
    from difflib import get_close_matches

    # Addresses differ in each run, and mean nothing to a reader.
    address = r" in plugin .*|<[^<>]* at 0x[0-9a-f]+>|^Plugin '[^']*' for "
    text = re.sub(address, "", " ".join(str(error).split())).removesuffix(".")
    words = re.search(r"Argument\(s\) {(.+)}", text)
    hook = re.search(r"hook '(\w+)'", text)
    parameters = inspect.signature(getattr(hookspecs, hook[1])).parameters if words and hook else HOOK_NAMES
    unknown = re.findall(r"'(\w+)'", words[1] if words else text)
    near = [match for word in unknown for match in get_close_matches(word, parameters, n=1)]
    if near:
        return f"{text}; did you mean {' and '.join(near)}?"
    return f"{text}; the {'parameters' if words else 'hooks'} are {', '.join(sorted(parameters))}."


def _refuse_unmarked(owner: str, plugin: object, provider: str) -> None:
    # pluggy ignores a function without the marker, and the default would answer in its place.
    for name in HOOK_NAMES & set(dir(plugin)):
        attribute = getattr(plugin, name)
        if inspect.isroutine(attribute) and not hasattr(attribute, f"{PROJECT}_impl"):
            raise PluginContractError(
                f"{owner}: function {name} has the name of a hook; mark it with @llmopt.hookimpl, or rename it.",
                provider=provider,
            )
