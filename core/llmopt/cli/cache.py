"""``llmopt cache``: show and clear the disk cache.

It reads the configuration file, the environment and the files of the disk cache, deletes entries from it, and prints.
Each folder is opened on a short-lived event loop by a `DiskStore`, which works in a thread of its own; this renames and
replaces a corrupt file, also for ``info``, and logs a fault of the disk instead of raising it. It sends no request. To
check the name of a provider, ``clear`` reads the metadata of installed plugins, and imports none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click
from attrs import field, frozen

from llmopt.cache.disk import DiskStore, cache_folder
from llmopt.cache.files import CacheFiles
from llmopt.cache.store import CacheSize
from llmopt.cli.console import (
    CommandError,
    Exit,
    common_options,
    example,
    format_bytes,
    print_json,
    print_message,
    print_table,
    printable,
)
from llmopt.client.options import CACHE_WORDS
from llmopt.config.load import load_config
from llmopt.config.schema import Config
from llmopt.providers.discovery import discover_plugins

_KINDS: Final = {"catalog": "list of models", "embeddings": "vectors", "limits": "learned limits"}


@frozen(kw_only=True)
class _Folder:
    """A cache folder and what is in it.

    Attributes:
        path: the folder.
        exists: whether there is a cache in it.
        size: how much it holds.
    """

    path: Path
    exists: bool
    size: CacheSize = field(factory=CacheSize)


@click.group(
    "cache",
    short_help="Show and clear the disk cache.",
    epilog=example("llmopt cache info", "llmopt cache clear openai", "llmopt cache clear"),
)
def command() -> None:
    """Show and clear the disk cache.

    It holds lists of models, learned limits of batches and rates, and vectors where caching them is switched on.
    """


@command.command("info", epilog=example("llmopt cache info", "llmopt cache info --json"))
@common_options
def info(*, config: str | None, as_json: bool, no_color: bool) -> Exit:
    """Show where the cache is, what it holds, and how large it is."""
    loaded = load_config(config, environ=os.environ)
    folders = [asyncio.run(_inspect(path)) for path in _configured_folders(loaded)]
    if as_json:
        print_json({"caches": [_as_json(folder) for folder in folders]})
        return Exit.OK
    for folder in folders:
        click.echo(f"{printable(str(folder.path))}: {_summary(folder)}")
        groups = sorted(folder.size.groups.items())
        rows = [(*_kind_and_provider(group), str(entries)) for group, entries in groups]
        print_table(("what", "provider", "entries"), rows, no_color=no_color)
    return Exit.OK


@command.command("clear", epilog=example("llmopt cache clear", "llmopt cache clear openai mistral"))
@click.argument("providers", nargs=-1, metavar="[PROVIDER]...")
@common_options
def clear(providers: tuple[str, ...], *, config: str | None, as_json: bool, no_color: bool) -> Exit:  # noqa: ARG001 - as every command
    """Delete everything in the cache, or what is cached of these providers.

    Other processes can use the cache meanwhile; what they have in memory stays there.
    """
    loaded = load_config(config, environ=os.environ)
    folders = _configured_folders(loaded)
    if providers:
        _check_names(providers, loaded, folders)
    removed = sum(asyncio.run(_clear(path, providers)) for path in folders)
    if as_json:
        print_json({"removed": removed})
    else:
        print_message(f"{_entries(removed)} removed.")
    return Exit.OK


def _check_names(names: Iterable[str], config: Config, folders: Iterable[Path]) -> None:
    """Refuse a name that is no provider's: a misspelt one would leave everything in the cache, without a word.

    A provider may have been removed since, so a name that is in the cache counts as well.
    """
    sizes = [asyncio.run(_inspect(path)).size for path in folders]
    known = {*config.providers, *(_kind_and_provider(group)[1] for size in sizes for group in size.groups)}
    installed = discover_plugins()
    unknown = [name for name in names if name not in known and name not in installed]
    if unknown:
        listed = ", ".join(sorted(known)) or "none, because nothing is cached or configured"
        raise CommandError(
            f"unknown provider {unknown[0]!r}; the names in the cache and the configuration: {listed}."
        )


def _configured_folders(config: Config) -> list[Path]:
    """Every folder that the configuration caches something in."""
    # A value of `cache` that is not one of the words is a folder.
    named = isinstance(config.cache, str) and config.cache not in CACHE_WORDS
    shared = str(config.cache) if named else config.cache_dir
    own = filter(None, (entry.cache_dir for entry in config.providers.values()))
    return list(dict.fromkeys(map(cache_folder, (shared, *own))))


async def _inspect(path: Path) -> _Folder:
    if not CacheFiles(path, max_bytes=0).path.exists():
        # A store would create the file.
        return _Folder(path=path, exists=False)
    store = DiskStore(path)
    try:
        return _Folder(path=path, exists=True, size=await store.size())
    finally:
        await store.aclose()


async def _clear(path: Path, providers: tuple[str, ...]) -> int:
    """Clear one folder; return how many entries are gone."""
    before = await _inspect(path)
    if not before.exists:
        return 0
    store = DiskStore(path)
    try:
        if not providers:
            await store.clear()
        for group in before.size.groups if providers else ():
            if _kind_and_provider(group)[1] in providers:
                await store.clear(group)
        return before.size.entries - (await store.size()).entries
    finally:
        await store.aclose()


def _kind_and_provider(group: str) -> tuple[str, str]:
    kind, _, provider = group.partition("/")
    return _KINDS.get(kind, kind), provider


def _summary(folder: _Folder) -> str:
    if not folder.exists:
        return "nothing is cached"
    size = folder.size
    return f"{format_bytes(size.bytes)} of {format_bytes(size.max_bytes)}, {_entries(size.entries)}"


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number:,} entries"


def _as_json(folder: _Folder) -> dict[str, Any]:
    groups = [
        {"what": group.partition("/")[0], "provider": group.partition("/")[2], "entries": entries}
        for group, entries in sorted(folder.size.groups.items())
    ]
    return {
        "folder": str(folder.path),
        "exists": folder.exists,
        "entries": folder.size.entries,
        "bytes": folder.size.bytes,
        "max_bytes": folder.size.max_bytes,
        "groups": groups,
    }
