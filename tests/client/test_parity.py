"""The synchronous client mirrors the asynchronous one: names, parameters, defaults, kinds."""

from __future__ import annotations

import inspect

import pytest

import llmopt

RENAMED = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(value)
        for name, value in inspect.getmembers(kind, inspect.isfunction)
        if value.__module__.startswith("llmopt.client") and (not name.startswith("_") or name == "__init__")
    }


def test_the_same_methods() -> None:
    """Nothing is missing on either side."""
    assert {RENAMED.get(name, name) for name in public(llmopt.AsyncClient)} == set(public(llmopt.Client))


@pytest.mark.parametrize("name", sorted(public(llmopt.AsyncClient)))
def test_the_same_parameters(name: str) -> None:
    """In the same order, of the same kind, with the same defaults."""
    asynchronous = public(llmopt.AsyncClient)[name].parameters
    synchronous = public(llmopt.Client)[RENAMED.get(name, name)].parameters
    assert [(each.name, each.kind, each.default) for each in asynchronous.values()] == [
        (each.name, each.kind, each.default) for each in synchronous.values()
    ]
