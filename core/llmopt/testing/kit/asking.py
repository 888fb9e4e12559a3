"""Requests as a plugin builds them, taken apart."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from llmopt.engine.prepare import encoder, prepare
from llmopt.errors import LLMOptError
from llmopt.testing.kit.check import CheckFailed, expect, explain
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.texts import MESSAGES
from llmopt.values.calls import Call, ChatCall
from llmopt.values.http import HttpRequest
from llmopt.values.settings import Settings


class Asked:
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
            return json.loads(encoder.encode(self.request.json))
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckFailed(
                f"the body cannot be written as JSON: {type(error).__name__}: {error}",
                "HttpRequest.json is made of dict, list, tuple, str, int, float, bool and None.",
            ) from None

    @property
    def everything(self) -> str:
        """URL and body as text, escapes undone: all that is not a header."""
        return f"{self.url}\n{unquote(self.url)}\n{json.dumps(self.body, ensure_ascii=False)}"

    def checked(self) -> None:
        """Hold it against what the core demands of every request.

        Raises:
            CheckFailed: the core would refuse to send it.
        """
        try:
            prepare(self.request, self.settings)
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
        if operation not in subject.samples.without and not refused(subject, call):
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
