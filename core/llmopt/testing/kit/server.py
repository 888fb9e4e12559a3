"""A pretended server for one plugin: it answers requests as the plugin's provider would."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from llmopt.errors import LLMOptError
from llmopt.testing.dialect import vector_of
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.texts import order_of
from llmopt.testing.samples import SampleError, SamplePage, SampleRows
from llmopt.testing.transport import Reply, Sent, transport_of
from llmopt.values.calls import CatalogCall

if TYPE_CHECKING:
    import httpx

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
        self.sent: Final[list[Sent]] = []

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The way to it."""
        return transport_of(self.answer)

    def answer(self, sent: Sent) -> Reply:
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

    def _vectors(self, sent: Sent) -> bytes:
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
    from llmopt.engine.prepare import prepare

    settings = subject.settings()
    try:
        prepared = prepare(subject.hooks.build_request(CatalogCall(), settings), settings)
    except LLMOptError:
        return "", ""
    sent = Sent(method=prepared.method, url=prepared.url, headers={})
    return sent.method, sent.target
