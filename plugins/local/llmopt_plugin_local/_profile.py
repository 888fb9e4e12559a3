"""The profile of local servers, and the options that they add to a provider entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import evolve

from llmopt import Option, Profile, ProviderEntry, Timeouts
from llmopt_plugin_local._addresses import is_loopback
from llmopt_plugin_local._flavours import FLAVOURS, INFINITY, LLAMACPP, LMSTUDIO, OLLAMA, TEI, VLLM

_MAX_PROCESSES: Final = 16
"""This process does a sixth of the work itself for texts of 150 words, and half of it for 15 words: more would be idle."""
_OPTIONS: Final = (
    Option(
        name="flavour",
        choices=FLAVOURS,
        help="which server it is, to ask it natively and for its limits; the common dialect unless given",
    ),
    Option(
        name="truncate",
        type=bool,
        help="whether TEI, Ollama and vLLM cut a text that is too long, instead of refusing it",
    ),
    Option(
        name="processes",
        type=int,
        choices=tuple(range(_MAX_PROCESSES + 1)),
        help="how many processes compute the embedded model; 0, the default: this one, with one core",
    ),
)


_NO_CHAT: Final = frozenset({"embeddings", "catalog"})
_EMBEDDED: Final = Profile(
    key_required=False,
    in_process=True,
    max_retries=0,
    max_concurrency=2,
    options=_OPTIONS,
    operations=_NO_CHAT,
)
_ADDRESSES: Final[Mapping[str, str]] = {
    TEI: "http://127.0.0.1:3000",
    OLLAMA: "http://127.0.0.1:11434",
    VLLM: "http://127.0.0.1:8000",
    LLAMACPP: "http://127.0.0.1:8080",
    INFINITY: "http://127.0.0.1:7997",
    LMSTUDIO: "http://127.0.0.1:1234",
}
"""The default address of each server."""


def profile_of(entry: ProviderEntry) -> Profile:
    """No key needed. A server on this machine gets one retry, a remote one four, the embedded engine none."""
    flavour = str(entry.options.get("flavour"))
    usual = _ADDRESSES.get(flavour)
    if entry.base_url is None and usual is None:
        processes = entry.options.get("processes")
        # A wrong value is refused when the options are checked. With one more, none waits for its next request.
        return (
            evolve(_EMBEDDED, max_concurrency=processes + 1)
            if isinstance(processes, int) and processes
            else _EMBEDDED
        )
    return Profile(
        # With a flavour, the user has said which server is at that address.
        base_url=usual and (entry.base_url or usual),
        key_required=False,
        timeouts=Timeouts(connect=30, read=10, read_large=60, catalog=30, pool=5, first=300, first_event=300),
        max_retries=1 if is_loopback(entry.base_url or str(usual)) else 4,
        retry_delay=0.2,
        # Most servers on one machine compute one request at a time; a longer queue there only adds latency.
        max_concurrency=8,
        # An unknown server may not send its own end of a stream.
        stream_end="done" if flavour in _ADDRESSES else "finish",
        options=_OPTIONS,
        # What the other servers have depends on the model that they run.
        operations=_NO_CHAT if flavour in (TEI, INFINITY) else None,
    )
