"""Small runs of `tests.client.scale`, which runs with all of its calls at night."""

from __future__ import annotations

from tests.client import scale


def test_threads_of_one_client_stay_within_max_concurrency() -> None:
    """The server counts."""
    scale.threads(32, 300)


def test_descriptors_and_memory_stay_flat_over_many_texts() -> None:
    """In order, and every vector is its text's."""
    scale.texts(20_000, samples=10)


def test_growth_is_seen() -> None:
    """A run that leaks fails."""
    flat = scale.Resources([100] * 9, [20] * 9)
    assert flat.flat
    assert not scale.Resources([100, 100, 100, 100, 110, 110, 110, 130, 130], flat.descriptors).flat
    assert not scale.Resources(flat.mebibytes, [20, 20, 20, 30, 40, 50, 60, 70, 80]).flat
