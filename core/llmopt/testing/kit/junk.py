"""Answers that are wrong: what servers, gateways and broken connections send instead of the right one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, Final

HTML: Final = (
    b"<!DOCTYPE html><html><head><title>Bad gateway</title></head>"
    b"<body><h1>The upstream did not answer</h1></body></html>"
)
ANSWERS: Final[tuple[tuple[str, bytes], ...]] = (
    ("an empty body", b""),
    ("a page of HTML", HTML),
    ("a line of text", b"upstream connect error"),
    ("null", b"null"),
    ("a number", b"7"),
    ("a text", b'"ok"'),
    ("an empty object", b"{}"),
    ("an empty list", b"[]"),
    ("a list of nulls", b"[null, null]"),
    ("an unknown object", b'{"status": "ok", "result": {"deep": [1, 2]}}'),
    ("JSON that stops", b'{"object": "list", "data": [{"index": 0, "embed'),
    ("not UTF-8", b'{"data": "\xff\xfe"}'),
    ("control characters", b"\x00\x01\x02"),
    ("a byte order mark", b"\xef\xbb\xbf{}"),
    ("100,000 brackets", b"[" * 100_000),
    ("100,000 nested lists", b"[" * 100_000 + b"]" * 100_000),
    ("100,000 nested objects", b'{"data":' * 100_000 + b"1" + b"}" * 100_000),
    ("two values", b'{"data": []}{"data": []}'),
    ("NaN", b'{"data": NaN}'),
)
"""Bodies that hold neither vectors nor models, and what to call them."""

_WRONG: Final[tuple[Any, ...]] = (None, True, -1, 10**30, "kit", [], {}, [[]], [None], {"kit": None})


def altered(body: bytes) -> Iterator[tuple[str, bytes]]:
    """A right answer with one value replaced by a wrong one or left out, in every way; and where it was."""
    try:
        right = json.loads(body)
    except ValueError:
        return
    for path in list(_paths(right)):
        for wrong in _WRONG:
            changed = copy.deepcopy(right)
            _parent(changed, path)[path[-1]] = wrong
            yield f"{_shown(path)} = {json.dumps(wrong)}", json.dumps(changed).encode()
        changed = copy.deepcopy(right)
        del _parent(changed, path)[path[-1]]
        yield f"{_shown(path)} left out", json.dumps(changed).encode()


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (key,)
        yield from ((key, *rest) for rest in _paths(inner))


def _parent(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path[:-1]:
        value = value[step]
    return value


def _shown(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
