"""``llmopt models``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

import click

from llmopt.cli.exits import CommandError, Exit, code_of
from llmopt.cli.jsonout import print_json
from llmopt.cli.options import example, shared
from llmopt.cli.table import print_table
from llmopt.cli.tally import error_table
from llmopt.cli.tell import named, say
from llmopt.errors import LLMOptError
from llmopt.values.catalog import Catalog, Model, ModelKind

_COLUMNS: Final = ("provider", "model", "kind", "context", "dimensions", "shutdown")
_FIELDS: Final = (
    "id",
    "kind",
    "name",
    "context_length",
    "dimensions",
    "aliases",
    "created",
    "deprecated",
    "shutdown",
)


@click.command("models", epilog=example("llmopt models local", "llmopt models --kind embedding --text small"))
@click.argument("providers", nargs=-1, metavar="[PROVIDER]...")
@click.option("--text", metavar="TEXT", help="Only models with TEXT in their id, name or aliases.")
@click.option("--kind", type=click.Choice(get_args(ModelKind)), help="Only models of this kind.")
@shared
def command(
    providers: tuple[str, ...],
    *,
    text: str | None,
    kind: ModelKind | None,
    config: str | None,
    as_json: bool,
    no_color: bool,
) -> Exit:
    """List the models of providers.

    Without PROVIDER all that are configured or have a key are asked, at once. A provider that fails is
    told below the others; the exit code is 0 as long as one answered.
    """
    found = _asked(providers, config)
    catalogues = {
        name: _chosen(each, text, kind) for name, each in found.items() if isinstance(each, Catalog)
    }
    failures = {name: each for name, each in found.items() if isinstance(each, LLMOptError)}
    if as_json:
        print_json(_table(catalogues, failures))
    else:
        print_table(_COLUMNS, [_row(each) for each in _all(catalogues)], no_color=no_color)
    for name, error in failures.items():
        say(f"llmopt: {named(name, error.message)}")
    return _code(catalogues, failures)


def _asked(providers: tuple[str, ...], config: str | None) -> Mapping[str, Catalog | LLMOptError]:
    from llmopt.client.sync_client import Client

    with Client(config) as client:
        found = client.batch_list_models(providers or None)
    if not found:
        raise CommandError("no provider is configured or has a key; see: llmopt doctor", Exit.SETUP)
    return found


def _chosen(catalogue: Catalog, text: str | None, kind: ModelKind | None) -> list[Model]:
    return [
        model
        for model in catalogue
        if (kind is None or model.kind == kind) and (text is None or _mentions(model, text.casefold()))
    ]


def _mentions(model: Model, text: str) -> bool:
    return any(text in each.casefold() for each in (model.id, model.name, *model.aliases))


def _all(catalogues: Mapping[str, list[Model]]) -> list[Model]:
    return [model for models in catalogues.values() for model in models]


def _row(model: Model) -> tuple[str, ...]:
    known = (model.context_length, model.dimensions, model.shutdown)
    return (model.provider, model.id, model.kind, *("" if each is None else str(each) for each in known))


def _table(catalogues: Mapping[str, list[Model]], failures: Mapping[str, LLMOptError]) -> dict[str, Any]:
    return {
        "models": {
            name: [{field: getattr(model, field) for field in _FIELDS} for model in models]
            for name, models in catalogues.items()
        },
        "errors": {name: error_table(error) for name, error in failures.items()},
    }


def _code(catalogues: Mapping[str, list[Model]], failures: Mapping[str, LLMOptError]) -> Exit:
    if catalogues:
        return Exit.OK
    codes = {code_of(error) for error in failures.values()}
    return codes.pop() if len(codes) == 1 else Exit.FAILED
