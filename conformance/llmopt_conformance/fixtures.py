"""Fake servers, sample responses and request parsing for the checks."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote

from attrs import evolve, field, frozen

from llmopt import AsyncClient, Config
from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.testing.corpus import KnownError, own_corpus
from llmopt.testing.dialect import SampleChat, SampleError, SamplePage, SampleRows, Spoken, single, vector_of
from llmopt.testing.fake import installed
from llmopt.testing.harness import (
    accumulate,
    decode_stream,
    discover_plugins,
    encode_json,
    encode_request,
    vectors_in_order,
)
from llmopt.testing.transport import Reply, SentRequest, function_transport
from llmopt.values.calls import Call, CatalogCall, ChatCall, Settings
from llmopt.values.chat import ChatEvent, ChatReply, Message, ServerEvent, StreamStep, ToolCall
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.http import EXCEPTION_OF, Failure, HttpRequest, Verdict
from llmopt.values.profile import Profile
from llmopt_conformance.subject import (
    MESSAGES,
    TEXTS,
    CheckFailed,
    NotApplicable,
    Subject,
    expect,
    explain,
    order_of,
    type_faults,
)

if TYPE_CHECKING:
    import httpx


class BuiltRequest:
    """One request of the plugin's, and the ways to look into it.

    Args:
        subject: the plugin.
        call: what is asked for.
        settings: the endpoint's; the subject's with a key unless given.
    """

    def __init__(self, subject: Subject, call: Call, settings: Settings | None = None) -> None:
        self.settings = settings if settings is not None else subject.settings()
        self.request: HttpRequest = subject.hooks.build_request(call, self.settings)

    @property
    def headers(self) -> dict[str, str]:
        """The headers, with names in lower case."""
        return {str(name).lower(): value for name, value in self.request.headers.items()}

    @property
    def url(self) -> str:
        """The URL as it would go out; without the core's checks."""
        path = self.request.path
        return path if "://" in path.partition("?")[0] else f"{self.settings.base_url}{path}"

    @property
    def body(self) -> Any:
        """The body as the server reads it."""
        if self.request.json is None:
            return None
        try:
            return json.loads(encode_json(self.request.json))
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckFailed(
                f"the body cannot be written as JSON: {type(error).__name__}: {error}",
                "HttpRequest.json is made of dict, list, tuple, str, int, float, bool and None.",
            ) from None

    @property
    def everything(self) -> str:
        """URL and body as text, escapes undone: all that is not a header."""
        values = (each.value for each in self.request.form)
        other = [str(each) for each in (self.request.content, *values) if each is not None]
        return "\n".join([self.url, unquote(self.url), json.dumps(self.body, ensure_ascii=False), *other])

    def checked(self) -> None:
        """Hold it against what the core demands of every request.

        Raises:
            CheckFailed: the core would refuse to send it.
        """
        try:
            encode_request(self.request, self.settings)
        except LLMOptError as error:
            raise CheckFailed(explain(error)) from None


def calls(subject: Subject) -> list[Call]:
    """One call of each kind that the provider has, and a further page of its list."""
    from llmopt.values.calls import CatalogCall

    found: list[Call] = []
    for operation, call in (
        ("embeddings", subject.embed_call()),
        ("catalog", CatalogCall()),
        ("catalog", CatalogCall(cursor="page-2")),
        ("chat", chat(subject)),
    ):
        if operation not in subject.lacking and not refused(subject, call):
            found.append(call)
    expect(found, "build_request builds no request at all.")
    return found


def chat(subject: Subject, **changes: Any) -> ChatCall:
    """A chat call."""
    return ChatCall(**{"model": subject.samples.model, "messages": MESSAGES, **changes})


def refused(subject: Subject, call: Call) -> bool:
    """Whether the plugin says, by an error of llmopt's, that its provider does not chat."""
    from llmopt.errors import PluginError

    if not isinstance(call, ChatCall):
        return False
    try:
        subject.hooks.build_request(call, subject.settings())
    except PluginError:
        return False
    except LLMOptError:
        return True
    return False


# A fake server for one plugin: it answers requests as the plugin's provider would.

DIMENSIONS: Final = 6
MODELS: Final = ("kit-embed", "kit-chat")


class PretendedServer:
    """Answers in memory, and remembers what it was sent.

    Args:
        subject: the plugin.
        texts: all texts that may be asked for.
        status: another status than 200 for every answer.
        missing: vectors left out at the end of every answer.
        limit: the status given to questions for the server's limits.
    """

    def __init__(
        self, subject: Subject, texts: tuple[str, ...] = (), *, status: int = 200, missing: int = 0
    ) -> None:
        self._subject: Final = subject
        self._texts: Final = texts
        self._status: Final = status
        self._missing: Final = missing
        self._lock: Final = threading.Lock()
        self._list: Final = _target(subject)
        self.sent: Final[list[SentRequest]] = []

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The way to it."""
        return function_transport(self.answer)

    def answer(self, sent: SentRequest) -> Reply:
        """Answer one request."""
        with self._lock:
            self.sent.append(sent)
        listed = (sent.method, sent.target) == self._list
        if not listed and sent.method == "GET":
            # A question for limits: this server tells none.
            return Reply(status=404, body=self._error(404))
        if self._status != 200:
            return Reply(status=self._status, body=self._error(self._status))
        if listed:
            return Reply(body=self._subject.dialect.catalog(SamplePage(models=MODELS)))
        return Reply(body=self._vectors(sent))

    def _vectors(self, sent: SentRequest) -> bytes:
        body = sent.json
        found = [self._texts[index] for index in order_of(self._texts, body)]
        found = found[: len(found) - self._missing]
        base64 = isinstance(body, dict) and body.get("encoding_format") == "base64"
        rows = tuple((index, vector_of(text, DIMENSIONS)) for index, text in enumerate(found))
        # The last comes first where the order can be told.
        if self._subject.samples.indexed:
            rows = rows[::-1]
        return self._subject.dialect.embeddings(SampleRows(rows=rows, tokens=5 * len(found), base64=base64))

    def _error(self, status: int) -> bytes:
        return self._subject.dialect.error(SampleError(status=status, message="the kit says no"))


def _target(subject: Subject) -> tuple[str, str]:
    """Method and path of the request for the list of models."""
    settings = subject.settings()
    try:
        prepared = encode_request(subject.hooks.build_request(CatalogCall(), settings), settings)
    except LLMOptError:
        return "", ""
    sent = SentRequest(method=prepared.method, url=prepared.url, headers={})
    return sent.method, sent.target


# Sample chat responses in the provider's format, parsed by the plugin.

CHAT_REFUSED: Final = "parse_chat raises llmopt.InvalidResponse or returns a Failure."
EVENT_REFUSED: Final = "parse_stream_event raises llmopt.InvalidResponse or returns a Failure."
TOOL: Final = {
    "type": "function",
    "function": {"name": "kit_tool", "description": "", "parameters": {"type": "object", "properties": {}}},
}
CHAT_OPTIONS: Final[dict[str, Any]] = {
    "max_tokens": 1_357,
    "temperature": 0.37,
    "top_p": 0.73,
    "stop": ("kit-stop",),
    "seed": 24_680,
    "presence_penalty": 0.21,
    "frequency_penalty": 0.12,
    "tools": (TOOL,),
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "reasoning_effort": "high",
}
"""A value for each parameter that a chat may have."""
WORDS: Final = SampleChat(pieces=("kit says: ", "\u6771\u4eac", " \U0001f642\n", " two  blanks"))
CALLS: Final = SampleChat(
    finish_reason="tool_calls",
    tool_calls=(
        ToolCall(id="kit-call-1", name="kit_tool", arguments='{"x": "\u00fc"}'),
        ToolCall(id="kit-call-2", name="kit_tool", arguments="{}"),
    ),
)

THOUGHT: Final = evolve(CALLS, pieces=("kit says so",), reasoning="kit thinks")
"""An answer of every part."""


def full_chat(subject: Subject) -> ChatCall:
    """A chat with every parameter."""
    return ChatCall(
        model=subject.samples.model, messages=MESSAGES, stream=True, include_usage=True, **CHAT_OPTIONS
    )


def chats(subject: Subject) -> None:
    """Leave the running check when the provider does not chat.

    Raises:
        NotApplicable: it does not.
    """
    subject.without("chat")
    if not subject.base_url and not subject.implements("parse_chat"):
        raise NotApplicable("the plugin works inside the process and has no chat")
    if refused(subject, chat(subject)):
        raise NotApplicable("the plugin says that its provider does not chat")


def says(subject: Subject, part: Spoken) -> None:
    """Leave the running check when the provider's answers do not tell a part of one.

    Raises:
        NotApplicable: they do not.
    """
    if part not in subject.samples.says:
        raise NotApplicable(f"the samples say that the provider's answers have no {part}")


def replied(subject: Subject, body: bytes) -> Any:
    """What the plugin reads in an answer: a reply, a failure, or the InvalidResponse it raises."""
    chats(subject)
    try:
        return subject.hooks.parse_chat(chat(subject), subject.answer(body), subject.settings())
    except InvalidResponse as error:
        return error


def reply(subject: Subject, answer: SampleChat) -> ChatReply:
    """The plugin's reading of a right answer.

    Raises:
        CheckFailed: it has none.
    """
    found = replied(subject, subject.dialect.chat(answer))
    if isinstance(found, ChatReply):
        return found
    raise CheckFailed(f"parse_chat gave {_word(found)} for a right answer.", "the answer.")


def decoded(subject: Subject, pieces: Iterable[bytes]) -> list[ServerEvent]:
    """The events of a stream, as the core decodes them."""
    events = decode_stream(subject.samples.stream_type, pieces)
    if events is None:
        raise CheckFailed(
            f"a stream of type {subject.samples.stream_type!r} cannot be decoded.",
            "text/event-stream or application/x-ndjson.",
        )
    return events


@frozen(kw_only=True)
class StreamReading:
    """What came of a stream.

    Attributes:
        answer: what its events added.
        parts: what the plugin gave for each event.
    """

    answer: ChatReply
    parts: tuple[Any, ...] = field(repr=False)


def step_read(subject: Subject, event: ServerEvent, state: object = None) -> Any:
    """What the plugin makes of an event: a StreamStep, a failure, or the InvalidResponse it raises.

    Args:
        subject: the plugin.
        event: of the server.
        state: what the plugin has left of the events before it.
    """
    call = chat(subject, stream=True)
    try:
        return subject.hooks.parse_stream_event(call, event, subject.settings(), state)
    except InvalidResponse as error:
        return error


def event_read(subject: Subject, event: ServerEvent, state: object = None) -> Any:
    """As `step_read`, with a tuple of events in place of a step."""
    found = step_read(subject, event, state)
    return found.events if isinstance(found, StreamStep) else found


def steps_read(subject: Subject, events: Iterable[ServerEvent]) -> Iterator[tuple[ServerEvent, object, Any]]:
    """The events of a stream, each with the state before it and what the plugin makes of it."""
    state: object = None
    for event in events:
        found = step_read(subject, event, state)
        yield event, state, found
        if isinstance(found, StreamStep):
            state = found.state


def read_stream(subject: Subject, pieces: Sequence[bytes]) -> StreamReading:
    """What the plugin makes of a right stream that comes in these pieces.

    Raises:
        CheckFailed: it takes an event of it for an error.
    """
    chats(subject)
    parts: list[tuple[ChatEvent, ...]] = []
    for number, (_, _, found) in enumerate(steps_read(subject, decoded(subject, pieces))):
        if not isinstance(found, StreamStep):
            raise CheckFailed(
                f"parse_stream_event gave {_word(found)} for event {number} of a right stream.",
                "what it adds.",
            )
        parts.append(found.events)
    return StreamReading(answer=accumulate(part for each in parts for part in each), parts=tuple(parts))


def stream_reply(subject: Subject, answer: SampleChat) -> ChatReply:
    """The plugin's reading of a right stream."""
    return read_stream(subject, subject.dialect.stream(answer)).answer


def called(calls: Iterable[ToolCall]) -> list[tuple[str, Any]]:
    """Tool calls as they can be compared: names, and arguments whatever their spaces; text that is no JSON as it is."""
    return [(call.name, _value_of(call.arguments)) for call in calls]


def _value_of(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def is_refusal(found: object) -> bool:
    """Whether what a plugin gave says that there was nothing right to read."""
    return isinstance(found, (Failure, InvalidResponse))


def _word(found: object) -> str:
    return explain(found) if isinstance(found, BaseException) else f"a {type(found).__name__}"


# A plugin in use by llmopt's client, with a server in memory.

_T = TypeVar("_T")
STRAIGHT: Final = {"retry": False, "cache": False, "coalesce": False}
"""Every call is a request, and every request is sent once."""


@contextmanager
def ready(subject: Subject, **changes: Any) -> Iterator[Config]:
    """A configuration in which the plugin is found, whether installed or not, and the environment is bare."""
    if not subject.base_url:
        raise NotApplicable("the provider works inside the process")
    there = _is_installed(subject)
    plugin = subject.name if there else f"kit-{subject.name}"
    entry = subject.entry_with(plugin=plugin, max_retries=0, retry_delay=0.0, **changes)
    held = {name: os.environ.pop(name) for name in _variables(subject.profile) if name in os.environ}
    try:
        with nullcontext() if there else installed(plugin, subject.plugin):
            yield Config(providers={subject.name: entry})
    finally:
        os.environ.update(held)


def _is_installed(subject: Subject) -> bool:
    """Whether the plugin is found under its name as it is: a general one knows its provider by it."""
    found = discover_plugins().get(subject.name)
    return (
        found is not None
        and found.conflict is None
        and found.entry_points[0].value == subject.sources.module_name
        and found.load() is subject.plugin
    )


def _variables(profile: Profile) -> set[str]:
    options = (name for each in profile.options for name in each.env)
    return {*profile.key_env, *profile.base_url_env, *options}


def run(
    subject: Subject,
    server: PretendedServer,
    work: Callable[[AsyncClient], Coroutine[Any, Any, _T]],
    *,
    wrappers: Sequence[object] = (),
    **changes: Any,
) -> _T:
    """What comes of work with a client.

    Args:
        subject: the plugin.
        server: answers.
        work: gets the client.
        wrappers: wrapper plugins of the user's.
        changes: what is different about the plugin's entry.
    """

    async def main(config: Config) -> _T:
        transport = server.transport
        async with AsyncClient(config, transport=transport, plugins=wrappers, flags=STRAIGHT) as client:
            return await work(client)

    # With a factory the runner leaves the thread's own event loop alone.
    with ready(subject, **changes) as config, asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(main(config))


def embed(subject: Subject, server: PretendedServer, texts: tuple[str, ...], **changes: Any) -> Any:
    """The vectors of some texts."""
    subject.without("embeddings")
    model = f"{subject.name}/{subject.samples.model}"
    return run(subject, server, lambda client: client.embed(model, texts), **changes)


def fails(kinds: tuple[type[LLMOptError], ...], ask: Callable[[], object]) -> LLMOptError:
    """Expect one of some errors, and give it.

    Raises:
        CheckFailed: there was none, or another.
    """
    try:
        ask()
    except kinds as error:
        return error
    except LLMOptError as error:
        raise CheckFailed(f"it raised {type(error).__name__}: {explain(error)}") from None
    raise CheckFailed("no error was raised.")


# A fake chat server, and a client that talks to it.


class ChattingServer(PretendedServer):
    """Gives every chat the same answer.

    Args:
        subject: the plugin.
        body: of an answer in one piece.
        pieces: of a stream.
        status: of all answers.
    """

    def __init__(
        self, subject: Subject, body: bytes = b"", *, pieces: Sequence[bytes] = (), status: int = 200
    ) -> None:
        super().__init__(subject, status=status)
        kind = subject.samples.stream_type if pieces else "application/json"
        self._reply: Final = Reply(
            status=status, body=body, pieces=tuple(pieces), headers={"content-type": kind}
        )

    def answer(self, sent: SentRequest) -> Reply:
        """Answer one request."""
        if sent.method != "POST":
            return super().answer(sent)
        self.sent.append(sent)
        return self._reply


def refusing(subject: Subject, status: int) -> ChattingServer:
    """A server that answers every chat with an error."""
    body = subject.dialect.error(SampleError(status=status, message="the kit says no"))
    return ChattingServer(subject, body, status=status)


def client_reply(subject: Subject, server: PretendedServer) -> ChatReply:
    """The reply of a chat in one piece."""
    chats(subject)
    return run(subject, server, lambda client: client.chat(_model(subject), MESSAGES))


def client_stream(subject: Subject, server: PretendedServer) -> Any:
    """A stream, read to its end: the object that the client gave."""
    chats(subject)

    async def listen(client: AsyncClient) -> Any:
        async with client.stream(_model(subject), MESSAGES) as stream:
            async for _ in stream:
                pass
        return stream

    return run(subject, server, listen)


def beginning(subject: Subject, answer: SampleChat) -> list[bytes]:
    """The events of a stream up to its finish reason, which is left out with all that follows."""
    pieces = subject.dialect.stream(answer)
    # Each piece apart: the state goes through all of them.
    counts = [len(decoded(subject, [piece])) for piece in pieces]
    steps = steps_read(subject, (event for piece in pieces for event in decoded(subject, [piece])))
    found: list[bytes] = []
    for piece, count in zip(pieces, counts, strict=True):
        made = [step.events for _, _, step in islice(steps, count) if isinstance(step, StreamStep)]
        if any(part.last or part.finish_reason for parts in made for part in parts):
            break
        found.append(piece)
    return found


def next_request(subject: Subject, answer: ChatReply) -> Any:
    """The body of the request behind an answer: its message, and a result for each of its tool calls."""
    # The core gives each call an id where the provider has none.
    calls = tuple(
        call if call.id else evolve(call, id=f"kit-own-{index}")
        for index, call in enumerate(answer.tool_calls)
    )
    results = [Message("tool", "kit result", tool_call_id=call.id) for call in calls]
    added = (evolve(answer, tool_calls=calls).message, *results)
    messages = (*MESSAGES, *(message.as_dict() for message in added))
    return BuiltRequest(subject, chat(subject, messages=messages, tools=(TOOL,))).body


def _model(subject: Subject) -> str:
    return f"{subject.name}/{subject.samples.model}"


# Answers that are wrong: what servers, gateways and broken connections send instead of the right one.

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


# Sample embeddings responses, parsed by the plugin.

REFUSED: Final = "parse_embeddings raises llmopt.InvalidResponse or returns a Failure."


def rows_of(count: int, dimensions: int = 4) -> SampleRows:
    """Vectors for some texts, each of another direction."""
    rows = ((index, vector_of(TEXTS[index % len(TEXTS)] + str(index), dimensions)) for index in range(count))
    return SampleRows(rows=tuple(rows))


def parse(subject: Subject, body: bytes, *, count: int = 3, status: int = 200) -> Any:
    """What the plugin reads: rows, a failure, or the InvalidResponse it raises."""
    subject.without("embeddings")
    call = subject.embed_call(count)
    try:
        return subject.hooks.parse_embeddings(call, subject.answer(body, status=status), subject.settings())
    except InvalidResponse as error:
        return error


def vectors(subject: Subject, answer: SampleRows, **changes: Any) -> list[tuple[float, ...]]:
    """The vectors as the core would hand them out.

    Raises:
        CheckFailed: there are none.
    """
    found = parse(subject, subject.dialect.embeddings(evolve(answer, **changes)))
    if isinstance(found, EmbeddedRows):
        ordered = vectors_in_order(found, len(answer.rows))
        return [single(row) for row in ordered.tolist()]
    raise CheckFailed(
        f"parse_embeddings gave {word(found)} for a right answer.", "the vectors of the answer."
    )


def word(found: object) -> str:
    """What a plugin gave, for a message."""
    return explain(found) if isinstance(found, BaseException) else f"a {type(found).__name__}"


def count_of(subject: Subject) -> int:
    """Texts in a request: 3, or fewer where the plugin's limit is lower."""
    return min(3, subject.limit or 3)


def several(subject: Subject) -> int:
    """The same where one would prove nothing.

    Raises:
        NotApplicable: it is one.
    """
    if count_of(subject) < 2:
        raise NotApplicable("a request of this provider's holds one text")
    return count_of(subject)


def never_accepted(subject: Subject, answer: SampleRows, what: str) -> None:
    """Expect an answer to be refused, by the plugin or by the core's check of what the plugin read."""
    refuses(subject, subject.dialect.embeddings(answer), what)


def refuses(subject: Subject, body: bytes, what: str) -> None:
    """The same for a body."""
    found = parse(subject, body)
    if not isinstance(found, EmbeddedRows):
        return
    try:
        vectors_in_order(found, count_of(subject))
    except InvalidResponse:
        return
    raise CheckFailed(f"an answer with {what} passes for a right one.", REFUSED)


# Which headers a request may have.

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
OF_THE_WIRE: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that the transport sets."""
OF_KEYS: Final = frozenset({"api-key", "authorization", "cookie", "proxy-authorization", "x-api-key"})
"""Headers that usually carry a secret."""


def header_faults(headers: Mapping[str, str]) -> list[str]:
    """A sentence for each header that HTTP does not allow. Values are not shown: they may be keys."""
    return [fault for name, value in headers.items() if (fault := _fault(name, value))]


def _fault(name: object, value: object) -> str:
    if not isinstance(name, str) or not _NAME.match(name):
        return f"a header is called {name!r:.60}; names are letters, digits and -."
    if not isinstance(value, str):
        return f"the header {name} is a {type(value).__name__}; expected text."
    if "\r" in value or "\n" in value:
        return f"the header {name} holds a line break (CR or LF), which would start another header."
    if not _VALUE.match(value):
        return f"the header {name} holds a character that HTTP does not allow."
    return ""


# A plugin's classification of the errors of the corpus, and of others.


def verdict_of(subject: Subject, failure: Failure) -> Verdict:
    """What the plugin makes of a failure."""
    return subject.hooks.classify_error(failure, subject.settings())


def verdict_for(
    subject: Subject, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Verdict:
    """What the plugin makes of an answer."""
    return verdict_of(subject, Failure(status=status, headers=dict(headers or {}), body=body[:65536]))


def tried_again(verdict: Verdict) -> bool:
    """Whether the engine would try again."""
    return EXCEPTION_OF[verdict.kind].retryable


@cache
def corpus() -> tuple[KnownError, ...]:
    """The kit's own errors, read once."""
    return own_corpus()


def survives(subject: Subject, failure: Failure, label: str) -> Verdict:
    """Expect a usable verdict, whatever it is."""
    try:
        verdict = verdict_of(subject, failure)
    except LLMOptError as error:
        raise CheckFailed(f"for {label}: {explain(error)}") from None
    faults = type_faults(verdict)
    expect(not faults, f"for {label}: {'; '.join(faults)}")
    return verdict
