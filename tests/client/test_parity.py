"""The synchronous client mirrors the asynchronous one: names, parameters, defaults, kinds."""

from __future__ import annotations

import inspect

import attrs
import pytest

import llmopt
from llmopt.operations.call_options import ChatOptions, EmbedOptions

RENAMED = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(value)
        for name, value in inspect.getmembers(kind, inspect.isfunction)
        if value.__module__.startswith("llmopt.client") and (not name.startswith("_") or name == "__init__")
    }


def test_both_clients_have_the_same_methods() -> None:
    """Nothing is missing on either side."""
    assert {RENAMED.get(name, name) for name in public(llmopt.AsyncClient)} == set(public(llmopt.Client))


@pytest.mark.parametrize("name", sorted(public(llmopt.AsyncClient)))
def test_both_clients_have_the_same_parameters(name: str) -> None:
    """In the same order, of the same kind, with the same defaults."""
    asynchronous = public(llmopt.AsyncClient)[name].parameters
    synchronous = public(llmopt.Client)[RENAMED.get(name, name)].parameters
    assert [(each.name, each.kind, each.default) for each in asynchronous.values()] == [
        (each.name, each.kind, each.default) for each in synchronous.values()
    ]


@pytest.mark.parametrize("name", ["embed", "embed_iter", "chat", "stream"])
def test_the_same_options(name: str) -> None:
    """The keyword arguments of a method are the fields of its options, in order, with the same defaults."""
    if name.startswith("embed"):
        fields = list(EmbedOptions._field_defaults.items())
    else:
        fields = [(each.name, each.default) for each in attrs.fields(ChatOptions)]
    arguments = [
        (each.name, each.default)
        for each in public(llmopt.AsyncClient)[name].parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY and each.name != "buffer_size"
    ]
    if name == "embed_iter":
        fields[fields.index(("when_open", "fail"))] = ("when_open", "wait")
        fields[fields.index(("priority", "interactive"))] = ("priority", "bulk")
        fields.append(("order", "input"))
    assert arguments == fields


def test_a_chat_call_has_every_option() -> None:
    """What a client can be told of a chat is a field of the request, but for what concerns the call as a whole."""
    options = {each.name for each in attrs.fields(ChatOptions)} - {"deadline", "when_open", "priority"}
    assert options <= {each.name for each in attrs.fields(llmopt.ChatCall)}
