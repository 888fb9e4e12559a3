"""``llmopt models``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

import click
from attrs import asdict, frozen

from llmopt.cli.console import (
    CommandError,
    Exit,
    age,
    amount,
    code_of,
    error_table,
    example,
    named,
    print_json,
    print_table,
    say,
    shared,
)
from llmopt.errors import LLMOptError
from llmopt.operations.models import CacheMode
from llmopt.values.catalog import Catalog, Model, ModelKind
from llmopt.values.events import CatalogDiscover, Event

if TYPE_CHECKING:
    from rich.progress import Progress


# Asking many providers for their models, with a bar on a terminal.


def ask_all(
    providers: tuple[str, ...],
    config: str | None,
    *,
    mode: CacheMode = "auto",
    timeout: float | None = None,
    no_color: bool = False,
) -> Mapping[str, Catalog | LLMOptError]:
    """The models of providers, or why there are none.

    Args:
        providers: names of entries; none for all that are configured or have a key.
        config: path of the configuration file, None for the usual one.
        mode: what to make of the cache.
        timeout: seconds for each.
        no_color: without colours.
    """
    from llmopt.client.sync_client import Client

    with Answers(no_color=no_color) as answers, Client(config, on_event=answers.heard) as client:
        return client.batch_list_models(providers or None, timeout=timeout, cached=mode)


class Answers:
    """Counts providers as they answer: a line that goes away at the end, on a terminal and nowhere else."""

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

    def heard(self, event: Event) -> None:
        """Take note of an event; called on the client's thread."""
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


# Which models of a list are shown, and in which order. Pure.

SortKey = Literal["id", "kind", "context", "dimensions", "price", "created", "shutdown"]
SORTS: Final = get_args(SortKey)


@frozen(kw_only=True)
class Choice:
    """What to show.

    Attributes:
        text: only models with this in their id, name or aliases, whatever the case.
        kind: only models of this kind.
        min_context: only models that are known to take so many tokens.
        sort: what to order them by, None for the order they come in.
        reverse: the other way round.
    """

    text: str | None = None
    kind: ModelKind | None = None
    min_context: int | None = None
    sort: SortKey | None = None
    reverse: bool = False

    def of(self, models: Iterable[Model]) -> list[Model]:
        """The models to show, in order."""
        chosen = [model for model in models if self._fits(model)]
        if self.sort is None:
            return chosen[::-1] if self.reverse else chosen
        key = _KEYS[self.sort]
        known = [model for model in chosen if key(model) is not None]
        unknown = [model for model in chosen if key(model) is None]
        # What is not known is neither the least nor the most.
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
_NOT_TOLD: Final = frozenset({"provider", "raw"})
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
    help="Only models that take so many tokens.",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    help="Instead of each provider's own order; what is not known comes last.",
)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--refresh", is_flag=True, help="Ask the providers, whatever the cache has.")
@click.option("--offline", is_flag=True, help="Ask nobody; show what the cache has, however old.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for each provider; by default what is configured, else 8.",
)
@shared
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

    Without PROVIDER all that are configured or have a key are asked, ten at a time. Lists are kept for an
    hour; one that is older and could not be had anew is shown, and marked as stale. A provider that fails
    is told below the others; the exit code is 0 as long as one answered. Prices are for a million tokens.
    """
    choice = Choice(text=text, kind=kind, min_context=min_context, sort=sort, reverse=reverse)
    found = ask_all(providers, config, mode=_mode(refresh, offline), timeout=timeout, no_color=no_color)
    if not found:
        raise CommandError("no provider is configured or has a key; see: llmopt doctor", Exit.SETUP)
    lists = {name: each for name, each in found.items() if isinstance(each, Catalog)}
    failures = {name: each for name, each in found.items() if isinstance(each, LLMOptError)}
    if as_json:
        print_json(_table(lists, failures, choice))
    else:
        chosen = choice.of([model for each in lists.values() for model in each])
        ages = {name: age(each.age, stale=each.stale) for name, each in lists.items()}
        print_table(_COLUMNS, [_row(each, ages[each.provider]) for each in chosen], no_color=no_color)
    for name, error in failures.items():
        say(f"llmopt: {named(name, error.message)}")
    return _code(lists, failures)


def _mode(refresh: bool, offline: bool) -> CacheMode:  # noqa: FBT001 - as click gives them
    if refresh and offline:
        raise CommandError("--refresh asks the providers and --offline asks nobody; choose one of the two.")
    return "refresh" if refresh else "offline" if offline else "auto"


def _row(model: Model, told: str) -> tuple[str, ...]:
    prices = model.prices
    return (
        model.provider,
        model.id,
        model.kind,
        *("" if each is None else str(each) for each in (model.context_length, model.dimensions)),
        *("" if prices is None else amount(each, prices.currency) for each in _a_million(model)),
        model.shutdown or "",
        told,
    )


def _a_million(model: Model) -> tuple[float | None, float | None]:
    prices = model.prices
    if prices is None:
        return None, None
    times = 1_000_000 / prices.per
    return (
        None if prices.input is None else prices.input * times,
        None if prices.output is None else prices.output * times,
    )


def _table(
    lists: Mapping[str, Catalog], failures: Mapping[str, LLMOptError], choice: Choice
) -> dict[str, Any]:
    return {
        "models": {name: [_told(model) for model in choice.of(each)] for name, each in lists.items()},
        "catalogues": {
            name: {
                "models": len(each),
                "dropped": each.dropped,
                "age_s": round(each.age, 3),
                "stale": each.stale,
            }
            for name, each in lists.items()
        },
        "errors": {name: error_table(error) for name, error in failures.items()},
    }


def _told(model: Model) -> dict[str, Any]:
    return asdict(model, filter=lambda field, _: field.name not in _NOT_TOLD)


def _code(lists: Mapping[str, Catalog], failures: Mapping[str, LLMOptError]) -> Exit:
    if lists:
        return Exit.OK
    codes = {code_of(error) for error in failures.values()}
    return codes.pop() if len(codes) == 1 else Exit.FAILED
