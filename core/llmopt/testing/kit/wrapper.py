"""A wrapper plugin as a user might write one."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from attrs import evolve

from llmopt.markers import hookimpl
from llmopt.values.http import HttpRequest

ADDED: Final = {"x-kit-wrapper": "was here"}


class HeaderWrapper:
    """Adds a header to every request."""

    @hookimpl(wrapper=True)
    def build_request(self) -> Generator[None, HttpRequest, HttpRequest]:
        """The plugin's request with one header more."""
        request = yield
        return evolve(request, headers={**request.headers, **ADDED})
