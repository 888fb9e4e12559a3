"""`FakeProvider`: a provider for the tests of an application, without network or key, with repeatable answers.

It answers in the thread of the client's event loop, and does no I/O. There it appends to `FakeProvider.calls`, a plain
list that the test reads in its own thread; several threads may use its script without a lock, because deques and lists
change atomically. Entering a `FakeProvider` calls `installed`, which changes ``sys.modules`` and ``sys.meta_path`` for
the whole process until its block ends, so that every other client finds the plugin too. No clock and nothing random: a
scripted pause sleeps on the event loop.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from attrs import evolve, field, frozen
from importlib_metadata import Distribution, DistributionFinder

from llmopt.compatible import build_request, classify, parse_chat, parse_stream_event
from llmopt.config.schema import Config, ProviderEntry
from llmopt.errors import (
    AttemptTimeout,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    LLMOptError,
    ServerError,
)
from llmopt.hookspecs import PROJECT, hookimpl
from llmopt.testing.dialect import (
    SampleChat,
    SampleError,
    SamplePage,
    SampleRows,
    catalog_body,
    chat_body,
    chat_stream,
    embeddings_body,
    error_body,
    event_of,
    vector_of,
)
from llmopt.testing.transport import Reply, SentRequest, function_transport
from llmopt.values.calls import BatchLimit, Call, ChatCall, Settings
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent, ToolCall
from llmopt.values.http import EXCEPTION_OF, Failure, HttpRequest, HttpResponse, Verdict, VerdictKind
from llmopt.values.profile import Profile
from llmopt.values.secret import repr_size

if TYPE_CHECKING:
    import httpx
    from importlib_metadata import SimplePath


PREFIX: Final = "fake:"
"""Prefix of the code of a scripted error; the kind of its verdict follows."""


class FakePlugin:
    """The plugin behind `FakeProvider`: the common dialect, with provider_data and the verdicts that a test scripts."""

    @hookimpl
    def provider_profile(self) -> Profile:
        """A fast provider that needs no key."""
        return Profile(
            base_url="https://fake.llmopt.example/v1",
            key_required=False,
            retry_delay=0.0,
            pool_size=8,
            max_concurrency=8,
            stream_end="done",
        )

    @hookimpl
    def batch_limit(self) -> BatchLimit:
        """At most 32 texts a request, so that a test sees more than one."""
        return BatchLimit(max_items=32)

    @hookimpl
    def build_request(self, call: Call, settings: Settings) -> HttpRequest:
        """With the provider_data of the messages, which other servers do not get."""
        request = build_request(call, settings)
        if not isinstance(call, ChatCall):
            return request
        return evolve(request, json={**request.json, "messages": call.messages})

    @hookimpl
    def parse_chat(self, call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
        """With the scripted provider_data."""
        reply = parse_chat(call, response)
        return reply if isinstance(reply, Failure) else _with_provider_data(reply, "message")

    @hookimpl
    def parse_stream_event(self, call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
        """With the scripted provider_data."""
        events = parse_stream_event(call, event)
        if isinstance(events, Failure):
            return events
        return tuple(_with_provider_data(each, "delta") for each in events)

    @hookimpl
    def classify_error(self, failure: Failure) -> Verdict:
        """The verdict that the test asked for."""
        code = failure.error.code or ""
        if not code.startswith(PREFIX):
            return classify(failure)
        kind = VerdictKind(code.removeprefix(PREFIX))
        return Verdict(kind=kind, code=kind.value, message=failure.error.message)


_Told = TypeVar("_Told", ChatReply, ChatEvent)


def _with_provider_data(found: _Told, key: str) -> _Told:
    choices = found.raw.get("choices")
    message = choices[0][key] if choices else {}
    calls = zip(found.tool_calls, message.get("tool_calls") or (), strict=True)
    return evolve(
        found,
        provider_data=message.get("provider_data", {}),
        tool_calls=tuple(evolve(call, provider_data=raw.get("provider_data", {})) for call, raw in calls),
    )


# Scripted responses: the errors and chat answers that a test asks for.

_STATUS_BY_KIND: Final[dict[VerdictKind, int]] = {
    VerdictKind.TRANSIENT: 500,
    VerdictKind.TIMEOUT: 504,
    VerdictKind.RATE_LIMITED: 429,
    VerdictKind.OVERLOADED: 503,
    VerdictKind.QUOTA_EXHAUSTED: 429,
    VerdictKind.BATCH_TOO_LARGE: 413,
    VerdictKind.AUTH: 401,
    VerdictKind.PERMISSION: 403,
    VerdictKind.NOT_FOUND: 404,
}
"""The status that an error comes with; 400 unless listed."""
_CONNECTION_ERRORS: Final[tuple[tuple[type[LLMOptError], Reply], ...]] = (
    (ConnectFailed, Reply(breaks="connect")),
    (ConnectionLost, Reply(breaks="read")),
    (AttemptTimeout, Reply(breaks="timeout")),
    (InvalidResponse, Reply(body=b"<html>this is no JSON</html>")),
)
_KIND_BY_ERROR: Final[dict[type[LLMOptError], VerdictKind]] = {
    error: kind for kind, error in EXCEPTION_OF.items() if kind is not VerdictKind.INVALID_RESPONSE
}


def reply_for(error: type[LLMOptError], message: str, retry_after: float | None) -> Reply:
    """The response that a caller sees as an error of this class.

    Raises:
        ValueError: no response of a provider leads to this error.
    """
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    for broken, reply in _CONNECTION_ERRORS:
        if issubclass(error, broken):
            return reply
    kind = _KIND_BY_ERROR.get(error)
    if kind is None:
        names = sorted(
            each.__name__ for each in (*_KIND_BY_ERROR, *(broken for broken, _ in _CONNECTION_ERRORS))
        )
        raise ValueError(
            f"no response of a provider leads to {error.__name__}; choose one of {', '.join(names)}."
        )
    status = _STATUS_BY_KIND.get(kind, 400)
    body = error_body(SampleError(status=status, message=message), code=f"{PREFIX}{kind.value}")
    return Reply(status=status, body=body, headers=headers)


Ending = Literal["done", "cut", "break", "error"]
"""How a stream ends: complete, without its last events, with a lost connection, with an error event."""


@frozen(kw_only=True)
class ScriptedChat:
    """A chat answer that a test has scripted."""

    answer: SampleChat
    ends: Ending = "done"
    error: str = ""
    pause: float = 0.0

    def reply(self, *, stream: bool, usage: bool) -> Reply:
        """The response, in one piece or as a stream."""
        if not stream:
            return Reply(body=chat_body(self.answer))
        events = chat_stream(self.answer, usage=usage)
        if self.ends != "done":
            # Without the finish reason, the usage and the end marker.
            events = events[: -2 - usage]
        if self.ends == "error":
            events = (*events, event_of(self.error.encode()), event_of(b"[DONE]"))
        return Reply(
            pieces=events,
            headers={"content-type": "text/event-stream"},
            breaks="read" if self.ends == "break" else "",
            pause=self.pause,
        )


@frozen(kw_only=True)
class _Refusal:
    texts: frozenset[str]
    reply: Reply


class Script:
    """Queues of scripted errors and chat answers. Safe for several threads: deques pop atomically."""

    def __init__(self) -> None:
        self._chats: Final[deque[ScriptedChat]] = deque()
        self._next: Final[deque[Reply]] = deque()
        self._refusals: Final[list[_Refusal]] = []

    def add(self, reply: Reply, times: int) -> None:
        """Answer the next requests with a response."""
        self._next.extend(evolve(reply) for _ in range(times))

    def refuse(self, texts: Sequence[str], reply: Reply) -> None:
        """Answer every request that has one of these texts with a response."""
        self._refusals.append(_Refusal(texts=frozenset(texts), reply=reply))

    def reply_to(self, texts: Sequence[str]) -> Reply | None:
        """The scripted response to a request with these texts, None if it is to succeed."""
        try:
            # Pop first and catch: a check of the length before it would be a race between threads.
            return self._next.popleft()
        except IndexError:
            return next((each.reply for each in self._refusals if not each.texts.isdisjoint(texts)), None)

    def add_chat(self, chat: ScriptedChat, times: int) -> None:
        """Answer the next chats."""
        self._chats.extend(chat for _ in range(times))

    def next_chat(self) -> ScriptedChat | None:
        """The scripted answer to a chat, None if there is none."""
        try:
            return self._chats.popleft()
        except IndexError:
            return None

    def clear(self) -> None:
        """Remove everything that is scripted."""
        self._next.clear()
        self._chats.clear()
        self._refusals.clear()


# Plugins that are discovered without being installed.


class _FakeDistribution(Distribution):
    """The metadata of a distribution that has nothing but an entry point."""

    def __init__(self, provider: str, module: str) -> None:
        self._files: Final = {
            "METADATA": f"Metadata-Version: 2.1\nName: {self.name_for(provider)}\nVersion: 0\n",
            "entry_points.txt": f"[{PROJECT}]\n{provider} = {module}\n",
        }

    @staticmethod
    def name_for(provider: str) -> str:
        """The name of the distribution for a provider."""
        return f"fake-{provider}"

    def read_text(self, filename: str) -> str | None:
        """A file of the metadata."""
        return self._files.get(filename)

    def locate_file(self, path: Any) -> SimplePath:
        """There are no files."""
        raise FileNotFoundError(path)


class _FakeFinder(MetaPathFinder):
    """An import hook that finds one distribution, and no modules."""

    def __init__(self, provider: str, module: str) -> None:
        self._name: Final = _FakeDistribution.name_for(provider)
        self._distribution: Final = _FakeDistribution(provider, module)

    def find_spec(self, *_: object) -> None:
        """Find no module."""

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        """Find the distribution, unless another name is asked for."""
        # importlib.metadata asks for one distribution by its normalized name, or for all with None.
        name = None if context is None else context.name
        if name is None or name.replace("_", "-") == self._name:
            yield self._distribution


@contextmanager
def installed(provider: str, plugin: object) -> Iterator[None]:
    """Make a plugin discoverable for every client created in the block, as if it were installed.

    Args:
        provider: the provider's name.
        plugin: the plugin's module, or any object with its hooks.
    """
    # An entry point names a module, so the plugin is registered under a unique module name.
    module = f"_llmopt_fake_{provider.replace('-', '_')}_{id(plugin):x}"
    finder = _FakeFinder(provider, module)
    sys.modules[module] = plugin  # type: ignore[assignment] # import returns what sys.modules holds, module or not
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.modules.pop(module, None)


@frozen(kw_only=True)
class FakeCall:
    """One request that a `FakeProvider` received.

    Attributes:
        operation: "embeddings", "catalog" or "chat"; "other" for anything else, which gets a 404.
        model: the model of the request, "" for the list of models.
        texts: the texts to embed, in order.
        messages: the conversation of a chat.
        body: the whole body, as JSON.
    """

    operation: Literal["embeddings", "catalog", "chat", "other"]
    model: str = ""
    texts: tuple[str, ...] = field(default=(), repr=repr_size)
    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=repr_size)
    body: Any = field(default=None, repr=False)


class FakeProvider:
    """A provider that answers in memory, with the same vectors for the same texts.

    ::

        with FakeProvider() as fake, llmopt.Client(fake.config, transport=fake.transport) as client:
            found = client.embed("fake/any-model", ["a text"])
            assert fake.texts == ["a text"]
            fake.say("Hello", " there")
            assert client.chat("fake/any-model", [{"role": "user", "content": "Hi"}]).text == "Hello there"

    Under pytest the fixture ``llmopt_fake`` is one. With a name, such as ``FakeProvider("acme")``, it replaces
    that provider, so that the application's model names need no change.

    Args:
        name: the provider's name.
        dimensions: length of the vectors, unless a call asks for another.
        models: ids of the models in its list.
        max_retries: retries after the first attempt, without delay.
        max_batch_size: maximum texts in a request.

    Attributes:
        config: for ``llmopt.Client`` or ``llmopt.AsyncClient``; it reads neither files nor environment.
        transport: for the same.
        calls: the requests received, in order.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        dimensions: int = 8,
        models: Sequence[str] = ("fake-embed", "fake-chat"),
        max_retries: int = 2,
        max_batch_size: int | None = None,
    ) -> None:
        self._plugin: Final = f"fake-{name}"
        self._dimensions: Final = dimensions
        self._models: Final = tuple(models)
        self._script: Final = Script()
        self._stack: Final = ExitStack()
        entry = ProviderEntry(
            name=name,
            plugin=self._plugin,
            max_retries=max_retries,
            max_batch_size=max_batch_size,
            retry_delay=0.0,
            # A scripted 429 must not make the limiter slow down the test's next call.
            flags={"limiter": False},
        )
        self.config: Final = Config(providers={name: entry})
        self.transport: Final[httpx.AsyncBaseTransport] = function_transport(self._answer)
        self.calls: Final[list[FakeCall]] = []

    def __enter__(self) -> Self:
        self._stack.enter_context(installed(self._plugin, FakePlugin()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def texts(self) -> list[str]:
        """All texts received, in order; a text that was sent again is there again."""
        return [text for call in self.calls for text in call.texts]

    def vector(self, text: str, *, dimensions: int | None = None) -> tuple[float, ...]:
        """The vector for a text: of norm 1, always the same."""
        return vector_of(text, dimensions or self._dimensions)

    def fail_next(
        self,
        error: type[LLMOptError],
        *,
        times: int = 1,
        message: str = "scripted by the test",
        retry_after: float | None = None,
    ) -> None:
        """Make the next requests fail. Each attempt counts as a request.

        Args:
            error: the error that a caller gets, such as ``llmopt.RateLimited``; ``ConnectFailed``,
                ``ConnectionLost``, ``AttemptTimeout`` and ``InvalidResponse`` work too.
            times: how many requests.
            message: the provider's message.
            retry_after: seconds in its Retry-After header.

        Raises:
            ValueError: no response of a provider leads to this error.
        """
        self._script.add(reply_for(error, message, retry_after), times)

    def refuse(self, *texts: str, error: type[LLMOptError], message: str = "scripted by the test") -> None:
        """Make every request with one of these texts fail, for example with ``llmopt.ItemRejected``."""
        self._script.refuse(texts, reply_for(error, message, None))

    def say(
        self,
        *pieces: str,
        reasoning: str = "",
        tool_calls: Sequence[ToolCall] = (),
        provider_data: Mapping[str, Any] | None = None,
        finish_reason: str = "",
        times: int = 1,
        pause: float = 0.0,
        ends: Ending = "done",
        error: type[LLMOptError] = ServerError,
    ) -> None:
        """Script the answer to the next chat. Without a script, a chat repeats the last message, word by word.

        Args:
            pieces: the text; in a stream each piece is one event.
            reasoning: the reasoning before the text.
            tool_calls: tool calls in the answer, each with its ``provider_data``.
            provider_data: what this provider wants back with the next request; `calls` shows whether it came back.
            finish_reason: by default "tool_calls" with tool calls and "stop" without.
            times: number of chats with this answer.
            pause: seconds before each event of a stream.
            ends: how a stream ends after the pieces: "done" completely, "cut" without its last events, "break" with a
                lost connection, "error" with ``error``. A chat that is not streamed always succeeds.
            error: the error that the event in the stream leads to.

        Raises:
            ValueError: no response of a provider leads to this error.
        """
        reason = finish_reason or ("tool_calls" if tool_calls else "stop")
        answer = SampleChat(
            pieces=pieces,
            reasoning=reasoning,
            tool_calls=tuple(tool_calls),
            provider_data=provider_data or {},
            finish_reason=reason,
            completion_tokens=len(pieces),
        )
        failing = reply_for(error, "scripted by the test", None)
        if failing.breaks and ends == "error":
            raise ValueError(
                f"no event in a stream leads to {error.__name__}; use ends='break' for a lost connection."
            )
        chat = ScriptedChat(answer=answer, ends=ends, error=failing.body.decode(), pause=pause)
        self._script.add_chat(chat, times)

    def reset(self) -> None:
        """Remove all recorded calls and all scripted responses."""
        self.calls.clear()
        self._script.clear()

    def _answer(self, sent: SentRequest) -> Reply:
        call = _call_of(sent)
        self.calls.append(call)
        scripted = self._script.reply_to(call.texts)
        if scripted is not None:
            return scripted
        if call.operation == "catalog":
            return Reply(body=catalog_body(SamplePage(models=self._models)))
        if call.operation == "chat":
            return self._reply_to_chat(call)
        if call.operation == "other":
            return Reply(
                status=404, body=error_body(SampleError(status=404, message="this fake does not do that"))
            )
        return Reply(body=self._vectors(call))

    def _reply_to_chat(self, call: FakeCall) -> Reply:
        chat = self._script.next_chat() or ScriptedChat(answer=SampleChat(pieces=_echo(call.messages)))
        tokens = sum(len(str(message.get("content")).split()) for message in call.messages)
        chat = evolve(chat, answer=evolve(chat.answer, model=call.model, prompt_tokens=tokens))
        options = call.body.get("stream_options") or {}
        return chat.reply(stream=bool(call.body.get("stream")), usage=bool(options.get("include_usage")))

    def _vectors(self, call: FakeCall) -> bytes:
        dimensions = call.body.get("dimensions") or self._dimensions
        rows = tuple((index, vector_of(text, dimensions)) for index, text in enumerate(call.texts))
        tokens = sum(len(text.split()) for text in call.texts)
        base64 = call.body.get("encoding_format") == "base64"
        return embeddings_body(SampleRows(rows=rows, tokens=tokens, model=call.model, base64=base64))

    def __repr__(self) -> str:
        return f"FakeProvider({', '.join(self.config.providers)}, calls={len(self.calls)})"


def _call_of(sent: SentRequest) -> FakeCall:
    body = sent.json
    if sent.method == "GET" and sent.target.partition("?")[0].endswith("/models"):
        return FakeCall(operation="catalog")
    messages = body.get("messages") if isinstance(body, dict) else None
    if isinstance(messages, list):
        return FakeCall(operation="chat", model=body["model"], messages=tuple(messages), body=body)
    texts = body.get("input") if isinstance(body, dict) else None
    if not isinstance(texts, list):
        return FakeCall(operation="other", body=body)
    return FakeCall(operation="embeddings", model=body["model"], texts=tuple(texts), body=body)


def _echo(messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The words of the last message, each with the space before it."""
    content = messages[-1].get("content") if messages else None
    first, *others = content.split(" ") if isinstance(content, str) else [""]
    return (first, *(f" {word}" for word in others))
