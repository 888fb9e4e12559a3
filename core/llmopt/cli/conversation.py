"""What was said so far. Pure."""

from __future__ import annotations

from typing import Final


class Conversation:
    """The messages of a chat on the command line.

    Args:
        system: what the model is told first, None for nothing.
    """

    def __init__(self, system: str | None) -> None:
        self._messages: Final[list[dict[str, str]]] = []
        if system:
            self._messages.append({"role": "system", "content": system})

    def asking(self, question: str) -> list[dict[str, str]]:
        """The messages with which to ask a question."""
        return [*self._messages, {"role": "user", "content": question}]

    def keep(self, question: str, answer: str) -> None:
        """A question was asked, and this came of the answer.

        Without any answer it was not asked: many a model refuses two questions in a row.
        """
        if answer:
            self._messages.append({"role": "user", "content": question})
            self._messages.append({"role": "assistant", "content": answer})
