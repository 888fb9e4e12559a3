"""The `Check` type and the plugin under test."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import evolve, field, frozen

from llmopt import Model, ProviderEntry
from llmopt.errors import LLMOptError
from llmopt.testing.dialect import Dialect, Samples
from llmopt.testing.harness import HOOK_PARAMETERS, PluginUnderTest, ProviderHooks, url_placeholders
from llmopt.values.calls import EmbedCall, Operation, Settings
from llmopt.values.http import HttpResponse
from llmopt.values.profile import Profile
from llmopt.values.secret import Secret
from llmopt_conformance.observe import Sources

Ask: TypeAlias = "Callable[[Subject], None]"


class CheckFailed(AssertionError):
    """What a check found in a plugin, and what it expected there, in words for the plugin's author."""

    def __init__(self, found: str, expected: str = "") -> None:
        super().__init__(found)
        self.found: Final = found
        self.expected: Final = expected


class NotApplicable(Exception):
    """A check has nothing to look at in this plugin; the text says why."""


def expect(condition: object, found: str, expected: str = "") -> None:
    """Fail the running check unless a condition holds.

    Raises:
        CheckFailed: it does not. ``expected`` is the check's own sentence unless given.
    """
    if not condition:
        raise CheckFailed(found, expected)


@frozen(kw_only=True)
class Check:
    """One check.

    Attributes:
        id: family and name, such as "request.text-order".
        expects: the sentence that must be true.
        ask: looks; raises `CheckFailed` or `NotApplicable`.
    """

    id: str
    expects: str
    ask: Ask = field(repr=False)

    def run(self, subject: Subject) -> None:
        """Hold a plugin against this check.

        Raises:
            CheckFailed: it does not conform; the text is for its author.
            NotApplicable: there is nothing to check.
        """
        failed: CheckFailed | None = None
        try:
            self.ask(subject)
        except CheckFailed as error:
            failed = error
        except LLMOptError as error:
            failed = CheckFailed(explain(error))
        except NotApplicable:
            raise
        except Exception as error:  # noqa: BLE001 - a plugin may return anything, and is to blame for it
            failed = CheckFailed(
                f"what the plugin gave cannot be looked at: {type(error).__name__}: {error}{_place(error)}"
            )
        if failed is not None:
            raise CheckFailed(self._report(subject, failed), failed.expected or self.expects) from None

    def _report(self, subject: Subject, failed: CheckFailed) -> str:
        expected = failed.expected or self.expects
        return (
            f"plugin {subject.name!r} does not conform to {self.id}\n"
            f"  found:    {_indented(failed.found)}\n"
            f"  expected: {_indented(expected)}"
        )


class Family:
    """Checks that belong together; a module of checks has one."""

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._checks: Final[list[Check]] = []

    def __call__(self, name: str) -> Callable[[Ask], Ask]:
        """Make a check of a function; its docstring is the sentence that must be true."""

        def added(ask: Ask) -> Ask:
            sentence = " ".join((ask.__doc__ or "").split())
            self._checks.append(Check(id=f"{self._name}.{name}", expects=sentence, ask=ask))
            return ask

        return added

    @property
    def checks(self) -> tuple[Check, ...]:
        """All of them, in the order they are written in."""
        return tuple(self._checks)


def explain(error: BaseException) -> str:
    """An error with its cause and the place in the plugin that raised it."""
    text = str(error) if isinstance(error, LLMOptError) else f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if cause is None:
        return text
    return f"{text}\n{type(cause).__name__}: {str(cause)[:200]}{_place(cause)}"


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 12)


# The texts that the kit sends, and how to find them in whatever body a plugin makes of them.

TEXTS: Final = (
    "kit text 0, plain",
    'kit text 1, with "quotes", \\ and /',
    "kit text 2, Z\u00fcrich \u6771\u4eac \U0001f642",
    "kit text 3, a line\nbreak and a\ttab",
    "  kit text 4, with blanks around  ",
)
"""Distinct, and none is a part of another."""
MESSAGES: Final = (
    {"role": "system", "content": "kit message 0, be brief"},
    {"role": "user", "content": "kit message 1, how are you?"},
)


def strings(value: object) -> Iterator[str]:
    """All text in a JSON value, in order, without the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings(inner)


def scalars(value: object) -> Iterator[object]:
    """Everything in a JSON value that is neither an object nor a list, in order."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from scalars(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from scalars(inner)
    else:
        yield value


def order_of(texts: Sequence[str], value: object) -> list[int]:
    """Which of some texts stand in a JSON value, by their positions in ``texts``, in the value's order.

    A text counts where it stands whole, also inside a longer one: a provider may want a prefix.
    """
    return [index for found in strings(value) for index, text in enumerate(texts) if text in found]


def shown(index: int, texts: Sequence[str]) -> str:
    """A text's position and its beginning."""
    return f"text {index} of {len(texts)} ({texts[index][:24]!r})"


# The plugin under test, and everything that a check needs to call it.

KEY: Final = "canary-key-of-the-kit"
"""Stands for the user's key; must be seen in headers and nowhere else."""
TOKEN: Final = "canary-token-of-the-kit"  # noqa: S105 - this is none
"""Stands for what a token provider gives."""
SOMEWHERE: Final = "https://server.llmopt-kit.example/v1"
"""Base URL of the fake server when the profile has none."""
CONFIGURED: Final = {"x-kit-configured": "by the user"}
"""A header that the user's configuration asks for."""
RECEIVED: Final = 1_790_000_000.0
OPERATIONS: Final[frozenset[Operation]] = frozenset(get_args(Operation))
"""What a provider can be asked for."""


class Subject:
    """A plugin, and how to ask it.

    Args:
        plugin: its module, or any object with its hooks.
        name: the provider's name; by default that of its entry point, else taken from the module's name.
        samples: what is special about it.
    """

    def __init__(self, plugin: object, *, name: str = "", samples: Samples | None = None) -> None:
        self.plugin: Final = plugin
        self.sources: Final = Sources(plugin)
        self.name: Final = name or self.sources.provider_name
        self.samples: Final = samples if samples is not None else Samples()
        self.dialect: Final = Dialect(self.samples)
        self.findings: Final[dict[str, Any]] = {}

    @property
    def module(self) -> ModuleType:
        """The plugin's module.

        Raises:
            NotApplicable: it is another kind of object.
        """
        if not isinstance(self.plugin, ModuleType):
            raise NotApplicable("the plugin is an object, not a module")
        return self.plugin

    @cached_property
    def loaded(self) -> PluginUnderTest:
        """The plugin as the engine uses it; raises what the engine would."""
        return PluginUnderTest(self.name, self.plugin)

    @cached_property
    def hooks(self) -> ProviderHooks:
        """The plugin's hooks, for the checks that need them.

        Raises:
            NotApplicable: the hooks do not load, which the checks of "discovery" report.
        """
        try:
            found = self.loaded.hooks
        except LLMOptError:
            raise NotApplicable("its hooks do not load; see the checks of discovery") from None
        if any(inspect.iscoroutinefunction(getattr(self.plugin, name, None)) for name in HOOK_PARAMETERS):
            raise NotApplicable("its hooks are no plain functions; see discovery.plain-functions")
        return found

    def implements(self, hook: str) -> bool:
        """Whether the plugin has an implementation of its own."""
        return hasattr(self.plugin, hook)

    def parameters(self, hook: str) -> tuple[str, ...]:
        """The parameters that its implementation takes; none without one."""
        function = getattr(self.plugin, hook, None)
        return () if function is None else tuple(inspect.signature(function).parameters)

    @cached_property
    def entry(self) -> ProviderEntry:
        """The plugin's entry in a configuration, with a key."""
        return self.entry_with()

    def entry_with(self, **changes: Any) -> ProviderEntry:
        """The plugin's entry in a configuration, with something else about it."""
        url = self.base_url or None
        entry = ProviderEntry(name=self.name, base_url=url, api_key=Secret(KEY), options=self.options)
        return evolve(entry, **changes)

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The plugin's own configuration keys: the samples', and something for each gap in its base URL."""
        try:
            url = self.hooks.provider_profile(self.bare_entry).base_url
        except LLMOptError:
            url = None
        return {
            **dict.fromkeys(url_placeholders(url if isinstance(url, str) else None), "kit"),
            **self.samples.options,
        }

    @cached_property
    def base_url(self) -> str:
        """Base URL of the fake server, "" for an engine inside the process."""
        if self.samples.base_url is not None:
            return self.samples.base_url
        try:
            hooks, options = self.hooks, self.options
            url = self.loaded.base_url(self.bare_entry, options) or SOMEWHERE
            there = hooks.provider_profile(evolve(self.bare_entry, base_url=url))
        except LLMOptError:
            raise NotApplicable("its provider_profile does not work; see profile.any-entry") from None
        return "" if there.in_process else url

    @property
    def bare_entry(self) -> ProviderEntry:
        """The plugin's entry without a key and without a base URL."""
        return ProviderEntry(name=self.name, options=self.samples.options)

    @cached_property
    def profile(self) -> Profile:
        """Its profile for the entry."""
        return self.hooks.provider_profile(self.entry)

    def settings_of(self, entry: ProviderEntry) -> Settings:
        """The settings of an entry's endpoint, without a key and without any environment."""
        # Before anything else, so that checks of a plugin that does not load are skipped.
        _ = self.hooks
        return self.loaded.settings(entry)

    @cached_property
    def _settings(self) -> Settings:
        try:
            return self.settings_of(self.entry)
        except LLMOptError:
            raise NotApplicable("its entry comes to no endpoint; see profile.resolves") from None

    def settings(
        self,
        *,
        key: str | None = KEY,
        kind: Literal["key", "token"] = "key",
        headers: Mapping[str, str] = CONFIGURED,
    ) -> Settings:
        """What a hook is told of the endpoint, made anew with each call."""
        secret = None if key is None else Secret(key)
        found = self._settings
        return evolve(
            found,
            credential=secret,
            credential_kind=kind,
            headers={**found.headers, **headers},
            options=dict(found.options),
        )

    def embed_call(self, count: int = len(TEXTS), **changes: Any) -> EmbedCall:
        """A call with some texts, no more of them than the plugin's own limit allows."""
        most = self.limit or len(TEXTS)
        call = EmbedCall(model=self.samples.model, texts=TEXTS[: min(count, most)])
        return evolve(call, **changes)

    @cached_property
    def limit(self) -> int | None:
        """Most items in a request, None when the plugin knows no limit or cannot say."""
        try:
            found = self.hooks.batch_limit(EmbedCall(model=self.samples.model), self.settings())
        except LLMOptError:
            return None
        most = found.max_items
        return most if type(most) is int and most > 0 else None

    def without(self, operation: Operation) -> None:
        """Leave the running check when the provider does not have an operation.

        Raises:
            NotApplicable: it does not.
        """
        if operation in self.lacking:
            raise NotApplicable(f"the profile or the samples say that the provider has no {operation}")

    @cached_property
    def lacking(self) -> frozenset[Operation]:
        """The operations that the samples name as missing, or that the profile leaves out."""
        try:
            told = self.profile.operations
        except (LLMOptError, NotApplicable):
            told = None
        return self.samples.without | (OPERATIONS - told if told is not None else frozenset())

    @staticmethod
    def answer(
        body: bytes,
        *,
        status: int = 200,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> HttpResponse:
        """An answer of the server's, made anew with each call."""
        return HttpResponse(
            status=status, headers={"content-type": kind, **(headers or {})}, body=body, received=RECEIVED
        )


# Whether the fields of a value hold what their annotations say.

_MODULE: Final = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])")
"""What stands before the names of types."""


def type_faults(value: Any) -> list[str]:
    """For each field that holds something else than it may, a sentence; of nested values too."""
    kind = type(value)
    hints = _hints(kind)
    return [
        fault
        for each in attrs.fields(kind)
        for fault in _faults(f"{kind.__name__}.{each.name}", getattr(value, each.name), hints[each.name])
    ]


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _known:
        # The names of its module, and those that it imports for type checkers alone. None of its own: a field called
        # `type` would stand for itself.
        names = {"Model": Model, **vars(sys.modules[kind.__module__])}
        _known[kind] = get_type_hints(kind, names, {})
    return _known[kind]


_known: dict[type, dict[str, Any]] = {}


def _faults(name: str, found: Any, hint: Any) -> Iterator[str]:
    kind = get_origin(hint)
    # Models may be made when they are looked at: then they are a sequence of another type.
    if kind in (tuple, Sequence) and isinstance(found, kind) and not isinstance(found, str):
        for index, inner in enumerate(found):
            yield from _faults(f"{name}[{index}]", inner, get_args(hint)[0])
    elif not _fits(found, hint):
        yield f"{name} is {_shown(found)}; expected {_words(hint)}."
    elif attrs.has(type(found)):
        yield from type_faults(found)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is not None:
        shape: Callable[[Any, tuple[Any, ...]], bool] | None = _SHAPES.get(origin)
        return shape(value, get_args(hint)) if shape is not None else isinstance(value, origin)
    return _is(value, hint)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind)


def _literal(value: Any, choices: tuple[Any, ...]) -> bool:
    return value in choices


def _tuple(value: Any, inner: tuple[Any, ...]) -> bool:
    return isinstance(value, tuple) and all(_fits(each, inner[0]) for each in value)


def _frozenset(value: Any, inner: tuple[Any, ...]) -> bool:
    return isinstance(value, frozenset) and all(_fits(each, inner[0]) for each in value)


def _mapping(value: Any, inner: tuple[Any, ...]) -> bool:
    return isinstance(value, Mapping) and all(
        _fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items()
    )


_SHAPES: dict[Any, Callable[[Any, tuple[Any, ...]], bool]] = {
    Literal: _literal,
    frozenset: _frozenset,
    tuple: _tuple,
    Mapping: _mapping,
    dict: _mapping,
}


def _words(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
    return _MODULE.sub("", text).replace("NoneType", "None")


def _shown(value: Any) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"
