"""Other ways out than the network pool, and credentials that a plugin brings."""

from __future__ import annotations

from typing import Final

from llmopt.errors import LLMOptError
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.guard import Watch
from llmopt.testing.kit.subject import Subject

check: Final = Family("transport")


@check("type")
def _type(subject: Subject) -> None:
    """open_transport returns None or an httpx.AsyncBaseTransport."""
    from httpx import AsyncBaseTransport

    found = subject.hooks.open_transport(subject.settings(key=None))
    expect(found is None or isinstance(found, AsyncBaseTransport), f"it returned a {type(found).__name__}.")


@check("own")
def _own(subject: Subject) -> None:
    """Each endpoint gets a transport of its own: the core closes what it gets."""
    settings = subject.settings(key=None)
    first = subject.hooks.open_transport(settings)
    if first is None:
        raise NotApplicable("the plugin uses the core's pool")
    expect(first is not subject.hooks.open_transport(settings), "two calls returned the same transport.")


@check("idle")
def _idle(subject: Subject) -> None:
    """open_transport connects to nothing, starts nothing: that happens with the first request."""
    watch = Watch(subject.sources)
    watch.call(subject.hooks.open_transport, subject.settings(key=None))
    busy = [act for act in watch.acts if act.sin in ("network", "processes", "threads", "sleep")]
    expect(not busy, "; ".join(f"{act.what} at {act.place}" for act in busy))


@check("in-process")
def _in_process(subject: Subject) -> None:
    """A provider that works inside the process opens a transport for an entry without a base URL."""
    bare = subject.entry_with(base_url=None, api_key=None)
    if not subject.hooks.provider_profile(bare).in_process:
        raise NotApplicable("the provider is asked over a network")
    settings = subject.endpoint_of(bare).settings(None)
    try:
        found = subject.hooks.open_transport(settings)
    except LLMOptError as error:
        raise NotApplicable(f"its engine is not installed: {error}") from None
    expect(found is not None, "profile.in_process is True and open_transport returned None.")


@check("credentials")
def _credentials(subject: Subject) -> None:
    """credential_provider returns a function, or None where the configuration asks for none."""
    found = subject.hooks.credential_provider(subject.settings(key=None))
    expect(found is None or callable(found), f"it returned a {type(found).__name__}.")
