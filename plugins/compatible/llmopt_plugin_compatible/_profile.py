"""The profile of a provider of the table."""

from __future__ import annotations

from llmopt import Model, Option, Profile, ProviderEntry, Timeouts
from llmopt_plugin_compatible._table import Row


def profile_of(row: Row, entry: ProviderEntry) -> Profile:
    """A row's profile. A key from the environment is sent to the row's origin only."""
    # What another server has is unknown.
    own = entry.base_url in (None, row.base_url)
    return Profile(
        base_url=row.base_url,
        key_env=row.key_env,
        # Whether a server at the user's own address needs a key is unknown.
        key_required=row.base_url is not None,
        discovered=row.discovered,
        # Where lists take long to make, they have hundreds of models.
        timeouts=Timeouts(connect=10, read=60, read_large=120, catalog=20, pool=5),
        options=tuple(Option(name=name, env=part.env, help=part.help) for name, part in row.parts.items()),
        operations=row.operations if own else None,
        models=_models(row) if own else (),
    )


def _models(row: Row) -> tuple[Model, ...]:
    known = ("kind", "context_length", "dimensions")
    return tuple(
        Model(
            id=name,
            kind="embedding",
            context_length=each.context_length,
            dimensions=each.dimensions,
            known=known,
        )
        for name, each in row.models.items()
    )
