"""What a `FakeProvider` answers instead of vectors: the errors that a test asks for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

from attrs import evolve, frozen

from llmopt.errors import AttemptTimeout, ConnectFailed, ConnectionLost, InvalidResponse, LLMOptError
from llmopt.testing.dialect import chat_body, chat_stream, error_body, event_of
from llmopt.testing.fake_plugin import PREFIX
from llmopt.testing.samples import SampleChat, SampleError
from llmopt.testing.transport import Reply
from llmopt.values.verdict import EXCEPTION_OF, VerdictKind

_STATUS: Final[dict[VerdictKind, int]] = {
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
_BROKEN: Final[tuple[tuple[type[LLMOptError], Reply], ...]] = (
    (ConnectFailed, Reply(breaks="connect")),
    (ConnectionLost, Reply(breaks="read")),
    (AttemptTimeout, Reply(breaks="timeout")),
    (InvalidResponse, Reply(body=b"<html>this is no JSON</html>")),
)
_KIND_OF: Final[dict[type[LLMOptError], VerdictKind]] = {
    error: kind for kind, error in EXCEPTION_OF.items() if kind is not VerdictKind.INVALID_RESPONSE
}


def reply_of(error: type[LLMOptError], message: str, retry_after: float | None) -> Reply:
    """The answer that reaches a caller as an error of this class.

    Raises:
        ValueError: no provider can bring that error about.
    """
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    for broken, reply in _BROKEN:
        if issubclass(error, broken):
            return reply
    kind = _KIND_OF.get(error)
    if kind is None:
        names = sorted(each.__name__ for each in (*_KIND_OF, *(broken for broken, _ in _BROKEN)))
        raise ValueError(f"a provider cannot bring about {error.__name__}; choose one of {', '.join(names)}.")
    status = _STATUS.get(kind, 400)
    body = error_body(SampleError(status=status, message=message), code=f"{PREFIX}{kind.value}")
    return Reply(status=status, body=body, headers=headers)


Ending = Literal["done", "cut", "break", "error"]
"""How a stream ends: as it should, without its end, with the connection, with an error in it."""


@frozen(kw_only=True)
class Speech:
    """A chat answer that a test asks for."""

    answer: SampleChat
    ends: Ending = "done"
    error: str = ""
    pause: float = 0.0

    def reply(self, *, stream: bool, usage: bool) -> Reply:
        """As one answer, or as a stream."""
        if not stream:
            return Reply(body=chat_body(self.answer))
        events = chat_stream(self.answer, usage=usage)
        if self.ends != "done":
            # Neither a finish reason nor a usage, nor the end itself.
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
    """The errors and the chat answers still to come; they are used up from several threads and tasks."""

    def __init__(self) -> None:
        self._said: Final[deque[Speech]] = deque()
        self._next: Final[deque[Reply]] = deque()
        self._refusals: Final[list[_Refusal]] = []

    def add(self, reply: Reply, times: int) -> None:
        """Give an answer to the next requests."""
        self._next.extend(evolve(reply) for _ in range(times))

    def refuse(self, texts: Sequence[str], reply: Reply) -> None:
        """Give an answer to every request with one of these texts."""
        self._refusals.append(_Refusal(texts=frozenset(texts), reply=reply))

    def reply_to(self, texts: Sequence[str]) -> Reply | None:
        """The answer to a request with these texts, None when it is to go well."""
        try:
            return self._next.popleft()
        except IndexError:
            return next((each.reply for each in self._refusals if not each.texts.isdisjoint(texts)), None)

    def say(self, speech: Speech, times: int) -> None:
        """Give an answer to the next chats."""
        self._said.extend(speech for _ in range(times))

    def next_speech(self) -> Speech | None:
        """The answer to a chat, None when none is scripted."""
        try:
            return self._said.popleft()
        except IndexError:
            return None

    def clear(self) -> None:
        """Forget all of it."""
        self._next.clear()
        self._said.clear()
        self._refusals.clear()
