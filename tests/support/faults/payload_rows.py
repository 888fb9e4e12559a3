"""Rows P01 to P13 of the fault matrix: JSON with correct framing and wrong content.

The faults of embeddings need a request of at least two different items. P10 is `Crossed`; P12's bodies are `Answer`s.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tests.support.faults.fault import Fault
from tests.support.faults.openai import Payload, answer_openai, embeddings_payload, models_payload
from tests.support.faults.request import Request
from tests.support.faults.response import Answer, json_answer
from tests.support.faults.script import Responder
from tests.support.nightly import scaled

JSON_TYPE = ("content-type", "application/json")
RAW = "@raw:"  # a string that starts so is written without its quotes: JSON that no Python value makes
MANY_MODELS = scaled(10_000, nightly=100_000)
TEN_MEGABYTES = 10_000_000


def changed(change: Callable[[Payload], object], *, encoding: str | None = "float") -> Responder:
    """Return a responder that changes the value of a correct answer in place."""

    def reply(request: Request) -> Answer:
        payload = embeddings_payload(request, encoding=encoding)
        change(payload)
        return Answer(200, written(payload), [JSON_TYPE])

    return reply


def written(payload: object) -> bytes:
    """Write JSON; strings that start with `RAW` are written without quotes."""
    text = json.dumps(payload, separators=(",", ":"))
    return re.sub(rf'"{RAW}([^"]*)"', r"\1", text).encode()


def rewritten(change: Callable[[bytes], bytes]) -> Responder:
    """Return a responder that changes the bytes of a correct body."""
    return lambda request: Answer(200, change(answer_openai(request).body), [JSON_TYPE])


def _items(change: Callable[[list[Any]], object]) -> Responder:
    return changed(lambda payload: change(payload["data"]))


def _set(**fields: object) -> Responder:
    """Set fields of the whole payload."""
    return changed(lambda payload: payload.update(fields))


def _index(value: object) -> Responder:
    """Set the index of the first item."""
    return _items(lambda data: data[0].update(index=value))


def _numbers(*numbers: object) -> Responder:
    """Put values at the front of the first item's vector, without changing its length."""

    def change(data: list[Any]) -> None:
        data[0]["embedding"][: len(numbers)] = numbers

    return _items(change)


def _vector(change: Callable[[Any], object], *, encoding: str = "float", every: bool = False) -> Responder:
    """Replace the vector of the first item, or of every item."""

    def replace(payload: Payload) -> None:
        for item in payload["data"] if every else payload["data"][:1]:
            item["embedding"] = change(item["embedding"])

    return changed(replace, encoding=encoding)


def _floats(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Responder:
    """Replace the first item's vector within its base64."""

    def recoded(text: str) -> str:
        return base64.b64encode(
            change(np.frombuffer(base64.b64decode(text), "<f4").copy()).tobytes()
        ).decode()

    return _vector(recoded, encoding="base64")


def _counts() -> Iterator[Fault]:
    yield Fault("P01", "one item missing", _items(lambda data: data.pop(0)))
    yield Fault("P01", "last item missing", _items(lambda data: data.pop()))
    yield Fault("P01", "one item more", _items(lambda data: data.append(data[0] | {"index": len(data)})))
    yield Fault("P01", "no items", _items(lambda data: data.clear()))
    yield Fault("P02", "reversed", _items(lambda data: data.reverse()))
    yield Fault("P02", "rotated", _items(lambda data: data.append(data.pop(0))))


def _indices() -> Iterator[Fault]:
    odd: dict[str, object] = {"a duplicate": 1, "negative": -1, "too high": 1_000_000, "a string": "0"}
    odd |= {"a float": 0.0, "true": True, "null": None, "huge": 10**30}
    for name, value in odd.items():
        yield Fault("P03", f"index {name}", _index(value))
    yield Fault("P03", "one index missing", _items(lambda data: data[0].pop("index")))
    yield Fault("P03", "no index anywhere", _items(lambda data: [item.pop("index") for item in data]))
    yield Fault("P03", "no index, reversed", _items(lambda data: [item.pop("index") for item in data[::-1]]))


def _vectors() -> Iterator[Fault]:
    odd: dict[str, object] = {
        "NaN": math.nan,
        "Infinity": math.inf,
        "-Infinity": -math.inf,
        "1e999": f"{RAW}1e999",
    }
    odd |= {"1e39, infinite in float32": 1e39, "null": None, "a string": "0.5", "a list": [0.5], "true": True}
    for name, value in odd.items():
        yield Fault("P04", f"{name} in a list", _numbers(value))
    yield Fault("P04", "NaN in base64", _floats(lambda numbers: np.append(numbers[:-1], np.float32(np.nan))))
    yield Fault(
        "P04", "Infinity in base64", _floats(lambda numbers: np.append(numbers[:-1], np.float32(np.inf)))
    )
    yield Fault("P04", "vector is null", _vector(lambda _: None))
    yield Fault("P04", "vector is an object", _vector(lambda _: {"values": []}))
    yield Fault("P05", "one vector shorter", _vector(lambda numbers: numbers[:-1]))
    yield Fault("P05", "one vector longer", _vector(lambda numbers: [*numbers, 0.5]))
    yield Fault("P05", "all vectors shorter", _vector(lambda numbers: numbers[:-1], every=True))
    yield Fault("P05", "all vectors empty", _vector(lambda _: [], every=True))
    yield Fault("P05", "one base64 vector shorter", _floats(lambda numbers: numbers[:-1]))
    yield Fault("P11", "zero vector", _vector(lambda numbers: [0.0] * len(numbers)))
    yield Fault("P11", "constant vectors", _vector(lambda numbers: [0.5] * len(numbers), every=True))


def _base64() -> Iterator[Fault]:
    odd: dict[str, Callable[[str], object]] = {
        "bad alphabet": lambda text: "!" + text[1:],
        "URL alphabet": lambda text: "-_" + text[2:],
        "bad padding": lambda text: text.rstrip("=") + "===",
        "no padding": lambda text: text.rstrip("="),
        "a newline within": lambda text: text[:4] + "\n" + text[4:],
        "one character less": lambda text: text[:-1],
        "three bytes more": lambda text: base64.b64encode(base64.b64decode(text) + b"abc").decode(),
        "empty": lambda _: "",
        "not ASCII": lambda text: "é" + text[1:],
    }
    for name, change in odd.items():
        yield Fault("P06", name, _vector(change, encoding="base64"))
    yield Fault("P06", "big-endian", _floats(lambda numbers: numbers.astype(">f4")))
    yield Fault("P06", "a list whatever was asked", changed(lambda _: None, encoding="float"))
    yield Fault("P06", "base64 whatever was asked", changed(lambda _: None, encoding="base64"))


def _json() -> Iterator[Fault]:
    odd: dict[str, Callable[[bytes], bytes]] = {
        "duplicate keys": lambda body: body[:-1] + b',"data":[]}',
        "nested 100,000 deep": lambda _: b"[" * 100_000 + b"]" * 100_000,
        "5,000 digits": lambda body: body.replace(b'"index":0', b'"index":' + b"9" * 5000, 1),
        "lone surrogate": lambda body: body.replace(b'"model":"', b'"model":"\\ud800', 1),
        "BOM": lambda body: b"\xef\xbb\xbf" + body,
        "not UTF-8": lambda body: body.replace(b'"model":"', b'"model":"\xff\xfe', 1),
        "NUL": lambda body: body.replace(b'"model":"', b'"model":"\0', 1),
        "trailing bytes": lambda body: body + b"}",
        "two values": lambda body: body + body,
        "cut in the middle": lambda body: body[: len(body) // 2],
        "only spaces": lambda _: b"   ",
    }
    for name, change in odd.items():
        yield Fault("P07", name, rewritten(change))
    wholes: list[object] = [[], "text", 1, None]
    for value in wholes:
        yield Fault("P07", f"the value {value!r}", json_answer(value))
    parts: list[object] = [{}, None, "none", 1]
    for value in parts:
        yield Fault("P07", f"data is {value!r}", _set(data=value))


def _figures() -> Iterator[Fault]:
    counts: list[object] = [-1, "12", 10**13, None, 1.5, 0]
    for value in counts:
        usage = {"prompt_tokens": value, "total_tokens": value}
        yield Fault("P08", f"usage of {value!r}", _set(usage=usage))
    yield Fault("P08", "no usage", changed(lambda payload: payload.pop("usage")))
    yield Fault("P08", "usage is a list", _set(usage=[]))
    yield Fault("P09", "another model", _set(model="another-model"))
    yield Fault("P09", "no model", changed(lambda payload: payload.pop("model")))
    yield Fault("P09", "model is null", _set(model=None))


def catalog(models: Iterable[object], **others: object) -> Answer:
    """Return a catalog of these entries, valid or not."""
    return json_answer({"object": "list", "data": list(models), **others})


def _pages(request: Request) -> Answer:
    """Return a page that always announces another page, with the same cursor."""
    return catalog(models_payload()["data"], has_more=True, last_id="same", next_page_token="same")


def _catalogs() -> Iterator[Fault]:
    model = models_payload(["one"])["data"][0]
    yield Fault("P13", "no models", catalog([]))
    yield Fault(
        "P13", "many models", lambda _: json_answer(models_payload(f"m{n}" for n in range(MANY_MODELS)))
    )
    yield Fault("P13", "duplicate ids", catalog([model, model]))
    yield Fault("P13", "unknown fields", catalog([model | {"novel": {"deep": [1, 2]}}], novel=True))
    yield Fault("P13", "missing fields", catalog([{"id": "one"}]))
    yield Fault("P13", "missing id", catalog([{"object": "model"}, model]))
    yield Fault("P13", "entries that are no objects", catalog([None, "one", model]))
    yield Fault("P13", "bare list", json_answer([model]))
    yield Fault("P13", "long description", lambda _: catalog([model | {"description": "a" * TEN_MEGABYTES}]))
    yield Fault("P13", "pages without end", _pages)


PAYLOAD_ROWS = (
    *_counts(),
    *_indices(),
    *_vectors(),
    *_base64(),
    *_json(),
    *_figures(),
    *_catalogs(),
)
