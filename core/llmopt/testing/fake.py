"""A provider for the tests of an application: no network, no key, always the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from attrs import evolve, field, frozen

from llmopt.config.tree import Config, ProviderEntry
from llmopt.errors import LLMOptError, ServerError
from llmopt.testing import fake_plugin
from llmopt.testing.dialect import catalog_body, embeddings_body, error_body, vector_of
from llmopt.testing.fake_script import Ending, Script, Speech, reply_of
from llmopt.testing.pretend import installed
from llmopt.testing.samples import SampleChat, SampleError, SamplePage, SampleRows
from llmopt.testing.transport import Reply, Sent, transport_of
from llmopt.values.chat import ToolCall
from llmopt.values.shown import size

if TYPE_CHECKING:
    import httpx


@frozen(kw_only=True)
class FakeCall:
    """One request that a `FakeProvider` got.

    Attributes:
        operation: "embeddings", "catalog" or "chat"; "other" for what a fake provider does not do.
        model: the model asked for, "" for the catalogue.
        texts: the texts to embed, in order.
        messages: the conversation of a chat.
        body: the whole body, as JSON.
    """

    operation: Literal["embeddings", "catalog", "chat", "other"]
    model: str = ""
    texts: tuple[str, ...] = field(default=(), repr=size)
    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=size)
    body: Any = field(default=None, repr=False)


class FakeProvider:
    """A provider that answers in memory.

    ::

        with FakeProvider() as fake, llmopt.Client(fake.config, transport=fake.transport) as client:
            found = client.embed("fake/any-model", ["a text"])
            assert fake.texts == ["a text"]
            fake.say("Hello", " there")
            assert client.chat("fake/any-model", [{"role": "user", "content": "Hi"}]).text == "Hello there"

    Under pytest the fixture ``llmopt_fake`` is one. A name such as ``FakeProvider("acme")`` puts it in
    the place of that provider, so that an application's model names need no change.

    Args:
        name: the provider's name.
        dimensions: length of the vectors where a call asks for none.
        models: ids of the models that it lists.
        max_retries: retries after a first attempt; they follow at once.
        max_batch_size: most texts in a request.

    Attributes:
        config: for ``llmopt.Client`` or ``llmopt.AsyncClient``; neither files nor environment are read with it.
        transport: for the same.
        calls: the requests it got, in order.
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
            # A scripted refusal is one refusal: it must not slow down the test's next call.
            flags={"limiter": False},
        )
        self.config: Final = Config(providers={name: entry})
        self.transport: Final[httpx.AsyncBaseTransport] = transport_of(self._answer)
        self.calls: Final[list[FakeCall]] = []

    def __enter__(self) -> Self:
        self._stack.enter_context(installed(self._plugin, fake_plugin))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def texts(self) -> list[str]:
        """All texts it was asked for, in order; one that was tried again stands there again."""
        return [text for call in self.calls for text in call.texts]

    def vector(self, text: str, *, dimensions: int | None = None) -> tuple[float, ...]:
        """The vector that it gives for a text: of length 1, the same each time."""
        return vector_of(text, dimensions or self._dimensions)

    def fail_next(
        self,
        error: type[LLMOptError],
        *,
        times: int = 1,
        message: str = "scripted by the test",
        retry_after: float | None = None,
    ) -> None:
        """Let the next requests fail, each attempt counting.

        Args:
            error: what a caller is to see, such as ``llmopt.RateLimited``; ``ConnectFailed``,
                ``ConnectionLost``, ``AttemptTimeout`` and ``InvalidResponse`` work too.
            times: how many requests.
            message: what the provider says.
            retry_after: seconds that it asks to wait.

        Raises:
            ValueError: no provider can bring about that error.
        """
        self._script.add(reply_of(error, message, retry_after), times)

    def refuse(self, *texts: str, error: type[LLMOptError], message: str = "scripted by the test") -> None:
        """Let every request with one of these texts fail, such as with ``llmopt.ItemRejected``."""
        self._script.refuse(texts, reply_of(error, message, None))

    def say(
        self,
        *pieces: str,
        reasoning: str = "",
        tool_calls: Sequence[ToolCall] = (),
        finish_reason: str = "",
        times: int = 1,
        pause: float = 0.0,
        ends: Ending = "done",
        error: type[LLMOptError] = ServerError,
    ) -> None:
        """Answer the next chat so; without it a chat repeats the last message's text, word by word.

        Args:
            pieces: the text; a stream brings each piece as an event of its own.
            reasoning: what the model thought before.
            tool_calls: tools that it wants called.
            finish_reason: by default "tool_calls" with tool calls and "stop" without.
            times: how many chats are answered so.
            pause: seconds before each event of a stream.
            ends: how a stream ends behind the pieces: "done" as it should, "cut" without its end, "break" as the
                connection breaks, "error" with ``error``. Chats that are not streamed end well.
            error: what the error in the stream means.

        Raises:
            ValueError: no provider can bring about that error.
        """
        reason = finish_reason or ("tool_calls" if tool_calls else "stop")
        answer = SampleChat(
            pieces=pieces,
            reasoning=reasoning,
            tool_calls=tuple(tool_calls),
            finish_reason=reason,
            completion_tokens=len(pieces),
        )
        failing = reply_of(error, "scripted by the test", None)
        if failing.breaks and ends == "error":
            raise ValueError(
                f"no error in a stream means {error.__name__}; ends='break' breaks the connection."
            )
        speech = Speech(answer=answer, ends=ends, error=failing.body.decode(), pause=pause)
        self._script.say(speech, times)

    def reset(self) -> None:
        """Forget all calls and all scripted errors."""
        self.calls.clear()
        self._script.clear()

    def _answer(self, sent: Sent) -> Reply:
        call = _call_of(sent)
        self.calls.append(call)
        scripted = self._script.reply_to(call.texts)
        if scripted is not None:
            return scripted
        if call.operation == "catalog":
            return Reply(body=catalog_body(SamplePage(models=self._models)))
        if call.operation == "chat":
            return self._chat(call)
        if call.operation == "other":
            return Reply(
                status=404, body=error_body(SampleError(status=404, message="this fake does not do that"))
            )
        return Reply(body=self._vectors(call))

    def _chat(self, call: FakeCall) -> Reply:
        speech = self._script.next_speech() or Speech(answer=SampleChat(pieces=_echo(call.messages)))
        tokens = sum(len(str(message.get("content")).split()) for message in call.messages)
        speech = evolve(speech, answer=evolve(speech.answer, model=call.model, prompt_tokens=tokens))
        options = call.body.get("stream_options") or {}
        return speech.reply(stream=bool(call.body.get("stream")), usage=bool(options.get("include_usage")))

    def _vectors(self, call: FakeCall) -> bytes:
        dimensions = call.body.get("dimensions") or self._dimensions
        rows = tuple((index, vector_of(text, dimensions)) for index, text in enumerate(call.texts))
        tokens = sum(len(text.split()) for text in call.texts)
        base64 = call.body.get("encoding_format") == "base64"
        return embeddings_body(SampleRows(rows=rows, tokens=tokens, model=call.model, base64=base64))

    def __repr__(self) -> str:
        return f"FakeProvider({', '.join(self.config.providers)}, calls={len(self.calls)})"


def _call_of(sent: Sent) -> FakeCall:
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
    """The last message's words, each with the space before it."""
    content = messages[-1].get("content") if messages else None
    first, *others = content.split(" ") if isinstance(content, str) else [""]
    return (first, *(f" {word}" for word in others))
