"""Writers: numpy and pyarrow read the same rows, also from a partial file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmopt.cli import writers
from llmopt.cli.writers import (
    AppendFile,
    NpyWriter,
    OutputFormat,
    Rows,
    _header,
    open_writer,
    shortest_decimals,
)

floats = st.floats(width=32)
PARTS = st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), min_size=1, max_size=12)


def rows_of(parts: Sequence[tuple[int, bool, bool]], dimensions: int) -> list[Rows]:
    """Blocks of rows; in each block one row, or all of them, may have failed."""
    made, start = [], 0
    random = np.random.default_rng(len(parts))
    for count, some, every in parts:
        vectors = random.standard_normal((count, dimensions)).astype(np.float32)
        errors = dict.fromkeys(range(count), "broken") if every else {0: "broken"} if some else {}
        vectors[list(errors)] = np.nan
        made.append(
            Rows(
                start=start,
                lines=[2 * (start + row) + 1 for row in range(count)],
                vectors=np.empty((count, 0), dtype=np.float32) if every else vectors,
                errors=errors,
                texts=[f"text {start + row}" for row in range(count)],
            )
        )
        start += count
    return made


def write_rows(form: OutputFormat, rows: list[Rows], path: Path, **options: Any) -> None:
    path.write_bytes(b"")
    writer = open_writer(
        form, path, with_errors=options.get("errors", True), with_text=options.get("text", True)
    )
    for each in rows:
        writer.add(each)
    writer.finish()


def matrix(rows: list[Rows]) -> NDArray[np.float32]:
    """All rows in one array, with NaN for failed ones."""
    width = max(each.dimensions for each in rows)
    return np.concatenate(
        [
            each.vectors if each.dimensions else np.full((len(each), width), np.nan, np.float32)
            for each in rows
        ]
    )


@given(PARTS, st.integers(1, 9))
def test_npy_round_trip(parts: list[tuple[int, bool, bool]], dimensions: int) -> None:
    """numpy can map the file; failed rows are NaN, also before the first vector."""
    rows = rows_of(parts, dimensions)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.npy"
        write_rows("npy", rows, path)
        result = np.load(path)
        np.testing.assert_array_equal(result, matrix(rows))
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        if result.size:
            mapped = np.load(path, mmap_mode="r")
            np.testing.assert_array_equal(mapped, matrix(rows))
            mapped._mmap.close()


@given(PARTS, st.integers(1, 9))
def test_jsonl_round_trip(parts: list[tuple[int, bool, bool]], dimensions: int) -> None:
    """Each line is an object; the numbers of a vector read back as the same float32."""
    rows = rows_of(parts, dimensions)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.jsonl"
        write_rows("jsonl", rows, path)
        result = [json.loads(line) for line in path.read_text().splitlines()]
    compare(result, rows)


@given(PARTS, st.integers(1, 9), st.integers(1, 12))
def test_parquet_round_trip(parts: list[tuple[int, bool, bool]], dimensions: int, group: int) -> None:
    """pyarrow reads the same rows, whatever the size of a row group."""
    rows = rows_of(parts, dimensions)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "_GROUP_ROWS", group)
        path = Path(folder) / "out.parquet"
        write_rows("parquet", rows, path)
        compare(pq.read_table(path).to_pylist(), rows)


def compare(result: list[dict[str, Any]], rows: list[Rows]) -> None:
    expected = [(each, position) for each in rows for position in range(len(each))]
    assert len(result) == len(expected)
    for record, (each, position) in zip(result, expected, strict=True):
        assert record["index"] == each.start + position
        assert record["line"] == each.lines[position]
        assert record["text"] == f"text {each.start + position}"
        assert record.get("error") == each.errors.get(position)
        if position in each.errors:
            assert record["embedding"] is None
        else:
            np.testing.assert_array_equal(np.float32(record["embedding"]), each.vectors[position])


@given(st.lists(floats, min_size=1, max_size=50))
def test_shortest_decimals_read_back_as_the_same_float32(numbers: list[float]) -> None:
    """For subnormal, huge and infinite numbers too, with about nine digits."""
    exact = np.array([numbers], dtype=np.float32)
    short = shortest_decimals(exact)
    np.testing.assert_array_equal(short.astype(np.float32), exact)
    for value, number in zip(exact[0], short[0], strict=True):
        if 1e-12 < abs(value) < 1e8:
            assert len(repr(float(number)).replace("-", "").split("e")[0]) <= 16
            digits = repr(float(number)).split("e")[0].replace("-", "").replace(".", "").strip("0")
            assert len(digits) <= 11


def test_failed_rows_before_the_first_vector_take_little_memory(tmp_path: Path) -> None:
    """The writer counts them, and writes them once it knows the dimensions."""
    path = tmp_path / "out.npy"
    path.write_bytes(b"")
    writer = NpyWriter(path)
    failed = Rows(start=0, lines=range(5000), vectors=np.empty((5000, 0), dtype=np.float32))
    writer.add(failed)
    assert path.stat().st_size == 128
    writer.add(Rows(start=5000, lines=[5000], vectors=np.ones((1, 3), dtype=np.float32)))
    writer.finish()
    result = np.load(path)
    assert result.shape == (5001, 3)
    assert np.isnan(result[:5000]).all()


def test_npy_header_has_room_for_any_shape(tmp_path: Path) -> None:
    """Its length is fixed, so that the final one can replace the first."""
    assert len(_header(0, 0)) == len(_header(10**15, 10**6)) == 128


class FullDisk:
    """A file that accepts a limited number of bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, view: memoryview) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = self.file.write(view[: self.room])
        self.room -= taken
        return int(taken)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_leaves_complete_blocks(tmp_path: Path) -> None:
    """A block that does not fit is removed, and later blocks can follow."""
    path = tmp_path / "out"
    path.write_bytes(b"")
    file = AppendFile(path)
    file.append(b"whole")
    real = file._file
    file._file = FullDisk(real, 3)  # type: ignore[assignment, misc] # what a file does when the disk is full
    with pytest.raises(OSError, match="No space left"):
        file.append(b"broken")
    file._file = real  # type: ignore[misc] # the disk has space again
    assert path.read_bytes() == b"whole"
    file.append(b" again")
    file.overwrite(b"WH")
    file.close()
    assert path.read_bytes() == b"WHole again"


def test_parquet_when_all_rows_failed(tmp_path: Path) -> None:
    """The vectors are null, of unknown length."""
    path = tmp_path / "out.parquet"
    write_rows("parquet", rows_of([(3, False, True)], 4), path)
    assert pq.read_table(path)["embedding"].null_count == 3
