"""The checked face of a plugin's hooks."""

from __future__ import annotations

import inspect
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

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
    assert hooks.batch_limit(CALL, SETTINGS) == BatchLimit(max_items=32)
    request = hooks.build_request(CALL, SETTINGS)
    assert (request.method, request.path, request.json["input"]) == ("POST", "/embeddings", ("a",))
    assert isinstance(hooks.provider_profile(ProviderEntry(name="acme")), Profile)
    assert hooks.open_transport(SETTINGS) is None


def test_the_plugin_wins_also_when_it_tries_last() -> None:
    """The core's defaults come after everything."""

    @hookimpl(trylast=True)
    def batch_limit() -> BatchLimit:
        return BatchLimit(max_items=7)

    assert ProviderHooks("acme", plugin(batch_limit=batch_limit)).batch_limit(CALL, SETTINGS).max_items == 7


def test_none_means_the_default_and_nothing_is_a_value() -> None:
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
    """check_pending finds it, and the message lists the hooks there are."""

    @hookimpl
    def batch_limits() -> BatchLimit:
        return BatchLimit()

    with pytest.raises(PluginContractError, match=r"batch_limits.*parse_catalog"):
        ProviderHooks("acme", plugin(batch_limits=batch_limits))


def test_a_hook_without_its_marker_is_named() -> None:
    """It would never have been called."""

    def classify_error(failure: Failure) -> Verdict:
        return Verdict(kind=VerdictKind.AUTH)

    with pytest.raises(PluginContractError, match=r"classify_error is named like a hook"):
        ProviderHooks("acme", plugin(classify_error=classify_error))


def test_an_unknown_parameter_is_named() -> None:
    """pluggy says which."""

    @hookimpl
    def batch_limit(call: EmbedCall, config: object) -> BatchLimit:
        return BatchLimit()

    with pytest.raises(PluginContractError, match="config"):
        ProviderHooks("acme", plugin(batch_limit=batch_limit))


@pytest.mark.parametrize("hook", sorted(HOOK_NAMES))
def test_g03_a_wrong_return_value_names_plugin_hook_and_expectation(hook: str) -> None:
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
        "event": ServerEvent(data="{}"),
    }
    arguments = [samples[name] for name in inspect.signature(getattr(hookspecs, hook)).parameters]
    with pytest.raises(PluginContractError, match=rf"'acme'.*{hook} returned int; expected"):
        getattr(hooks, hook)(*arguments)


def test_g03_an_exception_in_a_hook_is_the_plugins() -> None:
    """Its kind is named, its text stays with the cause."""

    @hookimpl
    def batch_limit() -> BatchLimit:
        raise KeyError("canary")

    with pytest.raises(PluginContractError, match="batch_limit raised KeyError") as caught:
        ProviderHooks("acme", plugin(batch_limit=batch_limit)).batch_limit(CALL, SETTINGS)
    assert "canary" not in str(caught.value)


def test_an_llmopt_error_in_a_hook_passes() -> None:
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


@pytest.mark.parametrize("given", [[ChatEvent()], ("text",), (ChatEvent(), None), ChatEvent(), "text"])
def test_g03_events_of_a_stream_are_a_tuple_of_them(given: object) -> None:
    """Each is looked at, for every event."""

    @hookimpl
    def parse_stream_event() -> object:
        return given

    hooks = ProviderHooks("acme", plugin(parse_stream_event=parse_stream_event))
    with pytest.raises(PluginContractError, match="expected a tuple of ChatEvent, or Failure"):
        hooks.parse_stream_event(ChatCall(model="m"), ServerEvent(data="{}"), SETTINGS)


def test_events_of_a_stream_come_through() -> None:
    """None of them, several, or a failure."""
    outcomes = [(), (ChatEvent(), ChatEvent(last=True)), Failure(status=200)]
    for outcome in outcomes:

        @hookimpl
        def parse_stream_event(outcome: object = outcome) -> object:
            return outcome

        hooks = ProviderHooks("acme", plugin(parse_stream_event=parse_stream_event))
        assert hooks.parse_stream_event(ChatCall(model="m"), ServerEvent(), SETTINGS) == outcome
