"""Lists of models."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.testing.kit.asking import Asked
from llmopt.testing.kit.check import CheckFailed, Family, NotApplicable, expect, explain
from llmopt.testing.kit.junk import ANSWERS, HTML, altered
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.texts import strings
from llmopt.testing.kit.types import type_faults
from llmopt.testing.samples import SampleError, SamplePage
from llmopt.values.calls import CatalogCall
from llmopt.values.catalog import CatalogPage
from llmopt.values.failure import Failure

check: Final = Family("catalog")

_MODELS: Final = ("kit-embed-small", "org/kit-embed:large", "kit-chat")
_CURSOR: Final = "a b&c=d/e?f#g+%41"


def _parse(subject: Subject, body: bytes) -> Any:
    """What the plugin reads: a page, a failure, or the InvalidResponse it raises."""
    subject.without("catalog")
    try:
        return subject.hooks.parse_catalog(subject.answer(body), subject.settings())
    except InvalidResponse as error:
        return error


def _page(subject: Subject, body: bytes) -> CatalogPage:
    found = _parse(subject, body)
    if isinstance(found, CatalogPage):
        faults = type_faults(found)
        expect(not faults, "\n".join(faults))
        return found
    word = explain(found) if isinstance(found, BaseException) else f"a {type(found).__name__}"
    raise CheckFailed(f"parse_catalog gave {word}.", "a CatalogPage.")


def _listed(subject: Subject, *entries: object) -> bytes:
    """A list in the common dialect with some entries."""
    if subject.samples.catalog is not None:
        raise NotApplicable("the plugin's lists have a format of their own")
    return json.dumps({"object": "list", "data": entries}).encode()


def _ids(page: CatalogPage) -> list[str]:
    return [model.id for model in page.models]


@check("models")
def _models(subject: Subject) -> None:
    """All models of a list are read, in its order."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=_MODELS)))
    expect(_ids(page) == list(_MODELS), f"of {list(_MODELS)} it read {_ids(page)}.")


@check("types")
def _types(subject: Subject) -> None:
    """Every field of a Model is of its own type, and no id is empty."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=_MODELS)))
    expect(all(_ids(page)), "a model has an empty id.")


@check("bare-list")
def _bare_list(subject: Subject) -> None:
    """A bare list is read like one in an object; both occur in the common dialect."""
    _listed(subject)
    page = _page(subject, json.dumps([{"id": model} for model in _MODELS]).encode())
    expect(_ids(page) == list(_MODELS), f"of {list(_MODELS)} it read {_ids(page)}.")


@check("empty")
def _empty(subject: Subject) -> None:
    """A list without models is an empty page, and the last one."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=())))
    expect(not page.models and page.next_cursor is None, f"it became {page}.")


@check("malformed-entries")
def _malformed_entries(subject: Subject) -> None:
    """An entry that cannot be read spoils only itself."""
    bad: list[object] = [None, 7, "kit", [], {}, {"id": None}, {"id": 7}, {"id": ["x"]}, {"object": "model"}]
    body = _listed(subject, {"id": "kit-a"}, *bad, {"id": "kit-b"})
    found = _ids(_page(subject, body))
    expect(
        "kit-a" in found and "kit-b" in found, f"between bad entries stood kit-a and kit-b; it read {found}."
    )


@check("odd-fields")
def _odd_fields(subject: Subject) -> None:
    """Fields that are new or of an unexpected type spoil nothing."""
    odd = {
        "id": "kit-a", "object": 5, "created": "yesterday", "owned_by": None, "context_length": -1,
        "max_model_len": "4096", "capabilities": [1], "aliases": "kit", "meta": None, "shutdown_date": 7,
        "deprecation": ["x"], "name": {"x": 1}, "kit_new": {"deep": [None]}, "root": 1, "parent": [],
    }  # fmt: skip
    page = _page(subject, _listed(subject, odd, {"id": "kit-b"}))
    expect("kit-b" in _ids(page), f"the entry after an odd one is lost; it read {_ids(page)}.")


@check("many")
def _many(subject: Subject) -> None:
    """A long list is read whole: 5,000 models."""
    names = tuple(f"kit-model-{number}" for number in range(5_000))
    found = _parse(subject, subject.dialect.catalog(SamplePage(models=names)))
    count = len(found.models) if isinstance(found, CatalogPage) else 0
    expect(count == len(names), f"of {len(names)} models it read {count}.")


@check("last-page")
def _last_page(subject: Subject) -> None:
    """A list without a cursor is the last page."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=_MODELS)))
    expect(page.next_cursor is None, f"next_cursor is {page.next_cursor!r}, so that the list has no end.")


@check("cursor")
def _cursor(subject: Subject) -> None:
    """The cursor of a page is asked for with the next one, unchanged: escaped in a query."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=_MODELS, cursor=_CURSOR)))
    if page.next_cursor is None:
        raise NotApplicable("the plugin's lists have one page")
    expect(page.next_cursor == _CURSOR, f"the cursor {_CURSOR!r} became {page.next_cursor!r}.")
    asked = Asked(subject, CatalogCall(cursor=_CURSOR))
    asked.checked()
    queried = [value for values in parse_qs(urlsplit(asked.url).query).values() for value in values]
    expect(
        _CURSOR in {*queried, *strings(asked.body)},
        f"the request for the page {_CURSOR!r} does not name it: {asked.request.path[:80]!r}.",
    )


@check("failure-under-200")
def _failure_under_200(subject: Subject) -> None:
    """A 2xx that carries an error is a Failure, or raises InvalidResponse: it is no empty list."""
    found = _parse(subject, subject.dialect.error(SampleError(status=200, message="it failed")))
    expect(isinstance(found, (Failure, InvalidResponse)), f"an error under status 200 became {found}.")


@check("html")
def _html(subject: Subject) -> None:
    """A gateway's page of HTML under status 200 is refused."""
    found = _parse(subject, HTML)
    expect(isinstance(found, (Failure, InvalidResponse)), f"a page of HTML became {found}.")


@check("nonsense")
def _nonsense(subject: Subject) -> None:
    """Whatever comes, parse_catalog gives a page or a Failure, or raises InvalidResponse: it never crashes."""
    for label, body in ANSWERS:
        _survives(subject, label, body)


@check("altered")
def _altered(subject: Subject) -> None:
    """A right list with any one value replaced or left out never makes parse_catalog crash."""
    for label, body in altered(subject.dialect.catalog(SamplePage(models=_MODELS[:2], cursor="next"))):
        _survives(subject, f"a list with {label}", body)


def _survives(subject: Subject, label: str, body: bytes) -> None:
    try:
        found = _parse(subject, body)
    except LLMOptError as error:
        raise CheckFailed(f"for {label}: {explain(error)}") from None
    if isinstance(found, CatalogPage):
        faults = type_faults(found)
        expect(not faults, f"for {label}: {'; '.join(faults)}")
