"""The profile of a provider of the table."""

from __future__ import annotations

from llmopt import Option, Profile, Timeouts
from llmopt_plugin_compatible._table import Row


def profile_of(row: Row) -> Profile:
    """A row's profile. A key from the environment is sent to the row's origin only."""
    return Profile(
        base_url=row.base_url,
        key_env=row.key_env,
        # Whether a server at the user's own address needs a key is unknown.
        key_required=row.base_url is not None,
        discovered=row.discovered,
        # Where lists take long to make, they have hundreds of models.
        timeouts=Timeouts(connect=10, read=60, read_large=120, catalog=20, pool=5),
        options=tuple(Option(name=name, env=part.env, help=part.help) for name, part in row.parts.items()),
    )
