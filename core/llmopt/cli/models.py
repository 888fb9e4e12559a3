"""``llmopt models``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

import click
from attrs import asdict

from llmopt.cli.asking import ask_all
from llmopt.cli.exits import CommandError, Exit, code_of
from llmopt.cli.jsonout import print_json
from llmopt.cli.model_choice import SORTS, Choice, SortKey
from llmopt.cli.options import example, shared
from llmopt.cli.table import print_table
from llmopt.cli.tally import error_table
from llmopt.cli.tell import named, say
from llmopt.cli.text import age, amount
from llmopt.errors import LLMOptError
from llmopt.operations.catalog import CacheMode
from llmopt.values.catalog import Catalog, Model, ModelKind

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
