"""``llmopt models``: list, filter and sort the models of providers.

The lists come from `llmopt.Client`, which reads the configuration and the environment, and sends requests unless
``--offline`` is given; this file selects and prints. If standard error is a terminal, events update a progress line
there, on the client's thread; rich, which is imported for it, redraws it from a thread of rich's own, under rich's lock.
Errors of providers are printed with a traceback if LLMOPT_TRACEBACK is set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

import click
from attrs import asdict, frozen

from llmopt.cli.console import (
    CommandError,
    Exit,
    common_options,
    error_as_json,
    example,
    exit_code_for,
    format_age,
    format_price,
    print_json,
    print_message,
    print_table,
    print_traceback,
    with_name,
)
from llmopt.errors import LLMOptError, NotCached
from llmopt.operations.models import CacheMode
from llmopt.values.catalog import Catalog, Model, ModelKind
from llmopt.values.events import CatalogDiscover, Event

if TYPE_CHECKING:
    from rich.progress import Progress


def fetch_models(
    providers: tuple[str, ...],
    config: str | None,
    *,
    mode: CacheMode = "auto",
    timeout: float | None = None,
    no_color: bool = False,
) -> Mapping[str, Catalog | LLMOptError]:
    """Fetch the models of providers, with a progress line on a terminal.

    Args:
        providers: names of entries; empty for all that are configured or have a key.
        config: path of the configuration file, None for the default one.
        mode: how to use the cache.
        timeout: seconds for each provider.
        no_color: print without colours.

    Returns:
        For each provider its models, or the error that it failed with.
    """
    from llmopt.client.sync_client import Client

    with FetchProgress(no_color=no_color) as progress, Client(config, on_event=progress.on_event) as client:
        return client.batch_list_models(providers or None, timeout=timeout, cached=mode)


class FetchProgress:
    """Counts providers as they answer: one line on a terminal, removed at the end; nothing anywhere else."""

    def __init__(self, *, no_color: bool) -> None:
        self._bar: Final = _bar(no_color=no_color) if sys.stderr.isatty() else None
        self._task: Final = None if self._bar is None else self._bar.add_task("", total=None, failed="")
        self._failed = 0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_event(self, event: Event) -> None:
        """Update the line; called on the client's thread."""
        if isinstance(event, CatalogDiscover) and self._bar is not None and self._task is not None:
            self._failed += event.outcome != "ok"
            failed = f", {self._failed} without an answer" if self._failed else ""
            self._bar.update(self._task, advance=1, failed=failed)


def _bar(*, no_color: bool) -> Progress:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} providers{task.fields[failed]}"))
    console = Console(stderr=True, no_color=no_color or None)
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


SortKey = Literal["id", "kind", "context", "dimensions", "price", "created", "shutdown"]
SORT_KEYS: Final = get_args(SortKey)


@frozen(kw_only=True)
class ModelFilter:
    """Which models to show, and in which order.

    Attributes:
        text: only models with this in their id, name or aliases, ignoring case.
        kind: only models of this kind.
        min_context: only models known to have a context of at least this many tokens.
        sort: the field to order by, None for the provider's order.
        reverse: reverse the order.
    """

    text: str | None = None
    kind: ModelKind | None = None
    min_context: int | None = None
    sort: SortKey | None = None
    reverse: bool = False

    def apply(self, models: Iterable[Model]) -> list[Model]:
        """The models to show, in order."""
        chosen = [model for model in models if self._fits(model)]
        if self.sort is None:
            return chosen[::-1] if self.reverse else chosen
        key = _KEYS[self.sort]
        known = [model for model in chosen if key(model) is not None]
        unknown = [model for model in chosen if key(model) is None]
        # Models without the value come last in either direction.
        return [*sorted(known, key=key, reverse=self.reverse), *unknown]

    def _fits(self, model: Model) -> bool:
        if self.kind is not None and model.kind != self.kind:
            return False
        if self.min_context is not None and (model.context_length or 0) < self.min_context:
            return False
        return self.text is None or _mentions(model, self.text.casefold())


def _mentions(model: Model, text: str) -> bool:
    return any(text in each.casefold() for each in (model.id, model.name, *model.aliases))


def _price(model: Model) -> float | None:
    return (
        None if model.prices is None or model.prices.input is None else model.prices.input / model.prices.per
    )


_KEYS: Final[Mapping[str, Callable[[Model], Any]]] = {
    "id": lambda model: model.id.casefold(),
    "kind": lambda model: model.kind,
    "context": lambda model: model.context_length,
    "dimensions": lambda model: model.dimensions,
    "price": _price,
    "created": lambda model: model.created,
    "shutdown": lambda model: model.shutdown,
}
_COLUMNS: Final = (
    "provider",
    "model",
    "kind",
    "context",
    "dimensions",
    "in/M",
    "out/M",
    "shutdown",
    "age",
)
_HIDDEN_FIELDS: Final = frozenset({"provider", "raw"})
Found = Mapping[str, Catalog | LLMOptError]


@click.command(
    "models",
    epilog=example(
        "llmopt models local",
        "llmopt models --kind embedding --text small",
        "llmopt models --min-context 100000 --sort context --json",
        "llmopt models --offline",
    ),
)
@click.argument("providers", nargs=-1, metavar="[PROVIDER]...")
@click.option("--text", metavar="TEXT", help="Only models with TEXT in their id, name or aliases.")
@click.option("--kind", type=click.Choice(get_args(ModelKind)), help="Only models of this kind.")
@click.option(
    "--min-context",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Only models with a context of at least TOKENS.",
)
@click.option(
    "--sort",
    type=click.Choice(SORT_KEYS),
    help="Sort by this field; models without it come last.",
)
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@click.option("--refresh", is_flag=True, help="Ask the providers, ignoring the cache.")
@click.option("--offline", is_flag=True, help="Ask no provider; show the cached lists, however old.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time limit for each provider; by default the configured one, else 8.",
)
@common_options
def command(
    providers: tuple[str, ...],
    *,
    text: str | None,
    kind: ModelKind | None,
    min_context: int | None,
    sort: SortKey | None,
    reverse: bool,
    refresh: bool,
    offline: bool,
    timeout: float | None,
    config: str | None,
    as_json: bool,
    no_color: bool,
) -> Exit:
    """List the models of providers.

    Without PROVIDER, all providers that are configured or have a key are asked, ten at a time. Lists are cached
    for an hour; an older one that cannot be refreshed is shown and marked as stale. Providers that fail
    are listed below the table; the exit code is 0 if at least one answered. Prices are per million tokens.
    """
    model_filter = ModelFilter(text=text, kind=kind, min_context=min_context, sort=sort, reverse=reverse)
    results = fetch_models(
        providers, config, mode=_mode(refresh, offline), timeout=timeout, no_color=no_color
    )
    if not results:
        raise CommandError("no provider is configured or has a key; see: llmopt doctor", Exit.SETUP)
    lists = {name: each for name, each in results.items() if isinstance(each, Catalog)}
    failures = {name: _with_option(each) for name, each in results.items() if isinstance(each, LLMOptError)}
    if as_json:
        print_json(_table(lists, failures, model_filter))
    else:
        chosen = model_filter.apply([model for each in lists.values() for model in each])
        ages = {name: _age(each) for name, each in lists.items()}
        print_table(_COLUMNS, [_row(each, ages[each.provider]) for each in chosen], no_color=no_color)
    for name, each in lists.items():
        if each.known:
            print_message(
                f"llmopt: {name}: the provider has no list of models; these are the ones that its plugin knows."
            )
        if each.dropped:
            total = each.dropped + len(each)
            print_message(
                f"llmopt: {name}: {each.dropped} of {total} entries cannot be read and are left out."
            )
    for name, error in failures.items():
        print_traceback(error)
        print_message(f"llmopt: {with_name(name, error.message)}")
    return _code(lists, failures)


def _age(catalog: Catalog) -> str:
    return "known" if catalog.known else format_age(catalog.age, stale=catalog.stale)


def _mode(refresh: bool, offline: bool) -> CacheMode:  # noqa: FBT001 - as click gives them
    if refresh and offline:
        raise CommandError("--refresh asks the providers and --offline asks none; use only one of them.")
    return "refresh" if refresh else "offline" if offline else "auto"


def _with_option(error: LLMOptError) -> LLMOptError:
    """The error, with the option of this command where the message names an argument of Python's."""
    if not isinstance(error, NotCached):
        return error
    return NotCached(
        f"no list of models of {error.provider!r} is cached; run the command once without --offline.",
        provider=error.provider,
    )


def _row(model: Model, age: str) -> tuple[str, ...]:
    prices = model.prices
    return (
        model.provider,
        model.id,
        model.kind,
        *("" if each is None else str(each) for each in (model.context_length, model.dimensions)),
        *(
            "" if prices is None else format_price(each, prices.currency)
            for each in _prices_per_million(model)
        ),
        model.shutdown or "",
        age,
    )


def _prices_per_million(model: Model) -> tuple[float | None, float | None]:
    prices = model.prices
    if prices is None:
        return None, None
    times = 1_000_000 / prices.per
    return (
        None if prices.input is None else prices.input * times,
        None if prices.output is None else prices.output * times,
    )


def _table(
    lists: Mapping[str, Catalog], failures: Mapping[str, LLMOptError], model_filter: ModelFilter
) -> dict[str, Any]:
    return {
        "models": {
            name: [_as_json(model) for model in model_filter.apply(each)] for name, each in lists.items()
        },
        "catalogues": {
            name: {
                "models": len(each),
                "dropped": each.dropped,
                "age_s": round(each.age, 3),
                "stale": each.stale,
                "known": each.known,
            }
            for name, each in lists.items()
        },
        "errors": {name: error_as_json(error) for name, error in failures.items()},
    }


def _as_json(model: Model) -> dict[str, Any]:
    return asdict(model, filter=lambda field, _: field.name not in _HIDDEN_FIELDS)


def _code(lists: Mapping[str, Catalog], failures: Mapping[str, LLMOptError]) -> Exit:
    if lists:
        return Exit.OK
    codes = {exit_code_for(error) for error in failures.values()}
    # One common cause, such as a wrong configuration, keeps its own exit code.
    return codes.pop() if len(codes) == 1 else Exit.FAILED
