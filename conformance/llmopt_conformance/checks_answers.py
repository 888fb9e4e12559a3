"""Checks of embeddings responses, model lists and limits."""

from __future__ import annotations

import json
import math
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from attrs import evolve

from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.testing.dialect import SampleError, SamplePage, SampleRows, single
from llmopt.testing.harness import encode_request, origin, vectors_in_order
from llmopt.values.calls import (
    BatchLimit,
    Call,
    CatalogCall,
    ChatCall,
    EmbedCall,
    RateLimit,
    RateLimits,
    RequestCost,
)
from llmopt.values.catalog import CatalogPage
from llmopt.values.embeddings import EmbeddedRows, Usage
from llmopt.values.http import Failure
from llmopt_conformance.fixtures import (
    ANSWERS,
    HTML,
    REFUSED,
    BuiltRequest,
    altered,
    count_of,
    never_accepted,
    parse,
    refuses,
    rows_of,
    several,
    vectors,
    word,
)
from llmopt_conformance.subject import (
    KEY,
    CheckFailed,
    Family,
    NotApplicable,
    Subject,
    expect,
    explain,
    strings,
    type_faults,
)

embeddings_checks: Final = Family("embeddings")


@embeddings_checks("numbers")
def _numbers(subject: Subject) -> None:
    """Vectors that come as lists of numbers are read exactly."""
    answer = rows_of(count_of(subject))
    expect(vectors(subject, answer) == [row for _, row in answer.rows], "the vectors are other ones.")


@embeddings_checks("base64")
def _base64(subject: Subject) -> None:
    """A plugin that asks for base64 reads base64: float32, little-endian."""
    subject.without("embeddings")
    body = BuiltRequest(subject, subject.embed_call()).body
    if not subject.samples.common or not isinstance(body, dict) or body.get("encoding_format") != "base64":
        raise NotApplicable("the plugin does not ask for base64")
    answer = rows_of(count_of(subject))
    found = vectors(subject, answer, base64=True)
    expect(found == [row for _, row in answer.rows], "the vectors are other ones.")


@embeddings_checks("shape")
def _shape(subject: Subject) -> None:
    """EmbeddedRows holds float32 vectors, one row each, and int64 indices or None."""
    answer = rows_of(count_of(subject))
    found = parse(subject, subject.dialect.embeddings(answer))
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {word(found)} for a right answer.")
    expect(str(found.vectors.dtype) == "float32", f"vectors are {found.vectors.dtype}.")
    expect(found.vectors.shape == (len(answer.rows), 4), f"the shape is {found.vectors.shape}.")
    expect(found.indices is None or str(found.indices.dtype) == "int64", "indices are not int64.")


@embeddings_checks("one-text")
def _one_text(subject: Subject) -> None:
    """An answer with a single vector is read."""
    answer = rows_of(1)
    found = parse(subject, subject.dialect.embeddings(answer), count=1)
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {word(found)}.")
    expect(single(vectors_in_order(found, 1)[0].tolist()) == answer.rows[0][1], "the vector is another one.")


@embeddings_checks("order")
def _order(subject: Subject) -> None:
    """Vectors that come in another order are put in their places by their index."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    answer = rows_of(several(subject))
    found = vectors(subject, answer, rows=answer.rows[::-1])
    expect(
        found == [row for _, row in answer.rows], "the vectors are at the wrong texts: the index is not used."
    )


@embeddings_checks("usage")
def _usage(subject: Subject) -> None:
    """The tokens that an answer reports are read, and none are made up."""
    found = parse(subject, subject.dialect.embeddings(evolve(rows_of(count_of(subject)), tokens=41)))
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {word(found)} for a right answer.")
    usage: Usage | None = found.usage
    if usage is None and not subject.samples.common:
        return
    expect(usage is not None and usage.total_tokens == 41, f"41 tokens were reported, usage is {usage}.")


@embeddings_checks("large")
def _large(subject: Subject) -> None:
    """A large answer is read as a small one: 3,072 dimensions."""
    answer = rows_of(count_of(subject), 3_072)
    expect(vectors(subject, answer) == [row for _, row in answer.rows], "the vectors are other ones.")


# Malformed embeddings responses: each is an error.

refusals_checks: Final = Family("embeddings")


@refusals_checks("too-few")
def _too_few(subject: Subject) -> None:
    """An answer with a vector too few never passes for a right one."""
    never_accepted(subject, rows_of(count_of(subject) - 1), "a vector too few")


@refusals_checks("too-many")
def _too_many(subject: Subject) -> None:
    """An answer with a vector too many never passes for a right one."""
    never_accepted(subject, rows_of(count_of(subject) + 1), "a vector too many")


@refusals_checks("index-twice")
def _index_twice(subject: Subject) -> None:
    """An answer that names one index twice never passes for a right one."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    rows = rows_of(several(subject)).rows
    never_accepted(subject, SampleRows(rows=(rows[0], (rows[0][0], rows[1][1]), *rows[2:])), "an index twice")


@refusals_checks("index-out-of-range")
def _index_out_of_range(subject: Subject) -> None:
    """An answer whose indices do not begin at 0 never passes for a right one."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    rows = rows_of(several(subject)).rows
    shifted = tuple((index + 1, row) for index, row in rows)
    never_accepted(subject, SampleRows(rows=shifted), "indices that begin at 1")


@refusals_checks("ragged")
def _ragged(subject: Subject) -> None:
    """An answer with vectors of different lengths never passes for a right one."""
    rows = rows_of(several(subject)).rows
    never_accepted(subject, SampleRows(rows=(*rows[:-1], (rows[-1][0], (1.0,)))), "vectors of two lengths")


@refusals_checks("empty-vectors")
def _empty_vectors(subject: Subject) -> None:
    """An answer with vectors without numbers never passes for a right one."""
    rows = tuple((index, ()) for index in range(count_of(subject)))
    never_accepted(subject, SampleRows(rows=rows), "empty vectors")


@refusals_checks("not-finite")
def _not_finite(subject: Subject) -> None:
    """An answer with NaN or infinity among its numbers never passes for a right one."""
    good = subject.dialect.embeddings(
        SampleRows(rows=tuple((i, (0.5, 0.25)) for i in range(count_of(subject))))
    )
    for number in (b"NaN", b"Infinity", b"1e999", b"null"):
        refuses(subject, good.replace(b"0.25", number), f"the number {number.decode()}")


@refusals_checks("failure-under-200")
def _refusals_failure_under_200(subject: Subject) -> None:
    """A 2xx that carries an error is a Failure, or raises InvalidResponse; it never has vectors."""
    found = parse(subject, subject.dialect.error(SampleError(status=200, message="the model failed")))
    expect(not isinstance(found, EmbeddedRows), "an error under status 200 passes for vectors.", REFUSED)
    if isinstance(found, Failure):
        verdict = subject.hooks.classify_error(found, subject.settings())
        expect(verdict.kind is not None, "the failure has no verdict.")


@refusals_checks("html")
def _refusals_html(subject: Subject) -> None:
    """A gateway's page of HTML under status 200 is refused."""
    refuses(subject, HTML, "a page of HTML instead of JSON")


@refusals_checks("nonsense")
def _refusals_nonsense(subject: Subject) -> None:
    """Whatever comes, parse_embeddings gives rows or a Failure, or raises InvalidResponse: it never crashes."""
    for label, body in ANSWERS:
        try:
            refuses(subject, body, label)
        except LLMOptError as error:
            raise CheckFailed(f"for {label}: {explain(error)}", REFUSED) from None


@refusals_checks("altered")
def _refusals_altered(subject: Subject) -> None:
    """A right answer with any one value replaced or left out never makes parse_embeddings crash."""
    body = subject.dialect.embeddings(rows_of(count_of(subject), 2))
    for label, changed in altered(body):
        try:
            found = parse(subject, changed)
        except LLMOptError as error:
            raise CheckFailed(f"for an answer with {label}: {explain(error)}", REFUSED) from None
        expect(isinstance(found, (EmbeddedRows, Failure, InvalidResponse)), f"for {label}: {word(found)}")


@refusals_checks("cut-off")
def _cut_off(subject: Subject) -> None:
    """An answer that stops in the middle is refused, wherever it stops."""
    body = subject.dialect.embeddings(rows_of(count_of(subject), 2))
    for end in range(0, len(body) - 1, 7):
        try:
            json.loads(body[:end])
        except ValueError:
            refuses(subject, body[:end], f"its last {len(body) - end} bytes missing")


# Lists of models.

catalog_checks: Final = Family("catalog")
_CATALOG_MODELS: Final = ("kit-embed-small", "org/kit-embed:large", "kit-chat")
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


@catalog_checks("models")
def _models(subject: Subject) -> None:
    """All models of a list are read, in its order."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=_CATALOG_MODELS)))
    expect(_ids(page) == list(_CATALOG_MODELS), f"of {list(_CATALOG_MODELS)} it read {_ids(page)}.")


@catalog_checks("types")
def _catalog_types(subject: Subject) -> None:
    """Every field of a Model is of its own type, and no id is empty."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=_CATALOG_MODELS)))
    expect(all(_ids(page)), "a model has an empty id.")


@catalog_checks("bare-list")
def _bare_list(subject: Subject) -> None:
    """A bare list is read like one in an object; both occur in the common dialect."""
    _listed(subject)
    page = _page(subject, json.dumps([{"id": model} for model in _CATALOG_MODELS]).encode())
    expect(_ids(page) == list(_CATALOG_MODELS), f"of {list(_CATALOG_MODELS)} it read {_ids(page)}.")


@catalog_checks("empty")
def _empty(subject: Subject) -> None:
    """A list without models is an empty page, and the last one."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=())))
    expect(not page.models and page.next_cursor is None, f"it became {page}.")


@catalog_checks("malformed-entries")
def _malformed_entries(subject: Subject) -> None:
    """An entry that cannot be read spoils only itself."""
    bad: list[object] = [None, 7, "kit", [], {}, {"id": None}, {"id": 7}, {"id": ["x"]}, {"object": "model"}]
    body = _listed(subject, {"id": "kit-a"}, *bad, {"id": "kit-b"})
    found = _ids(_page(subject, body))
    expect(
        "kit-a" in found and "kit-b" in found, f"between bad entries stood kit-a and kit-b; it read {found}."
    )


@catalog_checks("odd-fields")
def _odd_fields(subject: Subject) -> None:
    """Fields that are new or of an unexpected type spoil nothing."""
    odd = {
        "id": "kit-a", "object": 5, "created": "yesterday", "owned_by": None, "context_length": -1,
        "max_model_len": "4096", "capabilities": [1], "aliases": "kit", "meta": None, "shutdown_date": 7,
        "deprecation": ["x"], "name": {"x": 1}, "kit_new": {"deep": [None]}, "root": 1, "parent": [],
    }  # fmt: skip
    page = _page(subject, _listed(subject, odd, {"id": "kit-b"}))
    expect("kit-b" in _ids(page), f"the entry after an odd one is lost; it read {_ids(page)}.")


@catalog_checks("many")
def _many(subject: Subject) -> None:
    """A long list is read whole: 5,000 models."""
    names = tuple(f"kit-model-{number}" for number in range(5_000))
    found = _parse(subject, subject.dialect.catalog(SamplePage(models=names)))
    count = len(found.models) if isinstance(found, CatalogPage) else 0
    expect(count == len(names), f"of {len(names)} models it read {count}.")


@catalog_checks("last-page")
def _last_page(subject: Subject) -> None:
    """A list without a cursor is the last page."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=_CATALOG_MODELS)))
    expect(page.next_cursor is None, f"next_cursor is {page.next_cursor!r}, so that the list has no end.")


@catalog_checks("cursor")
def _cursor(subject: Subject) -> None:
    """The cursor of a page is asked for with the next one, unchanged: escaped in a query."""
    page = _page(subject, subject.dialect.catalog(SamplePage(models=_CATALOG_MODELS, cursor=_CURSOR)))
    if page.next_cursor is None:
        raise NotApplicable("the plugin's lists have one page")
    expect(page.next_cursor == _CURSOR, f"the cursor {_CURSOR!r} became {page.next_cursor!r}.")
    asked = BuiltRequest(subject, CatalogCall(cursor=_CURSOR))
    asked.checked()
    queried = [value for values in parse_qs(urlsplit(asked.url).query).values() for value in values]
    expect(
        _CURSOR in {*queried, *strings(asked.body)},
        f"the request for the page {_CURSOR!r} does not name it: {asked.request.path[:80]!r}.",
    )


@catalog_checks("failure-under-200")
def _failure_under_200(subject: Subject) -> None:
    """A 2xx that carries an error is a Failure, or raises InvalidResponse: it is no empty list."""
    found = _parse(subject, subject.dialect.error(SampleError(status=200, message="it failed")))
    expect(isinstance(found, (Failure, InvalidResponse)), f"an error under status 200 became {found}.")


@catalog_checks("html")
def _html(subject: Subject) -> None:
    """A gateway's page of HTML under status 200 is refused."""
    found = _parse(subject, HTML)
    expect(isinstance(found, (Failure, InvalidResponse)), f"a page of HTML became {found}.")


@catalog_checks("nonsense")
def _nonsense(subject: Subject) -> None:
    """Whatever comes, parse_catalog gives a page or a Failure, or raises InvalidResponse: it never crashes."""
    for label, body in ANSWERS:
        _survives(subject, label, body)


@catalog_checks("altered")
def _altered(subject: Subject) -> None:
    """A right list with any one value replaced or left out never makes parse_catalog crash."""
    for label, body in altered(
        subject.dialect.catalog(SamplePage(models=_CATALOG_MODELS[:2], cursor="next"))
    ):
        _survives(subject, f"a list with {label}", body)


def _survives(subject: Subject, label: str, body: bytes) -> None:
    try:
        found = _parse(subject, body)
    except LLMOptError as error:
        raise CheckFailed(f"for {label}: {explain(error)}") from None
    if isinstance(found, CatalogPage):
        faults = type_faults(found)
        expect(not faults, f"for {label}: {'; '.join(faults)}")


# Limits of one request, and limits that responses state.

limits_checks: Final = Family("limits")
_MODELS: Final = ("kit-model", "org/kit-model", "Z\u00fcrich", "x" * 300, "a b?c#d&e=f")
_HEADERS: Final[tuple[dict[str, str], ...]] = (
    {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"},
    {"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "nan", "x-ratelimit-reset-tokens": "1e999"},
    {"ratelimit": '"api";r=999;t=295', "retry-after": "soon"},
    {"x-ratelimit-remaining-requests": "5, 6", "x-ratelimit-reset-requests": ""},
    {"x-ratelimit-limit-requests": "9" * 400, "x-ratelimit-reset-tokens": "\u0663s"},
)  # fmt: skip


def _limit(subject: Subject, model: str = "kit-model") -> BatchLimit:
    call = EmbedCall(model=model)
    return subject.hooks.batch_limit(call, subject.settings())


@limits_checks("types")
def _types(subject: Subject) -> None:
    """batch_limit returns a BatchLimit of whole numbers above 0, or None for what is not known."""
    faults = type_faults(_limit(subject))
    expect(not faults, "\n".join(faults))


@limits_checks("consistent")
def _consistent(subject: Subject) -> None:
    """A text that is allowed alone is allowed in a request: max_item_tokens is at most max_tokens."""
    found = _limit(subject)
    if found.max_item_tokens is None or found.max_tokens is None:
        raise NotApplicable("one of the two is not known")
    expect(
        found.max_item_tokens <= found.max_tokens,
        f"max_item_tokens is {found.max_item_tokens}, max_tokens is {found.max_tokens}.",
    )


@limits_checks("any-model")
def _any_model(subject: Subject) -> None:
    """batch_limit answers for any model, also one that nobody knows."""
    for model in _MODELS:
        faults = type_faults(_limit(subject, model))
        expect(not faults, f"for the model {model[:40]!r}: {'; '.join(faults)}")


@limits_checks("question")
def _question(subject: Subject) -> None:
    """limits_request asks the endpoint itself, with the key in a header only; None where there is nothing to ask."""
    settings = subject.settings()
    found = subject.hooks.limits_request(_call(subject), settings)
    if found is None:
        raise NotApplicable("the plugin does not ask the server for limits")
    sent = encode_request(found, settings)
    expect(origin(sent.url) == origin(settings.base_url), f"it goes to {origin(sent.url)}.")
    expect(
        KEY not in sent.url and KEY.encode() not in (sent.body or b""), "the key is in the URL or the body."
    )


@limits_checks("asked-of-server")
def _asked_of_server(subject: Subject) -> None:
    """What a server answers to limits_request is a BatchLimit; nonsense is BatchLimit(), never a crash."""
    if not subject.implements("parse_limits"):
        raise NotApplicable("the plugin does not ask the server for limits")
    for label, body in ANSWERS:
        found = subject.hooks.parse_limits(_call(subject), subject.answer(body), subject.settings())
        faults = type_faults(found)
        expect(not faults, f"for {label}: {'; '.join(faults)}")


def _call(subject: Subject) -> EmbedCall:
    return EmbedCall(model=subject.samples.model)


@limits_checks("rate-types")
def _rate_types(subject: Subject) -> None:
    """rate_limits returns RateLimits of numbers, or None where an answer is silent."""
    for headers in _HEADERS:
        found = subject.hooks.rate_limits(subject.answer(b"{}", headers=headers), subject.settings())
        faults = type_faults(found)
        expect(not faults, "\n".join(faults))


@limits_checks("rate-sane")
def _rate_sane(subject: Subject) -> None:
    """Whatever the headers hold, no limit is negative or not finite: nonsense is taken for absent."""
    for headers in _HEADERS:
        found = subject.hooks.rate_limits(subject.answer(b"{}", headers=headers), subject.settings())
        for limit in (found.requests, found.tokens, found.output_tokens):
            expect(_sane(limit), f"{headers} became {limit}.")


def _sane(limit: RateLimit | None) -> bool:
    if limit is None:
        return True
    numbers = (limit.limit, limit.remaining, limit.reset_s, limit.window_s)
    return all(number is None or (math.isfinite(number) and number >= 0) for number in numbers)


@limits_checks("cost")
def _cost(subject: Subject) -> None:
    """request_cost returns a RequestCost of finite numbers for any call; more texts never cost less."""
    if not subject.implements("request_cost"):
        raise NotApplicable("a request counts as one request, with the tokens that llmopt estimates")
    before = RequestCost(requests=0, tokens=0, output_tokens=0)
    for count in (1, 2, 50):
        found = _cost_of(subject, subject.embed_call(count))
        for name in ("requests", "tokens", "output_tokens"):
            cost, less = getattr(found, name), getattr(before, name)
            expect(
                cost is None or less is None or cost >= less,
                f"{count} texts have {name}={cost}, fewer {less}.",
            )
        before = found
    _cost_of(subject, CatalogCall())
    _cost_of(subject, ChatCall(model=subject.samples.model, messages=({"role": "user", "content": "hello"},)))


def _cost_of(subject: Subject, call: Call) -> RequestCost:
    found = subject.hooks.request_cost(call, subject.settings())
    for number in (found.requests, found.tokens, found.output_tokens):
        expect(number is None or math.isfinite(number), f"of a {type(call).__name__}: {found}.")
    return found


@limits_checks("rate-silence")
def _rate_silence(subject: Subject) -> None:
    """An answer without any such header tells nothing, whatever its status."""
    for status in (200, 429, 500):
        found = subject.hooks.rate_limits(subject.answer(b"{}", status=status), subject.settings())
        expect(found == RateLimits(), f"status {status} alone became {found}.")
