"""K03, S06: how values are written, and what is no value."""

from __future__ import annotations

import math
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.cache.store import read_record, write_record

KIND = b"TST1"
KEY = bytes(range(32))
NOW = 1_790_000_000.0


def written(head: bytes = b"head", body: bytes = b"the body", **more: object) -> bytes:
    return write_record(**{"kind": KIND, "key": KEY, "created": NOW, "head": head, "body": body, **more})  # type: ignore[arg-type] # as the test likes


@given(
    st.binary(max_size=100),
    st.binary(max_size=3_000),
    st.floats(0, 1e11),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_written_is_read(head: bytes, body: bytes, created: float, key: bytes) -> None:
    """Every head, every body, to the last bit of the date."""
    record = read_record(KIND, key, write_record(KIND, key, created, head, body))
    assert record is not None
    assert (record.head, bytes(record.body), record.created) == (head, body, created)


def test_k03_every_bit_that_flips_is_noticed() -> None:
    """Wherever it is."""
    data = written()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            assert read_record(KIND, KEY, bytes(changed)) is None, (at, bit)


def test_k03_every_cut_is_noticed() -> None:
    """And anything that follows."""
    data = written()
    for length in range(len(data)):
        assert read_record(KIND, KEY, data[:length]) is None
    assert read_record(KIND, KEY, data + b"\0") is None


def test_k03_another_keys_value_is_none() -> None:
    """A row that was moved in the table."""
    assert read_record(KIND, bytes(32), written()) is None


def test_another_kind_is_none() -> None:
    """A list of models is no vector."""
    assert read_record(b"TST2", KEY, written()) is None


@pytest.mark.parametrize("created", [math.nan, math.inf, -math.inf, -1.0, 1e12])
def test_a_date_that_is_none(created: float) -> None:
    """Even with a good checksum."""
    assert read_record(KIND, KEY, written(created=created)) is None


@given(st.binary(max_size=400))
def test_s06_anything_at_all_is_none(data: bytes) -> None:
    """Never an exception, whatever the bytes."""
    assert read_record(KIND, KEY, data) is None


def test_s06_a_pickle_is_none() -> None:
    """It is looked at as bytes."""
    assert read_record(KIND, KEY, pickle.dumps({"a": 1})) is None


def test_a_head_that_claims_to_be_longer_than_all() -> None:
    """With a checksum that fits."""
    from zlib import crc32

    data = struct.pack("<4sdI", KIND, NOW, 2**32 - 1) + b"short"
    assert read_record(KIND, KEY, data + struct.pack("<I", crc32(data, crc32(KEY)))) is None
