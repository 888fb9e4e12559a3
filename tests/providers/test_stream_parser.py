"""The hook for events, worked out once for a stream: the same as the relay, in every constellation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import llmopt
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import ChatCall, Settings
from llmopt.values.chat import ServerEvent

CALL = ChatCall(model="m", stream=True)
SETTINGS = Settings(provider="p", base_url="http://127.0.0.1:1")
WORD = ServerEvent(data='{"choices": [{"index": 0, "delta": {"content": "Hello"}}]}')


def plugin(function: Any) -> object:
    return SimpleNamespace(parse_stream_event=llmopt.hookimpl(function))


def said(found: object) -> str:
    assert isinstance(found, tuple)
    return "".join(event.text for event in found)


def told(text: str) -> tuple[llmopt.ChatEvent, ...]:
    return (llmopt.ChatEvent(text=text),)


def test_a_plugin_that_leaves_it_to_the_core() -> None:
    """By having no such hook, or by returning None."""
    for each in (SimpleNamespace(), plugin(lambda call, event, settings: None)):
        parse = ProviderHooks("p", each).stream_parser(CALL, SETTINGS)
        assert said(parse(WORD)) == "Hello"
        assert parse(ServerEvent(data="[DONE]")) == (llmopt.ChatEvent(last=True),)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            lambda call, event, settings: told(f"{call.model} {len(event.data)} {settings.provider}"),
            f"m {len(WORD.data)} p",
        ),
        (
            lambda settings, event, call: told(f"{call.model} {len(event.data)} {settings.provider}"),
            f"m {len(WORD.data)} p",
        ),
        (lambda event: told(event.event), "message"),
        (lambda event, call: told(call.model), "m"),
        (lambda call: told(call.model), "m"),
        (lambda: told("nothing"), "nothing"),
    ],
)
def test_parameters_may_be_left_out_and_stand_in_any_order(function: Any, expected: str) -> None:
    """As pluggy allows."""
    assert said(ProviderHooks("p", plugin(function)).stream_parser(CALL, SETTINGS)(WORD)) == expected


def test_a_wrapper_is_called_around_it() -> None:
    """For every event."""

    class Louder:
        @llmopt.hookimpl(wrapper=True)
        def parse_stream_event(self) -> Any:
            found = yield
            return told(said(found).upper())

    parse = ProviderHooks("p", SimpleNamespace(), [Louder()]).stream_parser(CALL, SETTINGS)
    assert [said(parse(WORD)) for _ in range(2)] == ["HELLO", "HELLO"]


def test_a_users_plugin_goes_before_the_providers() -> None:
    """The one registered last is asked first."""
    mine = plugin(lambda event: told("mine") if event.data.startswith("{") else None)
    parse = ProviderHooks("p", plugin(lambda event: told("theirs")), [mine]).stream_parser(CALL, SETTINGS)
    assert said(parse(WORD)) == "mine"
    assert said(parse(ServerEvent(data="x"))) == "theirs"


@pytest.mark.parametrize("wrong", ["text", 7, [], (1,), {}, (llmopt.ChatEvent(), None)])
def test_a_wrong_value_names_plugin_and_hook(wrong: object) -> None:
    """Whatever it is."""
    parse = ProviderHooks("p", plugin(lambda event: wrong)).stream_parser(CALL, SETTINGS)
    with pytest.raises(llmopt.PluginContractError, match=r"'p'.*parse_stream_event"):
        parse(WORD)


def test_a_hook_that_raises() -> None:
    """llmopt's own errors pass; any other is the plugin's fault."""

    def refuse(event: ServerEvent) -> None:
        raise llmopt.InvalidResponse("mine")

    def fail(event: ServerEvent) -> None:
        raise KeyError("theirs")

    with pytest.raises(llmopt.InvalidResponse, match="mine"):
        ProviderHooks("p", plugin(refuse)).stream_parser(CALL, SETTINGS)(WORD)
    with pytest.raises(llmopt.PluginContractError, match="raised KeyError"):
        ProviderHooks("p", plugin(fail)).stream_parser(CALL, SETTINGS)(WORD)
