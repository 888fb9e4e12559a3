"""``llmopt cache``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import click
from attrs import field, frozen

from llmopt.cache.disk import DiskStore, cache_folder
from llmopt.cache.files import CacheFiles
from llmopt.cache.store import CacheSize
from llmopt.cli.console import Exit, bytes_of, example, plain, print_json, print_table, say, shared
from llmopt.client.options import CACHE_WORDS
from llmopt.config.load import load_config

_KINDS: Final = {"catalog": "list of models", "embeddings": "vectors"}


@frozen(kw_only=True)
class _Found:
    """A store on disk."""

    folder: Path
    there: bool
    size: CacheSize = field(factory=CacheSize)


@click.group(
    "cache",
    short_help="See and clear what is kept on disk.",
    epilog=example("llmopt cache info", "llmopt cache clear openai", "llmopt cache clear"),
)
def command() -> None:
    """See and clear what is kept on disk: lists of models, and vectors where that is switched on."""


@command.command("info", epilog=example("llmopt cache info", "llmopt cache info --json"))
@shared
def info(*, config: str | None, as_json: bool, no_color: bool) -> Exit:
    """Show where the cache is, what is in it, and how much it takes."""
    found = [asyncio.run(_look(folder)) for folder in _folders(config)]
    if as_json:
        print_json({"caches": [_table(each) for each in found]})
        return Exit.OK
    for each in found:
        size = each.size
        click.echo(f"{plain(str(each.folder))}: {_state(each)}")
        rows = [(*_named(group), str(entries)) for group, entries in sorted(size.groups.items())]
        print_table(("what", "provider", "entries"), rows, no_color=no_color)
    return Exit.OK


@command.command("clear", epilog=example("llmopt cache clear", "llmopt cache clear openai mistral"))
@click.argument("providers", nargs=-1, metavar="[PROVIDER]...")
@shared
def clear(providers: tuple[str, ...], *, config: str | None, as_json: bool, no_color: bool) -> Exit:  # noqa: ARG001 - as every command
    """Let everything go that is kept, or what is kept of these providers.

    Other processes that use the cache go on; what they have in memory they keep.
    """
    removed = sum(asyncio.run(_clear(folder, providers)) for folder in _folders(config))
    if as_json:
        print_json({"removed": removed})
    else:
        say(f"{_entries(removed)} removed.")
    return Exit.OK


def _folders(source: str | None) -> list[Path]:
    """Every folder that the configuration keeps something in."""
    config = load_config(source, environ=os.environ)
    chosen = (
        config.cache
        if isinstance(config.cache, str) and config.cache not in CACHE_WORDS
        else config.cache_dir
    )
    own = (entry.cache_dir for entry in config.providers.values())
    return list(dict.fromkeys(map(cache_folder, (chosen, *filter(None, own)))))


async def _look(folder: Path) -> _Found:
    if not CacheFiles(folder, max_bytes=0).path.exists():
        # Looking makes no file.
        return _Found(folder=folder, there=False)
    store = DiskStore(folder)
    try:
        return _Found(folder=folder, there=True, size=await store.size())
    finally:
        await store.aclose()


async def _clear(folder: Path, providers: tuple[str, ...]) -> int:
    found = await _look(folder)
    if not found.there:
        return 0
    store = DiskStore(folder)
    try:
        if not providers:
            await store.clear()
        for group in found.size.groups if providers else ():
            if _named(group)[1] in providers:
                await store.clear(group)
        return found.size.entries - (await store.size()).entries
    finally:
        await store.aclose()


def _named(group: str) -> tuple[str, str]:
    kind, _, provider = group.partition("/")
    return _KINDS.get(kind, kind), provider


def _state(found: _Found) -> str:
    if not found.there:
        return "nothing is kept"
    return f"{bytes_of(found.size.bytes)} of {bytes_of(found.size.max_bytes)}, {_entries(found.size.entries)}"


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number:,} entries"


def _table(found: _Found) -> dict[str, Any]:
    groups = [
        {"what": group.partition("/")[0], "provider": group.partition("/")[2], "entries": entries}
        for group, entries in sorted(found.size.groups.items())
    ]
    return {
        "folder": str(found.folder),
        "exists": found.there,
        "entries": found.size.entries,
        "bytes": found.size.bytes,
        "max_bytes": found.size.max_bytes,
        "groups": groups,
    }
