"""Checks of requests, keys, custom transports and credentials."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote, urlsplit

from attrs import evolve

from llmopt.errors import InvalidInput, LLMOptError
from llmopt.testing.dialect import SampleError
from llmopt.testing.harness import origin
from llmopt.values.calls import CatalogCall, EmbedCall
from llmopt.values.chat import Message, ToolCall
from llmopt.values.http import Failure
from llmopt_conformance.fixtures import (
    CHAT_OPTIONS,
    OF_THE_WIRE,
    TOOL,
    BuiltRequest,
    calls,
    chat,
    header_faults,
    refused,
)
from llmopt_conformance.observe import Watch
from llmopt_conformance.subject import (
    CONFIGURED,
    KEY,
    MESSAGES,
    TEXTS,
    TOKEN,
    Family,
    NotApplicable,
    Subject,
    expect,
    order_of,
    scalars,
    shown,
    strings,
    type_faults,
)

request_checks: Final = Family("request")


def _embed(subject: Subject, **changes: Any) -> BuiltRequest:
    subject.without("embeddings")
    return BuiltRequest(subject, subject.embed_call(**changes))


@request_checks("types")
def _types(subject: Subject) -> None:
    """build_request returns an HttpRequest, each field of its own type."""
    for call in calls(subject):
        faults = type_faults(BuiltRequest(subject, call).request)
        expect(not faults, f"for {type(call).__name__}: {'; '.join(faults)}")


@request_checks("method")
def _method(subject: Subject) -> None:
    """The method is GET, without a body, or POST."""
    for call in calls(subject):
        request = BuiltRequest(subject, call).request
        expect(
            request.method in ("GET", "POST"), f"for {type(call).__name__} the method is {request.method!r}."
        )
        body = request.json is not None or request.content is not None or request.form
        expect(request.method != "GET" or not body, f"for {type(call).__name__} a GET has a body.")


@request_checks("origin")
def _origin(subject: Subject) -> None:
    """The path is relative, or a URL of the endpoint's own origin: a key goes nowhere else."""
    for call in calls(subject):
        asked = BuiltRequest(subject, call)
        own, found = origin(asked.settings.base_url), origin(asked.url)
        expect(
            not asked.settings.base_url or found == own,
            f"for {type(call).__name__} the request goes to {found}; the endpoint is {own}.",
        )


@request_checks("sendable")
def _sendable(subject: Subject) -> None:
    """The core would send it: URL escaped, headers valid, body JSON."""
    for call in calls(subject):
        BuiltRequest(subject, call).checked()


@request_checks("path")
def _path(subject: Subject) -> None:
    """The path begins with a slash, so that it continues the base URL, and has no fragment."""
    for call in calls(subject):
        path = BuiltRequest(subject, call).request.path
        expect(path.startswith(("/", "?", "http")), f"for {type(call).__name__} the path is {path[:40]!r}.")
        expect("#" not in path, f"for {type(call).__name__} the path has a fragment (#).")


@request_checks("every-text")
def _every_text(subject: Subject) -> None:
    """The body holds every text of the call, each exactly once."""
    call = subject.embed_call()
    found = order_of(call.texts, _embed(subject).body)
    for index in range(len(call.texts)):
        times = found.count(index)
        expect(times > 0, f"build_request left out {shown(index, call.texts)}.")
        expect(times == 1, f"build_request sends {shown(index, call.texts)} {times} times.")


@request_checks("text-order")
def _text_order(subject: Subject) -> None:
    """The texts stand in the body in the order of the call."""
    call = subject.embed_call()
    if len(call.texts) == 1:
        raise NotApplicable("a request of this provider's holds one text")
    found = order_of(call.texts, _embed(subject).body)
    expect(found == sorted(found), f"build_request reordered the texts: {found}.")


@request_checks("text-unchanged")
def _text_unchanged(subject: Subject) -> None:
    """A text goes out as it is: nothing stripped, replaced, escaped or cut off."""
    subject.without("embeddings")
    texts = (*TEXTS, "kit text, a long one" + ", and so on" * 500)
    for index, text in enumerate(texts):
        body = BuiltRequest(subject, EmbedCall(model=subject.samples.model, texts=(text,))).body
        expect(
            any(text in found for found in strings(body)),
            f"{shown(index, texts)} is not in the body as it is.",
        )


@request_checks("full-batch")
def _full_batch(subject: Subject) -> None:
    """A request with as many texts as batch_limit allows holds them all, in order."""
    subject.without("embeddings")
    most = min(subject.limit or 64, 3_000)
    texts = tuple(f"kit text {number:05d}." for number in range(most))
    body = BuiltRequest(subject, EmbedCall(model=subject.samples.model, texts=texts)).body
    found = [text for text in strings(body) if "kit text" in text]
    expect(len(found) == most, f"of {most} texts {len(found)} are in the body.")
    wrong = [index for index, text in enumerate(found) if texts[index] not in text]
    expect(not wrong, f"text {wrong[0] if wrong else 0} is at another's place.")


@request_checks("settings-per-call")
def _settings_per_call(subject: Subject) -> None:
    """The request is for the endpoint that it is given: another base URL, another place."""
    subject.without("embeddings")
    settings = subject.settings()
    if not settings.base_url:
        raise NotApplicable("the provider works inside the process")
    url = settings.base_url.replace("://", "://other.", 1)
    asked = BuiltRequest(subject, subject.embed_call(), evolve(settings, base_url=url))
    expect(
        origin(asked.url) == origin(url), f"for the endpoint {origin(url)} it goes to {origin(asked.url)}."
    )


# Requests: what a call may ask for besides texts, and the other kinds of calls.

options_checks: Final = Family("request")
_ODD_MODEL: Final = "org/kit model:8b?x=1&y#z%2F"


def _options_embed(subject: Subject, **changes: Any) -> BuiltRequest:
    subject.without("embeddings")
    return BuiltRequest(subject, subject.embed_call(**changes))


@options_checks("model")
def _model(subject: Subject) -> None:
    """The model is named, in the body or in the path."""
    subject.without("embeddings")
    if "model" in subject.samples.ignores:
        raise NotApplicable("the samples say that the provider ignores the model")
    asked = BuiltRequest(subject, EmbedCall(model="kit-other-model", texts=TEXTS[:1]))
    expect(
        "kit-other-model" in asked.everything,
        "the model 'kit-other-model' is neither in the body nor in the path.",
    )


@options_checks("model-escaped")
def _model_escaped(subject: Subject) -> None:
    """A model's name with reserved characters arrives unchanged: escaped in a path, as it is in a body."""
    subject.without("embeddings")
    asked = BuiltRequest(subject, EmbedCall(model=_ODD_MODEL, texts=TEXTS[:1]))
    asked.checked()
    if "model" in subject.samples.ignores:
        return
    path = unquote(urlsplit(asked.url).path)
    expect(
        _ODD_MODEL in set(strings(asked.body)) or _ODD_MODEL in path,
        f"the model {_ODD_MODEL!r} arrives as another one: {asked.request.path[:80]!r}.",
    )


@options_checks("provider-data")
def _provider_data(subject: Subject) -> None:
    """What another provider left in the messages of a conversation is not sent to this one."""
    if "chat" in subject.samples.without or refused(subject, chat(subject)):
        raise NotApplicable("the provider has no chat")
    data = {"kit-other": {"signature": "kit-opaque"}}
    called = ToolCall(id="kit-call", name="kit_tool", arguments="{}", provider_data=data)
    messages = (
        *MESSAGES,
        Message("assistant", "kit said", tool_calls=[called], provider_data=data).as_dict(),
        Message("tool", "kit result", tool_call_id="kit-call").as_dict(),
    )
    asked = BuiltRequest(subject, chat(subject, messages=messages, tools=(TOOL,)))
    expect(
        "provider_data" not in asked.everything and "kit-opaque" not in asked.everything,
        "provider_data of another provider is in the request.",
        "only what the plugin itself put there; compatible.plain_messages(call.messages) leaves it out.",
    )


@options_checks("dimensions")
def _dimensions(subject: Subject) -> None:
    """The number of dimensions asked for is passed on, under whatever name the provider has for it."""
    if "dimensions" in subject.samples.ignores:
        raise NotApplicable("the samples say that the provider ignores dimensions")
    asked = _options_embed(subject, dimensions=1_357)
    expect(
        1_357 in list(scalars(asked.body)) or "1357" in asked.url, "dimensions=1357 is not in the request."
    )


@options_checks("input-type")
def _input_type(subject: Subject) -> None:
    """Where the input type makes a difference, the provider is told which it is."""
    plain = _options_embed(subject)
    for kind in ("query", "document"):
        asked = _options_embed(subject, input_type=kind)
        if asked.body == plain.body and asked.url == plain.url and asked.headers == plain.headers:
            continue
        told = f"{asked.everything}{asked.headers}".lower()
        expect(kind in told or kind != "query", f"input_type={kind!r} changes the request and is not in it.")
        expect("none" not in {str(each).lower() for each in strings(asked.body)}, "'None' is sent as a text.")


@options_checks("extra")
def _extra(subject: Subject) -> None:
    """Extra keys of the call are passed on as given, and win over the plugin's own."""
    if "extra" in subject.samples.ignores:
        raise NotApplicable("the samples say that the provider takes no further keys")
    body = _options_embed(subject, extra={"kit_extra": {"deep": [1, None, "x"]}}).body
    found = body.get("kit_extra") if isinstance(body, dict) else None
    expect(found == {"deep": [1, None, "x"]}, f"extra={{'kit_extra': ...}} arrives as {found!r}.")


@options_checks("nothing-unasked")
def _nothing_unasked(subject: Subject) -> None:
    """Keys that nobody asked for are left out: strict servers refuse a null."""
    body = _options_embed(subject).body
    nulls = [key for key, value in body.items() if value is None] if isinstance(body, dict) else []
    expect(not nulls, f"the body holds {', '.join(nulls)} = null.")


@options_checks("catalog")
def _catalog(subject: Subject) -> None:
    """The list of models can be asked for, and says nothing of any text."""
    subject.without("catalog")
    BuiltRequest(subject, CatalogCall()).checked()


@options_checks("chat-messages")
def _chat_messages(subject: Subject) -> None:
    """A chat request holds the content of every message once, in order, or is refused by an llmopt error."""
    asked = _chat(subject)
    contents = [message["content"] for message in MESSAGES]
    found = [index for text in strings(asked.body) for index, each in enumerate(contents) if each in text]
    expect(
        found == list(range(len(contents))), f"the contents of {len(contents)} messages arrive as {found}."
    )


@options_checks("chat-stream")
def _chat_stream(subject: Subject) -> None:
    """A streamed chat is asked for otherwise than one that is not."""
    plain, streamed = _chat(subject), _chat(subject, stream=True)
    expect(
        (plain.url, plain.body) != (streamed.url, streamed.body), "stream=True and stream=False are the same."
    )


@options_checks("chat-options")
def _chat_options(subject: Subject) -> None:
    """Each parameter of a chat is passed on, under whatever name, or refused by InvalidInput: never left out."""
    subject.without("chat")
    plain = _chat(subject)
    for name, value in CHAT_OPTIONS.items():
        try:
            asked = BuiltRequest(subject, chat(subject, **{name: value}))
        except InvalidInput:
            continue
        expect(
            (asked.url, asked.body) != (plain.url, plain.body),
            f"{name}={value!r} changes nothing in the request.",
        )


@options_checks("chat-numbers")
def _chat_numbers(subject: Subject) -> None:
    """Numbers and texts that a chat asks for arrive as they are."""
    for name in ("max_tokens", "temperature", "top_p", "seed", "stop"):
        try:
            body = _chat(subject, **{name: CHAT_OPTIONS[name]}).body
        except InvalidInput:
            continue
        wanted = CHAT_OPTIONS[name][0] if name == "stop" else CHAT_OPTIONS[name]
        expect(wanted in list(scalars(body)), f"{name}={CHAT_OPTIONS[name]!r} is not in the body.")


@options_checks("chat-extra")
def _chat_extra(subject: Subject) -> None:
    """Extra keys of a chat are passed on as given."""
    if "extra" in subject.samples.ignores:
        raise NotApplicable("the samples say that the provider takes no further keys")
    body = _chat(subject, extra={"kit_extra": {"deep": [1, None, "x"]}}).body
    found = body.get("kit_extra") if isinstance(body, dict) else None
    expect(found == {"deep": [1, None, "x"]}, f"extra={{'kit_extra': ...}} arrives as {found!r}.")


@options_checks("chat-nothing-unasked")
def _chat_nothing_unasked(subject: Subject) -> None:
    """Keys that nobody asked a chat for are left out: strict servers refuse a null."""
    body = _chat(subject).body
    nulls = [key for key, value in body.items() if value is None] if isinstance(body, dict) else []
    expect(not nulls, f"the body holds {', '.join(nulls)} = null.")


def _chat(subject: Subject, **changes: Any) -> BuiltRequest:
    subject.without("chat")
    call = chat(subject, **changes)
    if refused(subject, call):
        raise NotApplicable("the plugin says that its provider does not chat")
    return BuiltRequest(subject, call)


# Keys: in headers and nowhere else.

secrets_checks: Final = Family("secrets")


def _carriers(asked: BuiltRequest, secret: str) -> list[str]:
    return [name for name, value in asked.headers.items() if secret in str(value)]


def _needs_key(subject: Subject) -> None:
    if subject.settings().auth == "none":
        raise NotApplicable("this provider takes no key")
    if not subject.base_url:
        raise NotApplicable("the provider works inside the process")


@secrets_checks("key-in-header")
def _key_in_header(subject: Subject) -> None:
    """The key goes out in a header, with every kind of request."""
    _needs_key(subject)
    for call in calls(subject):
        carriers = _carriers(BuiltRequest(subject, call), KEY)
        expect(carriers, f"for {type(call).__name__} no header holds the key.")
        expect(
            len(carriers) == 1, f"for {type(call).__name__} several headers hold it: {', '.join(carriers)}."
        )


@secrets_checks("key-not-in-url")
def _key_not_in_url(subject: Subject) -> None:
    """The key is never in a path or a query: URLs end up in logs of servers, proxies and libraries."""
    for call in calls(subject):
        asked = BuiltRequest(subject, call)
        expect(KEY not in asked.url, f"for {type(call).__name__} the key is in the URL.")


@secrets_checks("key-not-in-body")
def _key_not_in_body(subject: Subject) -> None:
    """The key is never in the body."""
    for call in calls(subject):
        asked = BuiltRequest(subject, call)
        expect(KEY not in asked.everything, f"for {type(call).__name__} the key is in the body.")


@secrets_checks("no-key")
def _no_key(subject: Subject) -> None:
    """Without a key no header for one is sent: no "Bearer None", no empty api-key."""
    for call in calls(subject):
        bare = BuiltRequest(subject, call, subject.settings(key=None))
        for name in _carriers(BuiltRequest(subject, call), KEY):
            expect(
                name not in bare.headers,
                f"for {type(call).__name__} the header {name} is sent without a key.",
            )
        expect("None" not in str(bare.headers.values()), f"for {type(call).__name__} a header says None.")


@secrets_checks("token")
def _token(subject: Subject) -> None:
    """A token that a token provider gives goes out in one header too, and nowhere else."""
    _needs_key(subject)
    for call in calls(subject):
        asked = BuiltRequest(subject, call, subject.settings(key=TOKEN, kind="token"))
        expect(len(_carriers(asked, TOKEN)) == 1, f"for {type(call).__name__} no one header holds the token.")
        expect(
            TOKEN not in asked.everything, f"for {type(call).__name__} the token is in the URL or the body."
        )


@secrets_checks("headers-valid")
def _headers_valid(subject: Subject) -> None:
    """Names and values of headers are what HTTP allows: no line breaks, no characters beyond Latin-1."""
    for call in calls(subject):
        faults = header_faults(BuiltRequest(subject, call).request.headers)
        expect(not faults, f"for {type(call).__name__}: {'; '.join(faults)}")


@secrets_checks("headers-configured")
def _headers_configured(subject: Subject) -> None:
    """Headers that the user configured are sent as they are."""
    for call in calls(subject):
        headers = BuiltRequest(subject, call).headers
        for name, value in CONFIGURED.items():
            expect(
                headers.get(name) == value,
                f"for {type(call).__name__} the configured header {name} is missing.",
            )


@secrets_checks("headers-of-the-wire")
def _headers_of_the_wire(subject: Subject) -> None:
    """The plugin leaves host, content-length and similar headers to the transport."""
    for call in calls(subject):
        found = sorted(OF_THE_WIRE & set(BuiltRequest(subject, call).headers))
        expect(not found, f"for {type(call).__name__} it sets {', '.join(found)}.")


@secrets_checks("not-in-verdict")
def _not_in_verdict(subject: Subject) -> None:
    """A verdict adds no key: neither its code nor its hint nor its param holds one."""
    failure = Failure(status=401, body=subject.dialect.error(_echo()))
    verdict = subject.hooks.classify_error(failure, subject.settings())
    for name in ("code", "hint", "param"):
        expect(KEY not in str(getattr(verdict, name)), f"Verdict.{name} holds the key.")


@secrets_checks("not-in-error")
def _not_in_error(subject: Subject) -> None:
    """The exception that a user sees holds no key, also when the server's answer repeats it."""
    failure = Failure(status=401, body=subject.dialect.error(_echo()))
    _ = subject.hooks
    error = subject.loaded.error(failure, subject.embed_call(), subject.settings())
    expect(KEY not in f"{error!r} {error} {vars(error)}", "the exception for a 401 holds the key.")


def _echo() -> SampleError:
    return SampleError(status=401, message=f"the key {KEY} is wrong")


@secrets_checks("not-in-profile")
def _not_in_profile(subject: Subject) -> None:
    """A profile holds no key, whatever the entry holds."""
    from llmopt_conformance.observe import fingerprint

    entry = evolve(subject.entry, headers={"x-kit": KEY})
    found = fingerprint(subject.hooks.provider_profile(entry))
    expect(KEY not in str(found), "the profile repeats the user's key or headers.")


# Custom transports, and credentials of the plugin.

transport_checks: Final = Family("transport")


@transport_checks("type")
def _type(subject: Subject) -> None:
    """open_transport returns None or an httpx.AsyncBaseTransport."""
    from httpx import AsyncBaseTransport

    found = subject.hooks.open_transport(subject.settings(key=None))
    expect(found is None or isinstance(found, AsyncBaseTransport), f"it returned a {type(found).__name__}.")


@transport_checks("own")
def _own(subject: Subject) -> None:
    """Each endpoint gets a transport of its own: the core closes what it gets."""
    settings = subject.settings(key=None)
    first = subject.hooks.open_transport(settings)
    if first is None:
        raise NotApplicable("the plugin uses the core's pool")
    expect(first is not subject.hooks.open_transport(settings), "two calls returned the same transport.")


@transport_checks("idle")
def _idle(subject: Subject) -> None:
    """open_transport connects to nothing, starts nothing: that happens with the first request."""
    watch = Watch(subject.sources)
    watch.call(subject.hooks.open_transport, subject.settings(key=None))
    busy = [act for act in watch.acts if act.sin in ("network", "processes", "threads", "sleep")]
    expect(not busy, "; ".join(f"{act.what} at {act.place}" for act in busy))


@transport_checks("in-process")
def _in_process(subject: Subject) -> None:
    """A provider that works inside the process opens a transport for an entry without a base URL."""
    bare = subject.entry_with(base_url=None, api_key=None)
    if not subject.hooks.provider_profile(bare).in_process:
        raise NotApplicable("the provider is asked over a network")
    settings = subject.settings_of(bare)
    try:
        found = subject.hooks.open_transport(settings)
    except LLMOptError as error:
        raise NotApplicable(f"its engine is not installed: {error}") from None
    expect(found is not None, "profile.in_process is True and open_transport returned None.")


@transport_checks("credentials")
def _credentials(subject: Subject) -> None:
    """credential_provider returns a function, or None where the configuration asks for none."""
    found = subject.hooks.credential_provider(subject.settings(key=None))
    expect(found is None or callable(found), f"it returned a {type(found).__name__}.")
