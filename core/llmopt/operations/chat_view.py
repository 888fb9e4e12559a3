"""What can be known of a streamed answer while it comes and afterwards."""

from __future__ import annotations

from typing import Final

from llmopt.operations.chat_source import ChatSource
from llmopt.values.chat import ChatReply, ToolCall
from llmopt.values.embeddings import Usage


class ChatView:
    """A streamed answer as far as its events were handed out, whatever became of the rest.

    Attributes:
        source: where the events come from.
    """

    def __init__(self, source: ChatSource) -> None:
        self.source: Final = source
        self._gathered: Final = source.gathered

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._gathered.text

    @property
    def reasoning(self) -> str:
        """What the model thought so far, where the server shows it."""
        return self._gathered.reasoning

    @property
    def refusal(self) -> str:
        """The refusal so far, where the server keeps it apart from the answer."""
        return self._gathered.refusal

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, in order; the arguments of the last one may be unfinished."""
        return self._gathered.tool_calls

    @property
    def finish_reason(self) -> str | None:
        """Why the model ended, in the server's word; None while it has not."""
        return self._gathered.finish_reason

    @property
    def usage(self) -> Usage | None:
        """The tokens, None while the server has not told them; most tell them at the end."""
        return self._gathered.usage

    @property
    def model(self) -> str:
        """The model that answers, as it names itself; "" while it has not."""
        return self._gathered.model

    @property
    def request_id(self) -> str | None:
        """The provider's id of the request, None before the answer began and where there is none."""
        return self.source.request_id

    @property
    def reply(self) -> ChatReply:
        """All of it so far, as ``chat`` would give it."""
        return self._gathered.reply(self.source.request_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source.state}: {len(self.text)} characters>"
