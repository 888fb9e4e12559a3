"""A correct plugin, and copies of it with one planted fault each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from itertools import count
from pathlib import Path
from types import ModuleType

from attrs import frozen

_numbers = count()

HEAD = '''
"""A plugin for the common dialect."""

from __future__ import annotations

from attrs import evolve

from llmopt import BatchLimit, Call, CatalogPage, ChatCall, ChatEvent, ChatReply, EmbedCall, EmbeddedRows, Failure, HttpRequest, HttpResponse, Profile, RateLimits, ServerEvent, Settings, StreamStep, Verdict, VerdictKind, hookimpl
from llmopt import compatible
'''

HOOKS = {
    "provider_profile": """
@hookimpl
def provider_profile() -> Profile:
    return Profile(base_url="https://api.acme.example/v1", key_env=("ACME_API_KEY",))
""",
    "batch_limit": """
@hookimpl
def batch_limit() -> BatchLimit:
    return BatchLimit(max_items=16, max_item_tokens=512, max_tokens=8192)
""",
    "build_request": """
@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    return compatible.build_request(call, settings)
""",
    "parse_embeddings": """
@hookimpl
def parse_embeddings(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    return compatible.parse_embeddings(call, response)
""",
    "parse_catalog": """
@hookimpl
def parse_catalog(response: HttpResponse) -> CatalogPage | Failure:
    return compatible.parse_catalog(response)
""",
    "parse_chat": """
@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    return compatible.parse_chat(call, response)
""",
    "parse_stream_event": """
@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    return compatible.parse_stream_event(call, event)
""",
    "classify_error": """
@hookimpl
def classify_error(failure: Failure) -> Verdict:
    return compatible.classify(failure)
""",
}


@frozen(kw_only=True)
class Fault:
    """One fault.

    Attributes:
        name: a few words for the fault.
        hook: the hook that has the fault, "" for none.
        source: the faulty code; it replaces the hook, or is added to the module if there is no hook.
        check: id of the check that must find the fault.
        says: a regular expression that the message must match.
    """

    name: str
    hook: str = ""
    source: str
    check: str
    says: str


def source_of(fault: Fault | None) -> str:
    """Source text of the module with the fault, or without any."""
    hooks = dict(HOOKS)
    if fault is None:
        return HEAD + "\n".join(hooks.values())
    if fault.hook:
        hooks[fault.hook] = fault.source
        return HEAD + "\n".join(hooks.values())
    return HEAD + "\n".join(hooks.values()) + fault.source


@contextmanager
def plugin(folder: Path, source: str) -> Iterator[ModuleType]:
    """Write a package with this source text, and import it."""
    name = f"llmopt_plugin_planted{next(_numbers)}"
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text(source, "utf-8")
    sys.path.insert(0, str(folder))
    invalidate_caches()
    try:
        yield import_module(name)
    finally:
        sys.path.remove(str(folder))
        for each in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[each]
