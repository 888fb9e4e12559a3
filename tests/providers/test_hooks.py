"""The checked face of a plugin's hooks."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import llmopt
from llmopt import (
    BatchLimit,
    ChatCall,
    ChatEvent,
    ConfigError,
    EmbedCall,
    Failure,
    HttpRequest,
    HttpResponse,
    PluginContractError,
    Profile,
    ProviderEntry,
    ServerEvent,
    Settings,
    Verdict,
    VerdictKind,
    hookimpl,
    hookspecs,
)
from llmopt.providers.hooks import HOOK_NAMES, ProviderHooks

CALL = EmbedCall(model="m", texts=("a",))
SETTINGS = Settings(provider="acme", base_url="https://api.acme.example/v1")


def plugin(**hooks: Any) -> ModuleType:
    module = ModuleType("llmopt_plugin_acme")
    vars(module).update(hooks)
    return module


def test_an_empty_plugin_gets_the_defaults() -> None:
    """A provider that speaks the common dialect needs nothing."""
    hooks = ProviderHooks("acme", plugin())
    assert hooks.batch_limit(CALL, SETTINGS) == BatchLimit(max_items=32, guesses=("max_items",))
    request = hooks.build_request(CALL, SETTINGS)
    assert (request.method, request.path, request.json["input"]) == ("POST", "/embeddings", ("a",))
    assert isinstance(hooks.provider_profile(ProviderEntry(name="acme")), Profile)
    assert hooks.open_transport(SETTINGS) is None


def test_the_plugin_wins_even_with_trylast() -> None:
    """The core's defaults come after everything."""

    @hookimpl(trylast=True)
    def batch_limit() -> BatchLimit:
        return BatchLimit(max_items=7)

    assert ProviderHooks("acme", plugin(batch_limit=batch_limit)).batch_limit(CALL, SETTINGS).max_items == 7


def test_none_selects_the_default_and_empty_values_are_used() -> None:
    """An empty BatchLimit is an answer, None is a question passed on."""

    @hookimpl
    def batch_limit(call: EmbedCall) -> BatchLimit | None:
        return BatchLimit() if call.model == "boundless" else None

    hooks = ProviderHooks("acme", plugin(batch_limit=batch_limit))
    assert hooks.batch_limit(EmbedCall(model="boundless"), SETTINGS).max_items is None
    assert hooks.batch_limit(CALL, SETTINGS).max_items == 32


def test_a_wrapper_sees_every_provider() -> None:
    """Headers are added around the plugin's own request."""

    @hookimpl(wrapper=True)
    def build_request() -> Any:
        request = yield
        return HttpRequest(
            method=request.method,
            path=request.path,
            headers={**request.headers, "x-team": "a"},
            json=request.json,
        )

    hooks = ProviderHooks("acme", plugin(), [SimpleNamespace(build_request=build_request)])
    assert hooks.build_request(CALL, SETTINGS).headers["x-team"] == "a"


def test_a_misspelled_hook_is_named() -> None:
    """With the hook that is probably meant, or else with all that there are."""

    @hookimpl
    def batch_limits() -> BatchLimit:
        return BatchLimit()

    with pytest.raises(PluginContractError) as raised:
        ProviderHooks("acme", plugin(batch_limits=batch_limits))
    assert raised.value.message == "plugin 'acme': unknown hook 'batch_limits'; did you mean batch_limit?"
    with pytest.raises(
        PluginContractError, match=r"unknown hook 'zzz'; the hooks are batch_limit, .*, sign_request\.$"
    ):
        ProviderHooks("acme", plugin(zzz=batch_limits))


def test_a_hook_without_its_marker_is_named() -> None:
    """It would never have been called."""

    def classify_error(failure: Failure) -> Verdict:
        return Verdict(kind=VerdictKind.AUTH)

    with pytest.raises(PluginContractError, match=r"classify_error has the name of a hook"):
        ProviderHooks("acme", plugin(classify_error=classify_error))


def test_an_unknown_parameter_is_named() -> None:
    """With the parameter that is probably meant, or else with all of the hook's."""

    @hookimpl
    def batch_limit(call: EmbedCall, setings: object) -> BatchLimit:
        return BatchLimit()

    with pytest.raises(
        PluginContractError, match=r"{'setings'} are declared .*; did you mean settings\?$"
    ) as raised:
        ProviderHooks("acme", plugin(batch_limit=batch_limit))
    assert raised.value.message.startswith(
        "plugin 'acme': hook 'batch_limit' hookimpl definition: batch_limit("
    )

    @hookimpl(specname="batch_limit")
    def other(call: EmbedCall, zzz: object) -> BatchLimit:
        return BatchLimit()

    with pytest.raises(PluginContractError, match=r"'zzz'.*; the parameters are call, settings\.$"):
        ProviderHooks("acme", plugin(other=other))


@pytest.mark.row("G03")
@pytest.mark.parametrize("hook", sorted(HOOK_NAMES))
def test_a_wrong_return_value_names_plugin_hook_and_expectation(hook: str) -> None:
    """Whatever the hook, the author reads what was expected."""
    source = f"@hookimpl\ndef {hook}():\n    return 42\n"
    namespace: dict[str, Any] = {"hookimpl": hookimpl}
    exec(source, namespace)
    hooks = ProviderHooks("acme", plugin(**{hook: namespace[hook]}))
    samples = {
        "entry": ProviderEntry(name="acme"),
        "call": CALL,
        "settings": SETTINGS,
        "response": HttpResponse(status=200),
        "failure": Failure(status=400),
        "state": None,
        "event": ServerEvent(data="{}"),
        "request": HttpRequest(method="GET", path="https://acme.test/"),
        "now": 0.0,
        "content_type": "",
    }
    arguments = [samples[name] for name in inspect.signature(getattr(hookspecs, hook)).parameters]
    with pytest.raises(PluginContractError, match=rf"'acme'.*{hook} returned int; expected"):
        getattr(hooks, hook)(*arguments)


@pytest.mark.row("G03")
def test_an_exception_in_a_hook_is_a_plugin_error() -> None:
    """The message has its type, text and place, and it is the cause."""

    @hookimpl
    def batch_limit() -> BatchLimit:
        raise KeyError("canary")

    line = batch_limit.__code__.co_firstlineno + 2
    told = rf"batch_limit raised KeyError: 'canary' \(providers/test_hooks\.py, line {line}\)"
    with pytest.raises(PluginContractError, match=told) as caught:
        ProviderHooks("acme", plugin(batch_limit=batch_limit)).batch_limit(CALL, SETTINGS)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_llmopt_error_in_a_hook_is_raised_unchanged() -> None:
    """A plugin may say that an extra is missing."""

    @hookimpl
    def open_transport() -> None:
        raise ConfigError("install the extra")

    with pytest.raises(ConfigError, match="install the extra"):
        ProviderHooks("acme", plugin(open_transport=open_transport)).open_transport(SETTINGS)


def test_plugins_do_not_see_each_other() -> None:
    """One manager each: what one registers is unknown to the other."""

    @hookimpl
    def batch_limit() -> BatchLimit:
        return BatchLimit(max_items=1)

    first = ProviderHooks("one", plugin(batch_limit=batch_limit))
    second = ProviderHooks("two", plugin())
    assert first.batch_limit(CALL, SETTINGS).max_items == 1
    assert second.batch_limit(CALL, SETTINGS).max_items == 32


@pytest.mark.row("G03")
@pytest.mark.parametrize("given", [[ChatEvent()], ("text",), (ChatEvent(), None), ChatEvent(), "text"])
def test_stream_events_must_be_a_tuple_of_chat_events(given: object) -> None:
    """Each is looked at, for every event."""

    @hookimpl
    def parse_stream_event() -> object:
        return given

    hooks = ProviderHooks("acme", plugin(parse_stream_event=parse_stream_event))
    with pytest.raises(PluginContractError, match="expected a tuple of ChatEvent, or Failure"):
        hooks.stream_parser(ChatCall(model="m"), SETTINGS)(ServerEvent(data="{}"))


def test_stream_events_of_a_plugin_are_delivered() -> None:
    """None of them, several, or a failure."""
    outcomes = [(), (ChatEvent(), ChatEvent(last=True)), Failure(status=200)]
    for outcome in outcomes:

        @hookimpl
        def parse_stream_event(outcome: object = outcome) -> object:
            return outcome

        hooks = ProviderHooks("acme", plugin(parse_stream_event=parse_stream_event))
        assert hooks.stream_parser(ChatCall(model="m"), SETTINGS)(ServerEvent()) == outcome


# The hook for events, worked out once for a stream: the same as the relay, in every constellation.

STREAM_CALL = ChatCall(model="m", stream=True)
STREAM_SETTINGS = Settings(provider="p", base_url="http://127.0.0.1:1")
WORD = ServerEvent(data='{"choices": [{"index": 0, "delta": {"content": "Hello"}}]}')


def stream_plugin(function: Any) -> object:
    return SimpleNamespace(parse_stream_event=llmopt.hookimpl(function))


def said(found: object) -> str:
    assert isinstance(found, tuple)
    return "".join(event.text for event in found)


def text_events(text: str) -> tuple[llmopt.ChatEvent, ...]:
    return (llmopt.ChatEvent(text=text),)


def test_a_plugin_without_the_hook_uses_the_default() -> None:
    """By having no such hook, or by returning None."""
    for each in (SimpleNamespace(), stream_plugin(lambda call, event, settings: None)):
        parse = ProviderHooks("p", each).stream_parser(STREAM_CALL, STREAM_SETTINGS)
        assert said(parse(WORD)) == "Hello"
        assert parse(ServerEvent(data="[DONE]")) == (llmopt.ChatEvent(last=True),)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            lambda call, event, settings: text_events(f"{call.model} {len(event.data)} {settings.provider}"),
            f"m {len(WORD.data)} p",
        ),
        (
            lambda settings, event, call: text_events(f"{call.model} {len(event.data)} {settings.provider}"),
            f"m {len(WORD.data)} p",
        ),
        (lambda event: text_events(event.event), "message"),
        (lambda state, event: text_events(f"{state} {event.event}"), "None message"),
        (lambda event, call: text_events(call.model), "m"),
        (lambda call: text_events(call.model), "m"),
        (lambda: text_events("nothing"), "nothing"),
    ],
)
def test_hook_parameters_may_be_omitted_and_reordered(function: Any, expected: str) -> None:
    """As pluggy allows."""
    assert (
        said(ProviderHooks("p", stream_plugin(function)).stream_parser(STREAM_CALL, STREAM_SETTINGS)(WORD))
        == expected
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_state_of_a_stream_goes_from_event_to_event(wrapped: bool) -> None:
    """None at first, apart for each stream; a bare tuple leaves it as it is."""

    class Passing:
        @llmopt.hookimpl(wrapper=True)
        def parse_stream_event(self) -> Any:
            return (yield)

    def counted(event: ServerEvent, state: Any) -> Any:
        number = state or 0
        if event.data == "same":
            return text_events(f"{number}")
        return llmopt.StreamStep(text_events(f"{number}"), number + 1)

    hooks = ProviderHooks("p", stream_plugin(counted), [Passing()] if wrapped else [])
    first, second = (hooks.stream_parser(STREAM_CALL, STREAM_SETTINGS) for _ in range(2))
    assert [said(first(ServerEvent(data=data))) for data in ("", "", "same", "")] == ["0", "1", "2", "2"]
    assert said(second(WORD)) == "0"
    step = hooks.parse_stream_event(STREAM_CALL, WORD, STREAM_SETTINGS, state=7)
    assert step == llmopt.StreamStep(text_events("7"), 8)


def test_a_plugin_without_state_is_called_directly() -> None:
    """Nothing stands between the engine and its function but the check of what it returns."""

    def events(call: ChatCall, event: ServerEvent, settings: Settings) -> Any:
        return text_events(event.data)

    hooks = ProviderHooks("p", stream_plugin(events))
    parse = hooks.stream_parser(STREAM_CALL, STREAM_SETTINGS)
    called: list[str] = []
    sys.setprofile(lambda frame, kind, _: called.append(frame.f_code.co_name) if kind == "call" else None)
    try:
        parse(WORD)
    finally:
        sys.setprofile(None)
    assert called[:3] == ["parse", "first_result", "events"]
    assert hooks.parse_stream_event(STREAM_CALL, WORD, STREAM_SETTINGS).state is None


def test_a_wrapper_is_called_around_it() -> None:
    """For every event."""

    class Louder:
        @llmopt.hookimpl(wrapper=True)
        def parse_stream_event(self) -> Any:
            found = yield
            return text_events(said(found).upper())

    parse = ProviderHooks("p", SimpleNamespace(), [Louder()]).stream_parser(STREAM_CALL, STREAM_SETTINGS)
    assert [said(parse(WORD)) for _ in range(2)] == ["HELLO", "HELLO"]


def test_a_users_plugin_precedes_the_providers_plugin() -> None:
    """The one registered last is asked first."""
    mine = stream_plugin(lambda event: text_events("mine") if event.data.startswith("{") else None)
    parse = ProviderHooks("p", stream_plugin(lambda event: text_events("theirs")), [mine]).stream_parser(
        STREAM_CALL, STREAM_SETTINGS
    )
    assert said(parse(WORD)) == "mine"
    assert said(parse(ServerEvent(data="x"))) == "theirs"


@pytest.mark.parametrize(
    "wrong", ["text", 7, [], (1,), {}, (llmopt.ChatEvent(), None), llmopt.StreamStep(text_events("no state"))]
)
def test_a_wrong_hook_value_names_plugin_and_hook(wrong: object) -> None:
    """Whatever it is."""
    parse = ProviderHooks("p", stream_plugin(lambda event: wrong)).stream_parser(STREAM_CALL, STREAM_SETTINGS)
    with pytest.raises(llmopt.PluginContractError, match=r"'p'.*parse_stream_event"):
        parse(WORD)


def test_a_hook_that_raises_names_the_plugin() -> None:
    """llmopt's own errors pass; any other is the stream_plugin's fault."""

    def refuse(event: ServerEvent) -> None:
        raise llmopt.InvalidResponse("mine")

    def fail(event: ServerEvent) -> None:
        raise KeyError("theirs")

    with pytest.raises(llmopt.InvalidResponse, match="mine"):
        ProviderHooks("p", stream_plugin(refuse)).stream_parser(STREAM_CALL, STREAM_SETTINGS)(WORD)
    with pytest.raises(llmopt.PluginContractError, match="raised KeyError"):
        ProviderHooks("p", stream_plugin(fail)).stream_parser(STREAM_CALL, STREAM_SETTINGS)(WORD)
