"""What a model costs."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Prices:
    """The prices of a model, without tiers, discounts and what is not counted in tokens.

    Attributes:
        input: for tokens sent, in ``currency`` per ``per`` tokens; None when not known, 0.0 when free.
        output: for tokens generated, likewise. Embeddings have none.
        cached_input: for tokens sent that the provider had in its cache.
        cache_write: for tokens sent that it puts there.
        currency: ISO 4217.
        per: number of tokens that the prices are for.
    """

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    cache_write: float | None = None
    currency: str = "USD"
    per: int = 1_000_000
