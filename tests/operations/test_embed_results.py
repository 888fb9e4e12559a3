"""Validation of embeddings responses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import EmbeddedRows, InvalidResponse
from llmopt.operations.embed_results import in_input_order


def rows(vectors: Any, indices: Any = None) -> EmbeddedRows:
    array = np.array(vectors, dtype=np.float32)
    found = None if indices is None else np.array(indices, dtype=np.int64)
    return EmbeddedRows(vectors=array, indices=found)


@pytest.mark.row("P02")
@given(st.permutations(range(6)))
def test_rows_are_put_in_input_order(order: list[int]) -> None:
    """Whatever order an answer has, row i is text i."""
    vectors = [[float(index), 1.0] for index in order]
    found = in_input_order(rows(vectors, order), 6, None)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.flags.c_contiguous


@pytest.mark.row("P01")
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_rows_is_refused(count: int) -> None:
    """One vector too few or too many is never shifted into place."""
    with pytest.raises(InvalidResponse) as caught:
        in_input_order(rows(np.ones((count, 2)), list(range(count))), 2, None)
    assert caught.value.reason == "count"


@pytest.mark.row("P03")
@pytest.mark.parametrize("indices", [[0, 0], [1, 2], [-1, 0], [0, 5], [0]])
def test_invalid_indices_are_refused(indices: list[int]) -> None:
    """Each index stands there once."""
    with pytest.raises(InvalidResponse) as caught:
        in_input_order(rows([[1.0], [2.0]], indices), 2, None)
    assert caught.value.reason == "index"


@pytest.mark.row("P04")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    """The message says which vector."""
    with pytest.raises(InvalidResponse, match="vector 1 ") as caught:
        in_input_order(rows([[1.0, 2.0], [3.0, bad]], [0, 1]), 2, None)
    assert caught.value.reason == "non_finite"


@pytest.mark.row("P04")
def test_large_numbers_are_finite() -> None:
    """A sum that overflows is no proof of a bad number."""
    top = float(np.finfo(np.float32).max)
    assert in_input_order(rows([[top, top], [top, top]], [0, 1]), 2, None).shape == (2, 2)


@pytest.mark.row("P05")
@pytest.mark.parametrize(("vectors", "dimensions"), [([[1.0, 2.0]], 3), (np.ones((1, 0)), None)])
def test_wrong_dimensions_are_refused(vectors: Any, dimensions: int | None) -> None:
    """Neither another length than expected nor none."""
    with pytest.raises(InvalidResponse) as caught:
        in_input_order(rows(vectors, [0]), 1, dimensions)
    assert caught.value.reason == "dimensions"


def test_another_dtype_from_a_plugin_is_refused() -> None:
    """Vectors are float32 and nothing else."""
    with pytest.raises(InvalidResponse, match="float64"):
        in_input_order(EmbeddedRows(vectors=np.ones((1, 2)), indices=None), 1, None)  # type: ignore[arg-type] # wrong on purpose
