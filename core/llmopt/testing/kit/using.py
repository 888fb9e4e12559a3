"""A plugin in use by llmopt's client, with a server in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, TypeVar

from llmopt.client.async_client import AsyncClient
from llmopt.config.tree import Config
from llmopt.errors import LLMOptError
from llmopt.providers.discovery import discover
from llmopt.testing.kit.check import CheckFailed, NotApplicable, explain
from llmopt.testing.kit.server import PretendedServer
from llmopt.testing.kit.subject import Subject
from llmopt.testing.pretend import installed
from llmopt.values.profile import Profile

_T = TypeVar("_T")

STRAIGHT: Final = {"retry": False, "cache": False, "coalesce": False}
"""Every call is a request, and every request is sent once."""


@contextmanager
def ready(subject: Subject, **changes: Any) -> Iterator[Config]:
    """A configuration in which the plugin is found, whether installed or not, and the environment is bare."""
    if not subject.base_url:
        raise NotApplicable("the provider works inside the process")
    there = _is_installed(subject)
    plugin = subject.name if there else f"kit-{subject.name}"
    entry = subject.entry_with(plugin=plugin, max_retries=0, retry_delay=0.0, **changes)
    held = {name: os.environ.pop(name) for name in _variables(subject.profile) if name in os.environ}
    try:
        with nullcontext() if there else installed(plugin, subject.plugin):
            yield Config(providers={subject.name: entry})
    finally:
        os.environ.update(held)


def _is_installed(subject: Subject) -> bool:
    """Whether the plugin is found under its name as it is: a general one knows its provider by it."""
    found = discover().get(subject.name)
    return (
        found is not None
        and found.conflict is None
        and found.entry_points[0].value == subject.sources.module_name
        and found.load() is subject.plugin
    )


def _variables(profile: Profile) -> set[str]:
    options = (name for each in profile.options for name in each.env)
    return {*profile.key_env, *profile.base_url_env, *options}


def run(
    subject: Subject,
    server: PretendedServer,
    work: Callable[[AsyncClient], Coroutine[Any, Any, _T]],
    *,
    wrappers: Sequence[object] = (),
    **changes: Any,
) -> _T:
    """What comes of work with a client.

    Args:
        subject: the plugin.
        server: answers.
        work: gets the client.
        wrappers: wrapper plugins of the user's.
        changes: what is different about the plugin's entry.
    """

    async def main(config: Config) -> _T:
        transport = server.transport
        async with AsyncClient(config, transport=transport, plugins=wrappers, flags=STRAIGHT) as client:
            return await work(client)

    # With a factory the runner leaves the thread's own event loop alone.
    with ready(subject, **changes) as config, asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(main(config))


def embed(subject: Subject, server: PretendedServer, texts: tuple[str, ...], **changes: Any) -> Any:
    """The vectors of some texts."""
    subject.without("embeddings")
    model = f"{subject.name}/{subject.samples.model}"
    return run(subject, server, lambda client: client.embed(model, texts), **changes)


def fails(kinds: tuple[type[LLMOptError], ...], ask: Callable[[], object]) -> LLMOptError:
    """Expect one of some errors, and give it.

    Raises:
        CheckFailed: there was none, or another.
    """
    try:
        ask()
    except kinds as error:
        return error
    except LLMOptError as error:
        raise CheckFailed(f"it raised {type(error).__name__}: {explain(error)}") from None
    raise CheckFailed("no error was raised.")
