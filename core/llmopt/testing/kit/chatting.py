"""A pretended server that chats, and a client that talks to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llmopt.client.async_client import AsyncClient
from llmopt.testing.kit.server import PretendedServer
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.talking import chats, decoded, event_read
from llmopt.testing.kit.texts import MESSAGES
from llmopt.testing.kit.using import run
from llmopt.testing.samples import SampleChat, SampleError
from llmopt.testing.transport import Reply, Sent
from llmopt.values.chat import ChatReply


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

    def answer(self, sent: Sent) -> Reply:
        """Answer one request."""
        if sent.method != "POST":
            return super().answer(sent)
        self.sent.append(sent)
        return self._reply


def refusing(subject: Subject, status: int) -> ChattingServer:
    """A server that answers every chat with an error."""
    body = subject.dialect.error(SampleError(status=status, message="the kit says no"))
    return ChattingServer(subject, body, status=status)


def asked(subject: Subject, server: PretendedServer) -> ChatReply:
    """The reply of a chat in one piece."""
    chats(subject)
    return run(subject, server, lambda client: client.chat(_model(subject), MESSAGES))


def listened(subject: Subject, server: PretendedServer) -> Any:
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
    found: list[bytes] = []
    for piece in subject.dialect.stream(answer):
        parts = [part for event in decoded(subject, [piece]) for part in _parts(subject, event)]
        if any(part.last or part.finish_reason for part in parts):
            break
        found.append(piece)
    return found


def _parts(subject: Subject, event: Any) -> tuple[Any, ...]:
    found = event_read(subject, event)
    return found if isinstance(found, tuple) else ()


def _model(subject: Subject) -> str:
    return f"{subject.name}/{subject.samples.model}"
