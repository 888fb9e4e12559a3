"""FastAPI's 422: a list of faults, each of which repeats the input, so that the body may be cut in the middle.

Where a fault stands and what it says come before the repeated input (pydantic writes ``type``, ``loc``,
``msg``, ``input``), so that they are there even when the body is no JSON any more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from attrs import frozen

from llmopt import Failure

_SHAPE: Final = re.compile(rb'\s*\{\s*"detail"\s*:\s*\[')
_FAULT: Final = re.compile(
    rb'"loc"\s*:\s*(?P<loc>\[(?:"(?:[^"\\]|\\.)*"|[^"\]])*\])\s*,\s*"msg"\s*:\s*(?P<msg>"(?:[^"\\]|\\.)*")'
)


@frozen(kw_only=True)
class Detail:
    """The first fault.

    Attributes:
        message: position and reason, without the input.
        item: index of the text at fault, None when it is no single text's.
    """

    message: str
    item: int | None


def detail_of(failure: Failure) -> Detail | None:
    """The first fault of a validation error; None for an error of another shape."""
    if failure.status != 422 or not _SHAPE.match(failure.body):
        return None
    listed = failure.error.raw.get("detail")
    fault = listed[0] if isinstance(listed, list) and listed else _cut(failure.body)
    if not isinstance(fault, Mapping):
        return None
    where, said = fault.get("loc"), fault.get("msg")
    if not isinstance(where, list) or not isinstance(said, str):
        return None
    path = ".".join(map(str, where))
    last = where[-1] if where else None
    return Detail(message=f"{path}: {said}"[:500], item=last if type(last) is int else None)


def _cut(body: bytes) -> Mapping[str, Any] | None:
    found = _FAULT.search(body)
    if found is None:
        return None
    return {"loc": _decoded(found["loc"]), "msg": _decoded(found["msg"])}


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
