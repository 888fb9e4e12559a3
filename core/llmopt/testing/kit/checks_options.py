"""Requests: what a call may ask for besides texts, and the other kinds of calls."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote, urlsplit

from llmopt.errors import InvalidInput
from llmopt.testing.kit.asking import Asked, chat, refused
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.talking import CHAT_OPTIONS
from llmopt.testing.kit.texts import MESSAGES, TEXTS, scalars, strings
from llmopt.values.calls import CatalogCall, EmbedCall

check: Final = Family("request")

_ODD_MODEL: Final = "org/kit model:8b?x=1&y#z%2F"


def _embed(subject: Subject, **changes: Any) -> Asked:
    subject.without("embeddings")
    return Asked(subject, subject.embed_call(**changes))


@check("model")
def _model(subject: Subject) -> None:
    """The model is named, in the body or in the path."""
    subject.without("embeddings")
    if "model" in subject.samples.ignores:
        raise NotApplicable("the samples say that the provider ignores the model")
    asked = Asked(subject, EmbedCall(model="kit-other-model", texts=TEXTS[:1]))
    expect(
        "kit-other-model" in asked.everything,
        "the model 'kit-other-model' is neither in the body nor in the path.",
    )


@check("model-escaped")
def _model_escaped(subject: Subject) -> None:
    """A model's name with reserved characters arrives unchanged: escaped in a path, as it is in a body."""
    subject.without("embeddings")
    asked = Asked(subject, EmbedCall(model=_ODD_MODEL, texts=TEXTS[:1]))
    asked.checked()
    if "model" in subject.samples.ignores:
        return
    path = unquote(urlsplit(asked.url).path)
    expect(
        _ODD_MODEL in set(strings(asked.body)) or _ODD_MODEL in path,
        f"the model {_ODD_MODEL!r} arrives as another one: {asked.request.path[:80]!r}.",
    )


@check("dimensions")
def _dimensions(subject: Subject) -> None:
    """The number of dimensions asked for is passed on, under whatever name the provider has for it."""
    if "dimensions" in subject.samples.ignores:
        raise NotApplicable("the samples say that the provider ignores dimensions")
    asked = _embed(subject, dimensions=1_357)
    expect(
        1_357 in list(scalars(asked.body)) or "1357" in asked.url, "dimensions=1357 is not in the request."
    )


@check("input-type")
def _input_type(subject: Subject) -> None:
    """Where the input type makes a difference, the provider is told which it is."""
    plain = _embed(subject)
    for kind in ("query", "document"):
        asked = _embed(subject, input_type=kind)
        if asked.body == plain.body and asked.url == plain.url and asked.headers == plain.headers:
            continue
        told = f"{asked.everything}{asked.headers}".lower()
        expect(kind in told or kind != "query", f"input_type={kind!r} changes the request and is not in it.")
        expect("none" not in {str(each).lower() for each in strings(asked.body)}, "'None' is sent as a text.")


@check("extra")
def _extra(subject: Subject) -> None:
    """Extra keys of the call are passed on as given, and win over the plugin's own."""
    if "extra" in subject.samples.ignores:
        raise NotApplicable("the samples say that the provider takes no further keys")
    body = _embed(subject, extra={"kit_extra": {"deep": [1, None, "x"]}}).body
    found = body.get("kit_extra") if isinstance(body, dict) else None
    expect(found == {"deep": [1, None, "x"]}, f"extra={{'kit_extra': ...}} arrives as {found!r}.")


@check("nothing-unasked")
def _nothing_unasked(subject: Subject) -> None:
    """Keys that nobody asked for are left out: strict servers refuse a null."""
    body = _embed(subject).body
    nulls = [key for key, value in body.items() if value is None] if isinstance(body, dict) else []
    expect(not nulls, f"the body holds {', '.join(nulls)} = null.")


@check("catalog")
def _catalog(subject: Subject) -> None:
    """The list of models can be asked for, and says nothing of any text."""
    subject.without("catalog")
    Asked(subject, CatalogCall()).checked()


@check("chat-messages")
def _chat_messages(subject: Subject) -> None:
    """A chat request holds the content of every message once, in order, or is refused by an llmopt error."""
    asked = _chat(subject)
    contents = [message["content"] for message in MESSAGES]
    found = [index for text in strings(asked.body) for index, each in enumerate(contents) if each in text]
    expect(
        found == list(range(len(contents))), f"the contents of {len(contents)} messages arrive as {found}."
    )


@check("chat-stream")
def _chat_stream(subject: Subject) -> None:
    """A streamed chat is asked for otherwise than one that is not."""
    plain, streamed = _chat(subject), _chat(subject, stream=True)
    expect(
        (plain.url, plain.body) != (streamed.url, streamed.body), "stream=True and stream=False are the same."
    )


@check("chat-options")
def _chat_options(subject: Subject) -> None:
    """Each parameter of a chat is passed on, under whatever name, or refused by InvalidInput: never left out."""
    subject.without("chat")
    plain = _chat(subject)
    for name, value in CHAT_OPTIONS.items():
        try:
            asked = Asked(subject, chat(subject, **{name: value}))
        except InvalidInput:
            continue
        expect(
            (asked.url, asked.body) != (plain.url, plain.body),
            f"{name}={value!r} changes nothing in the request.",
        )


@check("chat-numbers")
def _chat_numbers(subject: Subject) -> None:
    """Numbers and texts that a chat asks for arrive as they are."""
    for name in ("max_tokens", "temperature", "top_p", "seed", "stop"):
        try:
            body = _chat(subject, **{name: CHAT_OPTIONS[name]}).body
        except InvalidInput:
            continue
        wanted = CHAT_OPTIONS[name][0] if name == "stop" else CHAT_OPTIONS[name]
        expect(wanted in list(scalars(body)), f"{name}={CHAT_OPTIONS[name]!r} is not in the body.")


@check("chat-extra")
def _chat_extra(subject: Subject) -> None:
    """Extra keys of a chat are passed on as given."""
    if "extra" in subject.samples.ignores:
        raise NotApplicable("the samples say that the provider takes no further keys")
    body = _chat(subject, extra={"kit_extra": {"deep": [1, None, "x"]}}).body
    found = body.get("kit_extra") if isinstance(body, dict) else None
    expect(found == {"deep": [1, None, "x"]}, f"extra={{'kit_extra': ...}} arrives as {found!r}.")


@check("chat-nothing-unasked")
def _chat_nothing_unasked(subject: Subject) -> None:
    """Keys that nobody asked a chat for are left out: strict servers refuse a null."""
    body = _chat(subject).body
    nulls = [key for key, value in body.items() if value is None] if isinstance(body, dict) else []
    expect(not nulls, f"the body holds {', '.join(nulls)} = null.")


def _chat(subject: Subject, **changes: Any) -> Asked:
    subject.without("chat")
    call = chat(subject, **changes)
    if refused(subject, call):
        raise NotApplicable("the plugin says that its provider does not chat")
    return Asked(subject, call)
