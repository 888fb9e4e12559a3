"""Comparing whatever hooks take and give: values, arrays, errors, functions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs

from llmopt.errors import LLMOptError
from llmopt.values.failure import Failure
from llmopt.values.http import HttpRequest, HttpResponse
from llmopt.values.secret import Secret

_PLAIN = (str, bytes, int, float, bool, type(None), Secret, type)


def fingerprint(value: Any) -> Any:
    """A plain value that is equal for equal values, whatever they are made of.

    Of what a hook may return but nobody can compare, a function or a transport, only the type counts.
    """
    if isinstance(value, _PLAIN):
        return repr(value) if isinstance(value, float) else value
    if isinstance(value, BaseException):
        return type(value).__name__, str(value)
    if attrs.has(type(value)):
        return _of_fields(value)
    if isinstance(value, Mapping):
        return [(fingerprint(key), fingerprint(inner)) for key, inner in value.items()]
    return _of_collection(value)


def _of_collection(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [fingerprint(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        return str(value.dtype), tuple(value.shape), value.tobytes()
    return type(value).__qualname__


def _of_fields(value: Any) -> Any:
    found = {
        each.name: fingerprint(getattr(value, each.name))
        for each in attrs.fields(type(value))
        if each.name != "received"
    }
    # What they have worked out once is theirs as well, and must stay as it is.
    if isinstance(value, HttpResponse) and "json" in vars(value):
        found["json"] = fingerprint(value.json)
    if isinstance(value, Failure) and "error" in vars(value):
        found["error"] = fingerprint(value.error)
    return type(value).__name__, found


def work_out(value: Any) -> Any:
    """Make a value work out what it would work out when first asked."""
    if isinstance(value, Failure):
        _ = value.error
    elif isinstance(value, HttpResponse):
        # Some answers are no JSON on purpose.
        with suppress(LLMOptError):
            _ = value.json
    return value


def scribble(value: Any) -> bool:
    """Change what can be changed in a result; whether there was anything."""
    changed = False
    if isinstance(value, HttpRequest):
        for part in (value.headers, value.json):
            if isinstance(part, dict):
                part["x-kit-scribble"] = "added by the kit"
                changed = True
    vectors = getattr(value, "vectors", None)
    if vectors is not None and vectors.flags.writeable:
        vectors.fill(0)
        changed = True
    return changed
