"""Answers with a list of models: from bytes to entries, each by itself, so that a bad one spoils only itself."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.providers.entries import model_from_raw
from llmopt.values.catalog import CatalogPage
from llmopt.values.http import HttpResponse

_BRACKET: Final = b"["


class _Answer(msgspec.Struct):
    """What stands around the list. Its entries are only split from each other."""

    data: list[msgspec.Raw] | None = None
    models: list[msgspec.Raw] | None = None
    error: Any = None
    has_more: Any = None
    last_id: Any = None


_answer: Final = msgspec.json.Decoder(_Answer)
_entries: Final = msgspec.json.Decoder(list[msgspec.Raw])


def read_page(response: HttpResponse, provider: str) -> CatalogPage | None:
    """The models of ``{"data": [...]}``, ``{"models": [...]}`` or a bare list.

    Returns:
        The page; None when the object carries a true ``error``.

    Raises:
        InvalidResponse: the answer holds no list.
    """
    body = response.body
    try:
        if (body[:64].lstrip() or body.lstrip())[:1] == _BRACKET:
            return _page(_entries.decode(body), provider)
        answer = _answer.decode(body)
        if answer.error:
            return None
        listed = answer.models if answer.data is None else answer.data
        if listed is not None:
            return _page(listed, provider, _cursor(answer))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # It raises if it is no JSON, and says in what way.
        value = response.json
        if isinstance(value, dict) and value.get("error"):
            return None
    raise InvalidResponse("the answer holds no list of models.", reason="json", sent="yes")


def _page(raws: list[msgspec.Raw], provider: str, cursor: str | None = None) -> CatalogPage:
    models = tuple([model for raw in raws if (model := model_from_raw(raw, provider)) is not None])
    return CatalogPage(models=models, next_cursor=cursor, dropped=len(raws) - len(models))


def _cursor(answer: _Answer) -> str | None:
    return answer.last_id if answer.has_more is True and isinstance(answer.last_id, str) else None
